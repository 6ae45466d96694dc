package link

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
	"golang.org/x/time/rate"
)

const (
	maxHandshakes       = 512 // at once
	maxHandshakesSource = 32  // at once, for each IPv4 address or IPv6 /64
	// freeHandshakes go without proof of the source address. They are fewer than a source may have, so that
	// forging somebody's address does not lock them out.
	freeHandshakes = 16
	// handshakeLimit is longer than QUIC lets any handshake last.
	handshakeLimit = 15 * time.Second
)

// admission bounds what unauthenticated peers can make this host do and hold.
type admission struct {
	refused *atomic.Uint64
	rate    *rate.Limiter // of handshakes without proof of the source address

	mu       sync.Mutex
	total    int
	bySource map[netip.Prefix]int
}

func newAdmission(refused *atomic.Uint64) *admission {
	return &admission{refused: refused, rate: rate.NewLimiter(64, 128), bySource: map[netip.Prefix]int{}}
}

// needsRetry asks for proof of the source address once handshakes are many.
func (a *admission) needsRetry(net.Addr) bool {
	a.mu.Lock()
	busy := a.total >= freeHandshakes
	a.mu.Unlock()
	return busy || !a.rate.Allow()
}

type releaseKey struct{}

// admit counts a handshake until it ends or release is called, and refuses one too many.
func (a *admission) admit(ctx context.Context, info *quic.ClientInfo) (context.Context, error) {
	source := sourceOf(info.RemoteAddr)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.total >= maxHandshakes || a.bySource[source] >= maxHandshakesSource {
		a.refused.Add(1)
		return nil, errors.New("too many handshakes at once")
	}
	a.total++
	a.bySource[source]++
	done := sync.OnceFunc(func() { a.leave(source) })
	context.AfterFunc(ctx, done)
	time.AfterFunc(handshakeLimit, done) // whatever QUIC does with ctx
	return context.WithValue(ctx, releaseKey{}, done), nil
}

func (a *admission) leave(source netip.Prefix) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.total--
	if a.bySource[source]--; a.bySource[source] == 0 {
		delete(a.bySource, source)
	}
}

// release ends the count of the handshake whose connection has this context.
func release(ctx context.Context) {
	if done, ok := ctx.Value(releaseKey{}).(func()); ok {
		done()
	}
}

func sourceOf(addr net.Addr) netip.Prefix {
	ip := addrPort(addr).Addr()
	bits := ip.BitLen()
	if ip.Is6() {
		bits = 64
	}
	prefix, err := ip.Prefix(bits)
	if err != nil {
		return netip.Prefix{} // one bucket for what is no IP address
	}
	return prefix
}

// addrPort is the zero value for what is not a UDP address.
func addrPort(addr net.Addr) netip.AddrPort {
	udp, ok := addr.(*net.UDPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	a := udp.AddrPort()
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}
