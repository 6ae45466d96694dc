// Package names answers agents' DNS queries, each from what that agent may know: the names of agents that it may reach, and
// the addresses of what its egress list names. It asks others for nothing else.
package names

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"github.com/bulkhead-mesh/bulkhead/segment"
)

// Directory is what agents may know. Its methods are called for every query.
type Directory interface {
	Asker(addr netip.Addr) (agent string, ok bool) // whose address a query came from
	Reach(agent string) []segment.Agent            // the agent itself, and those that it may open something to
	Egress(agent, name string) bool                // its egress list names the DNS name
	// Private reports whether its egress list names an address by a prefix: names may then lead there, though it is private.
	Private(agent string, addr netip.Addr) bool
}

// Options say what is answered, and where.
type Options struct {
	Mesh      string           // agents are NAME.MESH.internal
	Prefixes  []netip.Prefix   // of the overlay: no name outside leads there
	Listen    []netip.AddrPort // of this host; one that is not there yet is waited for
	Interface string           // that the addresses are on, which systemd-resolved is told; empty: it is told nothing
	Upstream  []netip.AddrPort // servers for names in egress lists; empty: those of /etc/resolv.conf
	Directory Directory
	Learn     func(agent, name string, addrs []netip.Addr, ttl time.Duration) error // returns when the agent may go there
	Logger    *slog.Logger
}

// Server answers. Its methods are safe for concurrent use.
type Server struct {
	options  Options
	zone     string // mesh.internal., lower case
	upstream atomic.Pointer[[]netip.AddrPort]
	asking   quota[string]     // each agent's queries that wait for an upstream
	talking  quota[netip.Addr] // each address's TCP connections
	serving  chan struct{}     // closed once something is served
	served   func()            // closes it
}

// New makes a server. It starts nothing.
func New(o Options) *Server {
	s := &Server{
		options: o, zone: dns.CanonicalName(o.Mesh + ".internal"), serving: make(chan struct{}),
		asking: quota[string]{each: maxAsking}, talking: quota[netip.Addr]{each: maxTalking},
	}
	s.served = sync.OnceFunc(func() { close(s.serving) })
	s.SetUpstream(o.Upstream)
	return s
}

// SetUpstream replaces the servers that know the names in egress lists; none: those of /etc/resolv.conf.
func (s *Server) SetUpstream(servers []netip.AddrPort) { s.upstream.Store(&servers) }

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	var running sync.WaitGroup
	defer running.Wait()
	if s.options.Interface != "" {
		running.Go(func() { s.tellResolved(ctx) })
	}
	for _, at := range s.options.Listen {
		running.Go(func() { s.keep(ctx, "udp", at) })
		running.Go(func() { s.keep(ctx, "tcp", at) })
	}
	<-ctx.Done()
	return nil
}
