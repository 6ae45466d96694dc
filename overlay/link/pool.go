package link

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/bulkhead-mesh/bulkhead/overlay"
	"github.com/quic-go/quic-go"
)

const (
	hostQueue   = 32 // datagrams waiting for a host; the oldest is dropped for a new one
	maxAccepted = 4  // connections that one host dialled; the oldest is closed for a new one
)

// host is what the pool knows of one host. Link.mu guards it, the queue apart.
type host struct {
	name    string
	queue   chan []byte
	conns   []*connection // in the order of establishment
	dialing *dialing      // nil if no dial is under way
	retry   retry
}

// connection is an established one: both sides have verified each other.
type connection struct {
	quic    *quic.Conn
	host    string
	chain   [][]byte
	dialled bool               // by this side
	addr    netip.AddrPort     // last reported by OnPath
	stop    context.CancelFunc // of the sender; nil if it has none
}

// host returns the entry of a name. The caller holds mu.
func (l *Link) host(name string) *host {
	h := l.hosts[name]
	if h == nil {
		h = &host{name: name, queue: make(chan []byte, hostQueue)}
		l.hosts[name] = h
	}
	return h
}

// current is the newest connection that is not closed, nil if there is none.
func (h *host) current() *connection {
	for _, c := range slices.Backward(h.conns) {
		if c.quic.Context().Err() == nil {
			return c
		}
	}
	return nil
}

// add puts an established connection into use and starts its loops; false if the link is ending.
func (l *Link) add(c *connection) bool {
	l.mu.Lock()
	h := l.host(c.host)
	if !l.spawnLocked(func(context.Context) { l.receiveDatagrams(c) }) ||
		!l.spawnLocked(func(context.Context) { l.acceptStreams(c) }) ||
		!l.spawnLocked(func(context.Context) { l.removeWhenClosed(c) }) {
		l.mu.Unlock()
		return false
	}
	surplus := h.surplus(c)
	if old := h.current(); old != nil && old.stop != nil {
		old.stop()
		old.stop = nil
	}
	h.conns = append(h.conns, c)
	h.retry = retry{}
	l.startSender(h, c)
	c.addr = addrPort(c.quic.RemoteAddr())
	addr := c.addr
	l.mu.Unlock()

	for _, old := range surplus {
		_ = old.quic.CloseWithError(codeReplaced, "replaced by a newer connection")
	}
	l.options.Logger.Debug("host connected", "host", c.host, "address", addr, "dialled", c.dialled)
	l.options.OnPath(c.host, addr)
	l.options.OnConnect(c.host)
	return true
}

// surplus takes out the connections that c makes needless. Each side closes what it has dialled itself,
// because only it knows which of several attempts it keeps; of the other's, only too many are closed.
func (h *host) surplus(c *connection) []*connection {
	keep := maxAccepted - 1
	if c.dialled {
		keep = 0
	}
	same := 0
	for _, old := range h.conns {
		if old.dialled == c.dialled {
			same++
		}
	}
	var surplus []*connection
	h.conns = slices.DeleteFunc(h.conns, func(old *connection) bool {
		if old.dialled != c.dialled || same <= keep {
			return false
		}
		same--
		surplus = append(surplus, old)
		return true
	})
	return surplus
}

// startSender gives a connection the host's queue. The caller holds mu.
func (l *Link) startSender(h *host, c *connection) {
	ctx, stop := context.WithCancel(c.quic.Context())
	if !l.spawnLocked(func(context.Context) { l.sendDatagrams(ctx, h.queue, c) }) {
		stop()
		return
	}
	c.stop = stop
}

// removeWhenClosed waits for the end of a connection; an older one that still lives comes back into use.
func (l *Link) removeWhenClosed(c *connection) {
	<-c.quic.Context().Done()
	l.options.Logger.Debug("host disconnected", "host", c.host, "cause", context.Cause(c.quic.Context()))
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.stop != nil {
		c.stop()
		c.stop = nil
	}
	h := l.hosts[c.host]
	if h == nil {
		return
	}
	h.conns = slices.DeleteFunc(h.conns, func(other *connection) bool { return other == c })
	next := h.current()
	switch {
	case next != nil && next.stop == nil:
		l.startSender(h, next)
	case next == nil && h.dialing == nil:
		l.counters.sendDropped.Add(h.drain())
	}
}

// Connected lists the hosts with a connection, with the address of the one in use.
func (l *Link) Connected() map[string]netip.AddrPort {
	l.mu.Lock()
	defer l.mu.Unlock()
	connected := map[string]netip.AddrPort{}
	for name, h := range l.hosts {
		if c := h.current(); c != nil {
			connected[name] = addrPort(c.quic.RemoteAddr())
		}
	}
	return connected
}

