package api

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	maxBody     = 1 << 20  // bytes of an authenticated request
	maxOpenBody = 64 << 10 // bytes of a request from anyone
	maxHeader   = 16 << 10
	maxConns    = 1024
	maxConnsPer = 64 // of one source
	maxSources  = 4096
	sweepPause  = time.Second // between two searches for buckets to drop: they cost time
	maxStreams  = 64
	maxStreamsP = 8 // of one principal
	maxRuns     = 1024
	maxRunsP    = 192  // of one asker
	maxAskers   = 4096 // connections of the agents' socket
	maxAskersP  = 256  // of one asker: each run has one

	headerTimeout   = 5 * time.Second
	readTimeout     = 15 * time.Second
	writeTimeout    = 30 * time.Second
	idleTimeout     = 60 * time.Second
	shutdownTimeout = 2 * time.Second
)

// What one principal, one unauthenticated source, and all unauthenticated sources together may ask.
const (
	memberRate, memberBurst     = 100, 400
	strangerRate, strangerBurst = 5, 50
	crowdRate, crowdBurst       = 50, 200
)

// limiters holds one token bucket per key, for a bounded number of keys.
type limiters struct {
	rate  rate.Limit
	burst int

	mu    sync.Mutex
	byKey map[string]*rate.Limiter
	rest  *rate.Limiter // shared by keys for which there is no room
	swept time.Time     // when full buckets were last dropped
}

func newLimiters(r rate.Limit, burst int) *limiters {
	return &limiters{rate: r, burst: burst, byKey: map[string]*rate.Limiter{}, rest: rate.NewLimiter(r, burst)}
}

func (l *limiters) allow(key string, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	bucket := l.byKey[key]
	if bucket == nil {
		if len(l.byKey) >= maxSources && now.Sub(l.swept) >= sweepPause {
			l.swept = now
			l.forgetLocked(now)
		}
		if len(l.byKey) >= maxSources {
			return l.rest.AllowN(now, 1)
		}
		bucket = rate.NewLimiter(l.rate, l.burst)
		l.byKey[key] = bucket
	}
	return bucket.AllowN(now, 1)
}

// forgetLocked drops full buckets: a new one is the same.
func (l *limiters) forgetLocked(now time.Time) {
	for key, bucket := range l.byKey {
		if bucket.TokensAt(now) >= float64(l.burst) {
			delete(l.byKey, key)
		}
	}
}

// slots counts what is in use, in total and per key.
type slots struct {
	total, perKey int

	mu    sync.Mutex
	used  int
	byKey map[string]int
}

func newSlots(total, perKey int) *slots {
	return &slots{total: total, perKey: perKey, byKey: map[string]int{}}
}

// take returns what gives the slot back, or nil if there is none.
func (s *slots) take(key string) (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.used >= s.total || s.byKey[key] >= s.perKey {
		return nil
	}
	s.used++
	s.byKey[key]++
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.used--
		if s.byKey[key]--; s.byKey[key] == 0 {
			delete(s.byKey, key)
		}
	})
}

// source is whom an address belongs to for limits: an IPv4 address, or the /64 of an IPv6 one.
func source(remote string) string {
	ap, err := netip.ParseAddrPort(remote)
	if err != nil {
		return "local"
	}
	addr := ap.Addr().Unmap().WithZone("")
	if addr.Is6() {
		if prefix, err := addr.Prefix(64); err == nil {
			return prefix.String()
		}
	}
	return addr.String()
}

// bounded is a listener that closes connections beyond what one source, and all together, may have.
type bounded struct {
	net.Listener
	slots *slots
	key   func(net.Conn) string
}

func (l *bounded) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if release := l.slots.take(l.key(conn)); release != nil {
			return &boundedConn{Conn: conn, release: release}, nil
		}
		_ = conn.Close() // refused; there is nothing else to do with it
	}
}

type boundedConn struct {
	net.Conn
	release func()
}

func (c *boundedConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}

// Bound limits how many connections l accepts at once from one source and in total. Wrap the TCP listener with
// it, below TLS.
func Bound(l net.Listener) net.Listener {
	key := func(conn net.Conn) string { return source(conn.RemoteAddr().String()) }
	return &bounded{Listener: l, slots: newSlots(maxConns, maxConnsPer), key: key}
}

// BoundAskers limits how many connections l, the listener of the agents' socket, accepts at once from one asker and in
// total. It asks asker about each connection before the next is accepted.
func BoundAskers(l net.Listener, asker func(net.Conn) (Asker, error)) net.Listener {
	key := func(conn net.Conn) string {
		a, err := asker(conn)
		if err != nil {
			return "unknown"
		}
		return a.key()
	}
	return &bounded{Listener: l, slots: newSlots(maxAskers, maxAskersP), key: key}
}

// ConnContextKey is the key under which Serve puts the net.Conn of a request into its context.
type ConnContextKey struct{}

// Serve answers requests from l until ctx ends, with the timeouts and header limits of the API. It closes l, and
// returns nil on cancellation, when all requests are done or cut.
func Serve(ctx context.Context, l net.Listener, h http.Handler, logger *slog.Logger) error {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true) // of HTTP/2 the API needs nothing, its flood attacks included
	base, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	server := &http.Server{
		Handler:           h,
		Protocols:         protocols,
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return base },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if b, ok := c.(*boundedConn); ok {
				c = b.Conn
			}
			return context.WithValue(ctx, ConnContextKey{}, c)
		},
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	cut() // event streams end with it
	timeout, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	err := server.Shutdown(timeout)
	if err != nil {
		err = server.Close()
	}
	if serveErr := <-served; !errors.Is(serveErr, http.ErrServerClosed) {
		err = errors.Join(err, serveErr)
	}
	return err
}
