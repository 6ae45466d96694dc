package tunnel

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/conn"
)

const (
	hostPrefix = "host:"
	// A second initiation to a host within this time is a retry: sessions are renewed every two minutes.
	initiationRetry = time.Minute
)

// hostEndpoint is what WireGuard holds as the endpoint of a peer until an authenticated packet
// comes in: the host itself. Which address that means is decided for each packet.
type hostEndpoint struct {
	name           string
	paths          atomic.Pointer[pathSet]
	lastInitiation atomic.Int64 // Unix time in nanoseconds
}

// pathSet is immutable.
type pathSet struct {
	verified   *conn.StdNetEndpoint // by QUIC; nil if none
	candidates []*conn.StdNetEndpoint
}

func (h *hostEndpoint) best() *conn.StdNetEndpoint {
	set := h.paths.Load()
	if set.verified != nil {
		return set.verified
	}
	if len(set.candidates) > 0 {
		return set.candidates[0]
	}
	return nil
}

func (h *hostEndpoint) has(addr netip.AddrPort) bool {
	set := h.paths.Load()
	return set.verified != nil && set.verified.AddrPort == addr ||
		slices.ContainsFunc(set.candidates, func(e *conn.StdNetEndpoint) bool { return e.AddrPort == addr })
}

// initiationTargets says where a handshake initiation goes. To a verified path alone, unless it is a
// retry; else to every address, because the first answer decides and the others are ignored.
func (h *hostEndpoint) initiationTargets(now time.Time) []*conn.StdNetEndpoint {
	set := h.paths.Load()
	last := h.lastInitiation.Swap(now.UnixNano())
	retry := now.UnixNano()-last < int64(initiationRetry)
	if set.verified == nil {
		return set.candidates
	}
	targets := []*conn.StdNetEndpoint{set.verified}
	if !retry {
		return targets
	}
	for _, c := range set.candidates {
		if c.AddrPort != set.verified.AddrPort {
			targets = append(targets, c)
		}
	}
	return targets
}

// The conn.Endpoint methods. WireGuard never caches a source for a host.

func (h *hostEndpoint) ClearSrc()           {}
func (h *hostEndpoint) SrcToString() string { return "" }
func (h *hostEndpoint) SrcIP() netip.Addr   { return netip.Addr{} }
func (h *hostEndpoint) DstToString() string { return hostPrefix + h.name }

func (h *hostEndpoint) DstToBytes() []byte {
	if e := h.best(); e != nil {
		return e.DstToBytes()
	}
	return nil
}

func (h *hostEndpoint) DstIP() netip.Addr {
	if e := h.best(); e != nil {
		return e.DstIP()
	}
	return netip.Addr{}
}

// pathTable knows every host that is a peer or that QUIC has reached. It is safe for concurrent use.
type pathTable struct {
	mu    sync.Mutex
	hosts map[string]*hostEndpoint
}

func newPathTable() *pathTable { return &pathTable{hosts: map[string]*hostEndpoint{}} }

func (t *pathTable) get(name string) *hostEndpoint {
	h := t.hosts[name]
	if h == nil {
		h = &hostEndpoint{name: name}
		h.paths.Store(&pathSet{})
		t.hosts[name] = h
	}
	return h
}

func (t *pathTable) lookup(name string) *hostEndpoint {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.hosts[name]
}

// verify makes addr the path to a host.
func (t *pathTable) verify(name string, addr netip.AddrPort) {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.get(name)
	h.paths.Store(&pathSet{verified: endpointOf(addr), candidates: h.paths.Load().candidates})
}

// setCandidates replaces the candidates of a host; a verified path stays.
func (t *pathTable) setCandidates(name string, addrs []netip.AddrPort) {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.get(name)
	set := h.paths.Load()
	if slices.EqualFunc(set.candidates, addrs, func(e *conn.StdNetEndpoint, a netip.AddrPort) bool {
		return e.AddrPort == canonical(a)
	}) {
		return
	}
	candidates := make([]*conn.StdNetEndpoint, len(addrs))
	for i, a := range addrs {
		candidates[i] = endpointOf(a)
	}
	h.paths.Store(&pathSet{verified: set.verified, candidates: candidates})
}

// parse resolves "host:<name>" to the host's endpoint.
func (t *pathTable) parse(s string) (*hostEndpoint, error) {
	name, ok := strings.CutPrefix(s, hostPrefix)
	if !ok {
		return nil, fmt.Errorf("parse endpoint %q: not of the form host:<name>", s)
	}
	h := t.lookup(name)
	if h == nil {
		return nil, fmt.Errorf("parse endpoint %q: unknown host", s)
	}
	return h, nil
}

// canonical makes an IPv4 address in IPv6 form plain IPv4, so that it leaves by the right socket.
func canonical(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

func endpointOf(a netip.AddrPort) *conn.StdNetEndpoint {
	return &conn.StdNetEndpoint{AddrPort: canonical(a)}
}
