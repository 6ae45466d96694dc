package link

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/bulkhead-mesh/bulkhead/overlay"
	"github.com/quic-go/quic-go"
)

const (
	maxCandidates = 8
	dialStagger   = 250 * time.Millisecond // head start of a better address
	firstRetry    = 250 * time.Millisecond
	lastRetry     = 15 * time.Second
	welcomeByte   = 1 // the version of what follows
)

// dialing is one attempt to reach a host, shared by all who wait for it.
type dialing struct {
	cancel context.CancelFunc
	done   chan struct{} // closed at the end
	err    error         // valid then
}

// retry says when a host that could not be reached is tried again.
type retry struct {
	wait  time.Duration
	until time.Time
	tried []netip.AddrPort // with other addresses it is tried at once
	cause error
}

func (r retry) failed(now time.Time, tried []netip.AddrPort, cause error) retry {
	wait := min(max(2*r.wait, firstRetry), lastRetry)
	jitter := wait/2 + rand.N(wait) // keeps a thousand hosts from dialling in step
	return retry{wait: wait, until: now.Add(jitter), tried: tried, cause: cause}
}

// dial joins or starts the attempt to reach a host. The caller holds mu.
func (l *Link) dial(h *host, addrs []netip.AddrPort) (*dialing, error) {
	if h.dialing != nil {
		return h.dialing, nil
	}
	if len(addrs) == 0 {
		return nil, ErrNoAddress
	}
	addrs = slices.Clone(addrs[:min(len(addrs), maxCandidates)])
	if time.Now().Before(h.retry.until) && slices.Equal(addrs, h.retry.tried) {
		return nil, fmt.Errorf("%w: %w", ErrBackoff, h.retry.cause)
	}
	d := &dialing{done: make(chan struct{}), cancel: func() {}}
	if l.run != nil {
		var ctx context.Context
		ctx, d.cancel = context.WithCancel(l.run.ctx)
		if l.spawnLocked(func(context.Context) { l.finish(h, d, addrs, l.reach(ctx, h.name, addrs)) }) {
			h.dialing = d
			return d, nil
		}
		d.cancel()
	}
	return nil, ErrNotRunning
}

func (l *Link) finish(h *host, d *dialing, addrs []netip.AddrPort, err error) {
	d.cancel()
	l.mu.Lock()
	defer l.mu.Unlock()
	h.dialing = nil
	if h.current() != nil {
		err = nil // the host has reached us in the meantime
	}
	if err != nil {
		h.retry = h.retry.failed(time.Now(), addrs, err)
		l.counters.sendDropped.Add(h.drain())
		l.options.Logger.Debug("host not reached", "host", h.name, "error", err)
	}
	d.err = err
	close(d.done)
}

// reach tries the addresses of a host side by side, each a moment after the one before, and keeps the
// first connection.
func (l *Link) reach(ctx context.Context, name string, addrs []netip.AddrPort) error {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	type result struct {
		conn *quic.Conn
		err  error
	}
	results := make(chan result, len(addrs))
	var attempts sync.WaitGroup
	for i, addr := range addrs {
		attempts.Go(func() {
			if !pause(ctx, time.Duration(i)*dialStagger) {
				results <- result{err: context.Cause(ctx)}
				return
			}
			conn, err := l.handshake(ctx, addr, name)
			results <- result{conn, err}
		})
	}
	var won *quic.Conn
	var failed []error
	for range addrs {
		r := <-results
		switch {
		case r.err != nil:
			failed = append(failed, r.err)
		case won == nil:
			won = r.conn
			cancel() // the others
		default:
			_ = r.conn.CloseWithError(codeReplaced, "another address was faster")
		}
	}
	attempts.Wait()
	if won == nil {
		return errors.Join(failed...)
	}
	_, err := l.establish(won, true)
	return err
}

// pause waits for d and says whether ctx still lives.
func pause(ctx context.Context, d time.Duration) bool {
	if d == 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// handshake dials one address and waits until the other side has accepted us. want may be empty.
func (l *Link) handshake(ctx context.Context, addr netip.AddrPort, want string) (*quic.Conn, error) {
	conn, err := l.transport.Dial(ctx, net.UDPAddrFromAddrPort(addr), l.clientTLS(want), clientConfig())
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", addr, err)
	}
	if err := awaitWelcome(ctx, conn); err != nil {
		_ = conn.CloseWithError(codeUnexpected, "no welcome")
		return nil, fmt.Errorf("dial %s: %w", addr, err)
	}
	return conn, nil
}

