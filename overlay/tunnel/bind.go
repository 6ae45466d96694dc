package tunnel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.zx2c4.com/wireguard/conn"
)

// splitBind is WireGuard's view of the shared socket: wireguard-go's own bind with its batches, from
// whose batches the packets of others are taken out.
type splitBind struct {
	inner  conn.Bind
	quic   *packetConn
	paths  *pathTable
	knocks knocks

	foreign       atomic.Uint64
	receiveErrors atomic.Uint64

	mu     sync.Mutex
	closed chan struct{} // of the current Open; nil before the first
}

func newSplitBind(inner conn.Bind, paths *pathTable) *splitBind {
	b := &splitBind{inner: inner, paths: paths}
	b.quic = newPacketConn(inner)
	return b
}

// Open listens on a port, 0 meaning any. It may be called again after Close.
func (b *splitBind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	receive, actual, err := b.inner.Open(port)
	if err != nil {
		return nil, 0, err
	}
	closed := make(chan struct{})
	b.mu.Lock()
	b.closed = closed
	b.mu.Unlock()
	b.quic.port.Store(uint32(actual))
	for i, fn := range receive {
		receive[i] = b.split(fn, closed)
	}
	return receive, actual, nil
}

// Close ends the receive functions of the last Open.
func (b *splitBind) Close() error {
	b.mu.Lock()
	if b.closed != nil {
		close(b.closed)
		b.closed = nil
	}
	b.mu.Unlock()
	return b.inner.Close()
}

func (b *splitBind) SetMark(mark uint32) error { return b.inner.SetMark(mark) }
func (b *splitBind) BatchSize() int            { return b.inner.BatchSize() }

// ParseEndpoint accepts "host:<name>" of a host in the path table.
func (b *splitBind) ParseEndpoint(s string) (conn.Endpoint, error) {
	h, err := b.paths.parse(s)
	if err != nil {
		return nil, err // not h: a nil pointer would make the interface non-nil
	}
	return h, nil
}

// split wraps a receive function. A packet that is not WireGuard's gets size zero, which the device
// skips; moving packets between slots would not do, because the device keeps its own list of buffers.
func (b *splitBind) split(receive conn.ReceiveFunc, closed <-chan struct{}) conn.ReceiveFunc {
	return func(packets [][]byte, sizes []int, endpoints []conn.Endpoint) (int, error) {
		n, err := b.retry(receive, closed, packets, sizes, endpoints)
		for i := range n {
			packet := packets[i][:sizes[i]]
			switch classify(packet) {
			case wireGuard:
				if packet[0] == messageInitiation {
					b.knocks.add(endpoints[i].(*conn.StdNetEndpoint).AddrPort)
				}
				continue
			case quic:
				b.quic.deliver(packet, endpoints[i].(*conn.StdNetEndpoint).AddrPort)
			default:
				b.foreign.Add(1)
			}
			sizes[i] = 0
		}
		return n, err
	}
}

// retry receives until it succeeds or the bind is closed: the device gives up for good after a few
// errors, and the host would be cut off although the next read would have worked.
func (b *splitBind) retry(
	receive conn.ReceiveFunc, closed <-chan struct{},
	packets [][]byte, sizes []int, endpoints []conn.Endpoint,
) (int, error) {
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		n, err := receive(packets, sizes, endpoints)
		if err == nil {
			return n, nil
		}
		if errors.Is(err, net.ErrClosed) {
			return 0, net.ErrClosed
		}
		b.receiveErrors.Add(1)
		select {
		case <-closed:
			return 0, net.ErrClosed
		case <-time.After(wait):
		}
	}
}

// Send writes a batch to a host or to the address that WireGuard last heard of a peer from.
func (b *splitBind) Send(packets [][]byte, endpoint conn.Endpoint) error {
	switch e := endpoint.(type) {
	case *conn.StdNetEndpoint:
		err := b.inner.Send(packets, e)
		if errors.Is(err, syscall.EINVAL) && e.SrcIP().IsValid() {
			// The source address that the peer was last heard on is no longer ours.
			return b.inner.Send(packets, endpointOf(e.AddrPort))
		}
		return err
	case *hostEndpoint:
		if isInitiation(packets) {
			return b.sendAll(packets, e.name, e.initiationTargets(time.Now()))
		}
		to := e.best()
		if to == nil {
			return noPath(e.name)
		}
		return b.inner.Send(packets, to)
	default:
		return conn.ErrWrongEndpointType
	}
}

// sendAll succeeds if one target could be sent to.
func (b *splitBind) sendAll(packets [][]byte, name string, targets []*conn.StdNetEndpoint) error {
	if len(targets) == 0 {
		return noPath(name)
	}
	var failed []error
	for _, to := range targets {
		if err := b.inner.Send(packets, to); err != nil {
			failed = append(failed, err)
		}
	}
	if len(failed) < len(targets) {
		return nil
	}
	return errors.Join(failed...)
}

func noPath(host string) error { return fmt.Errorf("send to host %s: no address is known", host) }

// knocks remembers where the latest handshake initiations came from, a few of them.
type knocks struct {
	mu    sync.Mutex
	addrs [16]netip.AddrPort
	next  int
}

func (k *knocks) add(addr netip.AddrPort) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.addrs[k.next] = addr
	k.next = (k.next + 1) % len(k.addrs)
}

// take returns what was remembered and forgets it.
func (k *knocks) take() []netip.AddrPort {
	k.mu.Lock()
	defer k.mu.Unlock()
	var taken []netip.AddrPort
	for _, a := range k.addrs {
		if a.IsValid() {
			taken = append(taken, a)
		}
	}
	k.addrs, k.next = [16]netip.AddrPort{}, 0
	return taken
}
