package gossip

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/bulkhead-mesh/bulkhead/overlay"
)

const (
	packetQueue   = 1024
	streamTimeout = 10 * time.Second
)

var errUnnamed = errors.New("gossip addresses hosts by name")

// transport is memberlist's view of the network: peers are addressed by name, and all that comes in
// has been inspected. It lives as long as one Run.
type transport struct {
	ctx     context.Context // of one Run, so that memberlist, which knows no contexts, is cut off by it
	stop    context.CancelFunc
	host    string
	network overlay.Network
	known   func(host string) bool
	pinged  func(host string, packet []byte)
	answer  func(from string, r *bufio.Reader) ([]byte, error) // inspects what a dialled host says

	packets chan *memberlist.Packet
	streams chan net.Conn

	mu     sync.Mutex
	closed bool
	conns  sync.WaitGroup // grows only while not closed
}

var _ memberlist.NodeAwareTransport = (*transport)(nil)

func (t *transport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return address(t.host), gossipPort, nil
}

// WriteToAddress never fails: a lost packet is what memberlist detects, while an error would make it
// skip the probe.
func (t *transport) WriteToAddress(b []byte, to memberlist.Address) (time.Time, error) {
	now := time.Now()
	if t.ctx.Err() == nil && t.known(to.Name) {
		t.pinged(to.Name, b)
		_ = t.network.Send(to.Name, overlay.KindGossip, b)
	}
	return now, nil
}

func (t *transport) DialAddressTimeout(to memberlist.Address, timeout time.Duration) (net.Conn, error) {
	if !t.known(to.Name) {
		return nil, fmt.Errorf("dial host %q: %w", to.Name, errSender)
	}
	ctx, cancel := context.WithTimeout(t.ctx, timeout)
	stream, err := t.network.Open(ctx, to.Name, overlay.KindGossip)
	if err != nil {
		cancel()
		return nil, fmt.Errorf("dial host %q: %w", to.Name, err)
	}
	inspect := func(r *bufio.Reader) ([]byte, error) { return t.answer(to.Name, r) }
	c := t.track(stream, to.Name, inspect, cancel)
	if c == nil {
		cancel()
		return nil, fmt.Errorf("dial host %q: %w", to.Name, net.ErrClosed)
	}
	return c, nil
}

// accept hands an incoming push/pull to memberlist and returns when memberlist is done with it.
func (t *transport) accept(ctx context.Context, from string, stream overlay.Stream, body []byte) {
	done := make(chan struct{})
	inspected := func(*bufio.Reader) ([]byte, error) { return body, nil }
	c := t.track(stream, from, inspected, func() { close(done) })
	if c == nil {
		return
	}
	select {
	case t.streams <- c:
	case <-ctx.Done():
		_ = c.Close()
	case <-t.ctx.Done():
		_ = c.Close()
	}
	<-done
}

// track makes a conn that ends with the transport, or closes s and returns nil if that has ended.
// onClose is called once.
func (t *transport) track(s overlay.Stream, remote string, inspect func(*bufio.Reader) ([]byte, error), onClose func()) *conn {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		_ = s.Close()
		return nil
	}
	t.conns.Add(1)
	unwatch := context.AfterFunc(t.ctx, func() { _ = s.Close() })
	return &conn{Stream: s, local: t.host, remote: remote, inspect: inspect, onClose: func() {
		unwatch()
		onClose()
		t.conns.Done()
	}}
}

func (t *transport) WriteTo([]byte, string) (time.Time, error) { return time.Time{}, errUnnamed }
func (t *transport) DialTimeout(string, time.Duration) (net.Conn, error) {
	return nil, errUnnamed
}
func (t *transport) PacketCh() <-chan *memberlist.Packet { return t.packets }
func (t *transport) StreamCh() <-chan net.Conn           { return t.streams }

// Shutdown cuts memberlist off from the network.
func (t *transport) Shutdown() error {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.stop()
	return nil
}