func awaitWelcome(ctx context.Context, conn *quic.Conn) error {
	s, err := conn.AcceptUniStream(ctx)
	if err != nil {
		return fmt.Errorf("wait for welcome: %w", err)
	}
	if deadline, ok := ctx.Deadline(); ok {
		_ = s.SetReadDeadline(deadline)
	}
	version, err := readKind(s)
	if err != nil {
		return fmt.Errorf("read welcome: %w", err)
	}
	if version != welcomeByte {
		return fmt.Errorf("read welcome: version %d is not known", version)
	}
	s.CancelRead(codeStreamClosed)
	return nil
}

// welcome takes over an accepted connection: TLS has verified the peer by now.
func (l *Link) welcome(ctx context.Context, conn *quic.Conn) {
	err := sendWelcome(conn)
	if err == nil {
		_, err = l.establish(conn, false)
	}
	if err != nil {
		_ = conn.CloseWithError(codeRefused, "not accepted")
		if ctx.Err() == nil {
			l.options.Logger.Debug("connection not accepted", "address", conn.RemoteAddr(), "error", err)
		}
	}
}

func sendWelcome(conn *quic.Conn) error {
	s, err := conn.OpenUniStream()
	if err != nil {
		return fmt.Errorf("open welcome: %w", err)
	}
	if _, err := s.Write([]byte{welcomeByte}); err != nil {
		return fmt.Errorf("write welcome: %w", err)
	}
	return s.Close()
}

// establish puts a connection into the pool under the name that its certificate proves.
func (l *Link) establish(conn *quic.Conn, dialled bool) (string, error) {
	chain := chainOf(conn)
	name, err := l.verify(chain)
	if err != nil {
		_ = conn.CloseWithError(codeRefused, "not accepted")
		return "", err
	}
	if !l.add(&connection{quic: conn, host: name, chain: chain, dialled: dialled}) {
		_ = conn.CloseWithError(codeShutdown, "shutting down")
		return "", ErrNotRunning
	}
	return name, nil
}

// DialAddr connects to whoever is at addr and returns the host that it proves to be: for seeds, whose
// name is not known. An existing connection to that address serves.
func (l *Link) DialAddr(ctx context.Context, addr netip.AddrPort) (string, error) {
	addr = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
	for name, at := range l.Connected() {
		if at == addr {
			return name, nil
		}
	}
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	type result struct {
		host string
		err  error
	}
	done := make(chan result, 1)
	if !l.spawn(func(life context.Context) {
		stop := context.AfterFunc(life, cancel)
		defer stop()
		conn, err := l.handshake(ctx, addr, "")
		if err != nil {
			done <- result{err: err}
			return
		}
		host, err := l.establish(conn, true)
		done <- result{host, err}
	}) {
		return "", fmt.Errorf("dial %s: %w", addr, ErrNotRunning)
	}
	r := <-done
	return r.host, r.err
}

// connect returns the connection in use, dialling first if there is none.
func (l *Link) connect(ctx context.Context, name string) (*connection, error) {
	var c *connection
	var d *dialing
	err := l.withHost(name, func(h *host, addrs []netip.AddrPort) (err error) {
		if c = h.current(); c == nil {
			d, err = l.dial(h, addrs)
		}
		return err
	})
	if c != nil || err != nil {
		return c, err
	}
	select {
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-d.done:
	}
	if d.err != nil {
		return nil, d.err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if h := l.hosts[name]; h != nil && h.current() != nil {
		return h.current(), nil
	}
	return nil, errors.New("connection was closed at once")
}

// Open starts a stream to a host, dialling it if need be. The caller closes it. ctx bounds the opening only.
func (l *Link) Open(ctx context.Context, name string, kind overlay.Kind) (overlay.Stream, error) {
	c, err := l.connect(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("open stream to host %s: %w", name, err)
	}
	if err := l.stillTrusted(c); err != nil {
		return nil, fmt.Errorf("open stream to host %s: %w", name, err)
	}
	s, err := c.quic.OpenStreamSync(ctx)
	if err != nil {
		return nil, fmt.Errorf("open stream to host %s: %w", name, err)
	}
	if deadline, ok := ctx.Deadline(); ok {
		_ = s.SetWriteDeadline(deadline)
	}
	if _, err := s.Write([]byte{byte(kind)}); err != nil {
		stream{s}.abort(codeNoKind)
		return nil, fmt.Errorf("open stream to host %s: %w", name, err)
	}
	_ = s.SetWriteDeadline(time.Time{})
	return stream{s}, nil
}
