package link

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bulkhead-mesh/bulkhead/overlay"
	"github.com/quic-go/quic-go"
)

const (
	// MaxDatagram is the largest payload that Send takes, in bytes.
	MaxDatagram = 1100

	maxStreams       = 64 // incoming and at work, for each connection
	kindTimeout      = 10 * time.Second
	recheckInterval  = 30 * time.Second
	pathInterval     = 10 * time.Second
	handshakeTimeout = 3 * time.Second
)

// Errors that callers can tell apart with errors.Is.
var (
	ErrNotRunning = errors.New("link is not running")
	ErrTooLarge   = fmt.Errorf("datagram is larger than %d bytes", MaxDatagram)
	ErrNoAddress  = errors.New("no address is known")
	ErrBackoff    = errors.New("not dialled again yet")
	ErrSelf       = errors.New("peer has the key of this host")
)

// Options of a link. All but OnPath and OnConnect are needed.
type Options struct {
	Conn        net.PacketConn                                // stays open when Run returns
	Certificate func() *tls.Certificate                       // of this host, as of now
	Verify      func(chain [][]byte) (host string, err error) // of a peer's DER chain, leaf first, as of now
	Candidates  func(host string) []netip.AddrPort            // best first
	OnPath      func(host string, addr netip.AddrPort)        // host was proven to be at addr
	OnConnect   func(host string)                             // a connection was established, by either side
	Logger      *slog.Logger
}

// Link is the pool of connections of this host. It implements overlay.Network.
type Link struct {
	options   Options
	transport *quic.Transport
	admission *admission
	datagrams map[overlay.Kind]func(host string, payload []byte)
	streams   map[overlay.Kind]func(ctx context.Context, host string, s overlay.Stream)
	counters  counters

	mu    sync.Mutex
	run   *lifetime // nil while not running
	hosts map[string]*host
}

// lifetime is one Run: its context and all its goroutines.
type lifetime struct {
	ctx  context.Context
	work sync.WaitGroup
}

type counters struct {
	sendDropped, sendTooLarge, unknownKind, refusedPeers, refusedHandshakes atomic.Uint64
}

var _ overlay.Network = (*Link)(nil)

// New makes a link that does nothing until Run.
func New(o Options) *Link {
	if o.OnPath == nil {
		o.OnPath = func(string, netip.AddrPort) {}
	}
	if o.OnConnect == nil {
		o.OnConnect = func(string) {}
	}
	l := &Link{
		options:   o,
		datagrams: map[overlay.Kind]func(string, []byte){},
		streams:   map[overlay.Kind]func(context.Context, string, overlay.Stream){},
		hosts:     map[string]*host{},
	}
	l.admission = newAdmission(&l.counters.refusedHandshakes)
	return l
}

// OnDatagram registers what handles datagrams of a kind; register before Run. The handler runs on
// the connection's receive loop: while it blocks, later datagrams of that host wait and then drop.
func (l *Link) OnDatagram(kind overlay.Kind, handle func(host string, payload []byte)) {
	l.datagrams[kind] = handle
}

// OnStream registers what handles streams of a kind; register before Run. Each stream has a goroutine
// of its own and is closed when the handler returns. ctx ends with the connection.
func (l *Link) OnStream(kind overlay.Kind, handle func(ctx context.Context, host string, s overlay.Stream)) {
	l.streams[kind] = handle
}

// Run accepts and dials connections until ctx ends, then closes all and waits for every handler.
func (l *Link) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	transport := &quic.Transport{
		Conn:                l.options.Conn,
		ConnectionIDLength:  8,
		StatelessResetKey:   resetKey(l.options.Certificate()),
		VerifySourceAddress: l.admission.needsRetry,
		ConnContext:         l.admission.admit,
		MaxTokenAge:         time.Hour,
	}
	listener, err := transport.Listen(l.serverTLS(), serverConfig())
	if err != nil {
		return fmt.Errorf("run link: listen: %w", err)
	}
	life := &lifetime{ctx: ctx}
	l.mu.Lock()
	l.transport, l.run = transport, life
	l.mu.Unlock()
	life.work.Go(func() { l.maintain(ctx) })

	err = l.accept(ctx, listener)
	cancel()
	l.closeAll()
	_ = listener.Close()
	if closeErr := transport.Close(); err == nil {
		err = closeErr
	}
	life.work.Wait()
	if err != nil {
		return fmt.Errorf("run link: %w", err)
	}
	return nil
}

// accept returns nil when ctx ends.
func (l *Link) accept(ctx context.Context, listener *quic.Listener) error {
	for {
		conn, err := listener.Accept(ctx)
		if ctx.Err() != nil {
			if err == nil {
				_ = conn.CloseWithError(codeShutdown, "shutting down")
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept connection: %w", err)
		}
		release(conn.Context())
		if !l.spawn(func(ctx context.Context) { l.welcome(ctx, conn) }) {
			_ = conn.CloseWithError(codeShutdown, "shutting down")
		}
	}
}

// spawn runs f as part of the current Run; false if there is none.
func (l *Link) spawn(f func(ctx context.Context)) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.spawnLocked(f)
}

func (l *Link) spawnLocked(f func(ctx context.Context)) bool {
	life := l.run
	if life == nil || life.ctx.Err() != nil {
		return false
	}
	life.work.Go(func() { f(life.ctx) })
	return true
}

// maintain notices expired certificates, moved paths and hosts not needed any more.
func (l *Link) maintain(ctx context.Context) {
	ticker := time.NewTicker(pathInterval)
	defer ticker.Stop()
	for last := time.Now(); ; {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			l.reportPaths()
			if now.Sub(last) >= recheckInterval {
				last = now
				l.Recheck()
			}
			l.forgetIdle(now)
		}
	}
}

// Stats are counters since New, by name.
func (l *Link) Stats() map[string]uint64 {
	return map[string]uint64{
		"datagramsDropped":  l.counters.sendDropped.Load(),       // queue full or host out of reach
		"datagramsTooLarge": l.counters.sendTooLarge.Load(),      // for the path, as QUIC found
		"unknownKind":       l.counters.unknownKind.Load(),       // datagrams and streams
		"peersRefused":      l.counters.refusedPeers.Load(),      // certificate not accepted
		"handshakesRefused": l.counters.refusedHandshakes.Load(), // too many at once
	}
}

func clientConfig() *quic.Config {
	c := config()
	c.MaxIncomingUniStreams = 1 // the welcome
	return c
}

func serverConfig() *quic.Config {
	c := config()
	c.MaxIncomingUniStreams = -1
	return c
}

// config keeps the memory of a thousand connections small.
func config() *quic.Config {
	return &quic.Config{
		Versions:                       []quic.Version{quic.Version1},
		HandshakeIdleTimeout:           5 * time.Second,
		MaxIdleTimeout:                 30 * time.Second,
		KeepAlivePeriod:                10 * time.Second,
		InitialPacketSize:              1200,
		InitialStreamReceiveWindow:     64 << 10,
		MaxStreamReceiveWindow:         512 << 10,
		InitialConnectionReceiveWindow: 128 << 10,
		MaxConnectionReceiveWindow:     1 << 20,
		MaxIncomingStreams:             maxStreams,
		EnableDatagrams:                true,
		Allow0RTT:                      false,
	}
}
