package tunnel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/conn"
)

const (
	quicQueue    = 512  // packets waiting for QUIC; more are dropped
	quicDatagram = 1500 // bytes; QUIC never sends larger packets here
)

// packetConn is the QUIC half of the socket. Packets reach it from WireGuard's receive functions,
// which it must never block.
type packetConn struct {
	inner conn.Bind
	port  atomic.Uint32
	queue chan datagram
	pool  sync.Pool // of *[quicDatagram]byte

	overflow, oversize, sendErrors atomic.Uint64

	deadline  deadline
	closed    chan struct{}
	closeOnce sync.Once
}

type datagram struct {
	buffer *[quicDatagram]byte
	size   int
	from   netip.AddrPort
}

func newPacketConn(inner conn.Bind) *packetConn {
	return &packetConn{
		inner:    inner,
		queue:    make(chan datagram, quicQueue),
		pool:     sync.Pool{New: func() any { return new([quicDatagram]byte) }},
		deadline: deadline{passed: make(chan struct{})},
		closed:   make(chan struct{}),
	}
}

// deliver copies a packet into the queue, or drops and counts it.
func (c *packetConn) deliver(packet []byte, from netip.AddrPort) {
	if len(packet) > quicDatagram {
		c.oversize.Add(1)
		return
	}
	if len(c.queue) == cap(c.queue) { // cheap answer to a flood, before the copy
		c.overflow.Add(1)
		return
	}
	d := datagram{buffer: c.pool.Get().(*[quicDatagram]byte), from: from}
	d.size = copy(d.buffer[:], packet)
	select {
	case c.queue <- d:
	default:
		c.pool.Put(d.buffer)
		c.overflow.Add(1)
	}
}

// ReadFrom returns the next QUIC packet and its sender, a *net.UDPAddr.
func (c *packetConn) ReadFrom(b []byte) (int, net.Addr, error) {
	passed := c.deadline.wait()
	select { // what ended the connection goes before packets that wait
	case <-c.closed:
		return 0, nil, net.ErrClosed
	case <-passed:
		return 0, nil, os.ErrDeadlineExceeded
	default:
	}
	select {
	case d := <-c.queue:
		n := copy(b, d.buffer[:d.size])
		c.pool.Put(d.buffer)
		return n, net.UDPAddrFromAddrPort(d.from), nil
	case <-c.closed:
		return 0, nil, net.ErrClosed
	case <-passed:
		return 0, nil, os.ErrDeadlineExceeded
	}
}

// WriteTo sends one packet. A packet that the network does not take counts as lost: an error here would
// make QUIC end the connection for what may be a short absence of a route.
func (c *packetConn) WriteTo(b []byte, addr net.Addr) (int, error) {
	select {
	case <-c.closed:
		return 0, net.ErrClosed
	default:
	}
	udp, ok := addr.(*net.UDPAddr)
	if !ok {
		return 0, fmt.Errorf("write to %v: not a UDP address", addr)
	}
	err := c.inner.Send([][]byte{b}, endpointOf(udp.AddrPort()))
	if disabled, ok := errors.AsType[conn.ErrUDPGSODisabled](err); ok {
		err = disabled.RetryErr
	}
	if err != nil {
		c.sendErrors.Add(1)
	}
	return len(b), nil
}

// Close ends reads and writes; the socket stays with WireGuard.
func (c *packetConn) Close() error {
	c.closeOnce.Do(func() { close(c.closed) })
	return nil
}

// LocalAddr is the wildcard address with the port of the socket.
func (c *packetConn) LocalAddr() net.Addr {
	return &net.UDPAddr{IP: net.IPv6unspecified, Port: int(c.port.Load())}
}

// SetDeadline sets the read deadline; writes do not wait.
func (c *packetConn) SetDeadline(t time.Time) error { return c.SetReadDeadline(t) }

// SetReadDeadline ends waiting reads at t; the zero time means never.
func (c *packetConn) SetReadDeadline(t time.Time) error {
	c.deadline.set(t)
	return nil
}

// SetWriteDeadline does nothing, because writes do not wait.
func (c *packetConn) SetWriteDeadline(time.Time) error { return nil }

// SetReadBuffer and SetWriteBuffer leave the buffers as large as WireGuard's bind has made them.
func (c *packetConn) SetReadBuffer(int) error  { return nil }
func (c *packetConn) SetWriteBuffer(int) error { return nil }

// deadline is a channel that closes at a time that can be changed.
type deadline struct {
	mu     sync.Mutex
	timer  *time.Timer
	passed chan struct{}
}

func (d *deadline) wait() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.passed
}

func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil && !d.timer.Stop() {
		<-d.passed // it has fired and is about to close the channel
	}
	d.timer = nil
	select {
	case <-d.passed:
		d.passed = make(chan struct{})
	default:
	}
	if t.IsZero() {
		return
	}
	passed := d.passed
	if wait := time.Until(t); wait > 0 {
		d.timer = time.AfterFunc(wait, func() { close(passed) })
		return
	}
	close(passed)
}