// Drop closes all connections of a host and forgets what waits for it, as for a revoked one.
func (l *Link) Drop(name string) {
	l.mu.Lock()
	h := l.hosts[name]
	if h == nil {
		l.mu.Unlock()
		return
	}
	conns := h.conns
	h.conns = nil
	if h.dialing != nil {
		h.dialing.cancel()
	}
	h.drain()
	l.mu.Unlock()
	for _, c := range conns {
		_ = c.quic.CloseWithError(codeRefused, "not accepted any more")
	}
}

// drain empties the queue and says how many datagrams were lost.
func (h *host) drain() (lost uint64) {
	for {
		select {
		case <-h.queue:
			lost++
		default:
			return lost
		}
	}
}

// Recheck verifies the certificates of all connections as of now and closes those that fail.
func (l *Link) Recheck() {
	for _, c := range l.connections() {
		if err := l.stillTrusted(c); err != nil {
			l.options.Logger.Info("connection closed", "host", c.host, "cause", err)
		}
	}
}

// stillTrusted closes the connection if its chain does not prove its host any more.
func (l *Link) stillTrusted(c *connection) error {
	name, err := l.verify(c.chain)
	if err == nil && name != c.host {
		err = fmt.Errorf("certificate is of host %q now, not of %q", name, c.host)
	}
	if err != nil { // in the background: it waits for the goodbye to be sent
		l.spawn(func(context.Context) { _ = c.quic.CloseWithError(codeRefused, "not accepted any more") })
	}
	return err
}

func (l *Link) connections() []*connection {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []*connection
	for _, h := range l.hosts {
		all = append(all, h.conns...)
	}
	return all
}

// closeAll says goodbye to every host; the caller has ended the context of Run.
func (l *Link) closeAll() {
	for _, c := range l.connections() {
		_ = c.quic.CloseWithError(codeShutdown, "shutting down")
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.run = nil
}

// reportPaths tells when a peer has moved: QUIC has validated the new address by then.
func (l *Link) reportPaths() {
	moved := map[string]netip.AddrPort{}
	l.mu.Lock()
	for name, h := range l.hosts {
		if c := h.current(); c != nil {
			if addr := addrPort(c.quic.RemoteAddr()); addr != c.addr {
				c.addr = addr
				moved[name] = addr
			}
		}
	}
	l.mu.Unlock()
	for name, addr := range moved {
		l.options.OnPath(name, addr)
	}
}

// forgetIdle drops entries of hosts with nothing to remember.
func (l *Link) forgetIdle(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for name, h := range l.hosts {
		if len(h.conns) == 0 && h.dialing == nil && len(h.queue) == 0 && now.After(h.retry.until) {
			delete(l.hosts, name)
		}
	}
}

// Send queues one datagram of at most MaxDatagram bytes and never blocks. Without a connection it dials
// in the background; a host that could not be reached a moment ago is ErrBackoff.
func (l *Link) Send(name string, kind overlay.Kind, payload []byte) error {
	if len(payload) > MaxDatagram {
		return fmt.Errorf("send to host %s: %w", name, ErrTooLarge)
	}
	datagram := append(append(make([]byte, 0, 1+len(payload)), byte(kind)), payload...)
	err := l.withHost(name, func(h *host, addrs []netip.AddrPort) error {
		if h.current() == nil {
			if _, err := l.dial(h, addrs); err != nil {
				return err
			}
		}
		l.counters.sendDropped.Add(h.enqueue(datagram))
		return nil
	})
	if err != nil {
		l.counters.sendDropped.Add(1)
		return fmt.Errorf("send to host %s: %w", name, err)
	}
	return nil
}

// enqueue makes room by dropping the oldest, which is worth least, and says how many it dropped. The
// caller holds mu, so nobody else fills the room.
func (h *host) enqueue(datagram []byte) (dropped uint64) {
	for {
		select {
		case h.queue <- datagram:
			return dropped
		default:
		}
		select {
		case <-h.queue:
			dropped++
		default:
		}
	}
}

// withHost calls f under mu, with the addresses to dial if the host has no connection. They are asked for
// without mu, because whoever knows them may be waiting for us under a lock of its own.
func (l *Link) withHost(name string, f func(h *host, addrs []netip.AddrPort) error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.hosts[name]
	var addrs []netip.AddrPort
	if h == nil || h.current() == nil {
		l.mu.Unlock()
		addrs = l.options.Candidates(name)
		l.mu.Lock()
		h = l.host(name)
	}
	return f(h, addrs)
}
