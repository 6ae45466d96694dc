// Package names answers agents' DNS queries, each from what that agent may know: the names of agents that it may reach, and
// the addresses of what its egress list names. It asks others for nothing else.
package names

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/miekg/dns"

	"github.com/bulkhead-mesh/bulkhead/segment"
)

const (
	maxAtOnce   = 256 // queries; more are refused, so that clients try again
	readTimeout = 5 * time.Second
	udpAnswer   = 1232 // bytes, as DNS flag day 2020 says
	bindAgain   = time.Second
	patience    = 10 // tries until it is worth a word
)

// Directory is what agents may know. Its methods are called for every query.
type Directory interface {
	Asker(addr netip.Addr) (agent string, ok bool) // whose address a query came from
	Reach(agent string) []segment.Agent            // the agent itself, and those that it may open something to
	Egress(agent, name string) bool                // its egress list names the DNS name
	// Private reports whether its egress list names an address by a prefix: names may then lead there, too.
	Private(agent string, addr netip.Addr) bool
}

// Options say what is answered, and where.
type Options struct {
	Mesh      string           // agents are NAME.MESH.internal
	Listen    []netip.AddrPort // of this host; one that is not there yet is waited for
	Interface string           // that the addresses are on, which systemd-resolved is told
	Upstream  []netip.AddrPort // servers for names in egress lists; empty: those of /etc/resolv.conf
	Directory Directory
	Learn     func(agent, name string, addrs []netip.Addr, ttl time.Duration) error // returns when the agent may go there
	Logger    *slog.Logger
}

// Server answers. Its methods are safe for concurrent use.
type Server struct {
	options Options
	zone    string // mesh.internal., lower case
	slots   chan struct{}
	serving chan struct{} // closed once something is served
	served  func()        // closes it
}

// New makes a server. It starts nothing.
func New(o Options) *Server {
	s := &Server{options: o, zone: dns.CanonicalName(o.Mesh + ".internal"), slots: make(chan struct{}, maxAtOnce), serving: make(chan struct{})}
	s.served = sync.OnceFunc(func() { close(s.serving) })
	return s
}

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() { s.tellResolved(ctx) })
	for _, at := range s.options.Listen {
		running.Go(func() { s.keep(ctx, "udp", at) })
		running.Go(func() { s.keep(ctx, "tcp", at) })
	}
	<-ctx.Done()
	return nil
}

// tellResolved tells systemd-resolved, if it runs, where the mesh's names are known.
func (s *Server) tellResolved(ctx context.Context) {
	if s.options.Interface == "" {
		return
	}
	select {
	case <-s.serving:
	case <-ctx.Done():
		return
	}
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	if err := s.wire(ctx); err != nil {
		s.options.Logger.Info("names of agents are not in the system's resolver; ask the overlay's (README, Names)", "servers", s.options.Listen, "reason", err)
		return
	}
	s.options.Logger.Info("systemd-resolved asks the overlay for names of agents", "domain", s.zone)
}

// keep serves at an address, again whenever it was away.
func (s *Server) keep(ctx context.Context, network string, at netip.AddrPort) {
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = 20*time.Millisecond, bindAgain
	for tries := 0; ctx.Err() == nil; tries++ {
		err := s.serve(ctx, network, at, pause.Reset)
		if err != nil && ctx.Err() == nil && tries == patience { // once: the interface may be away for long
			s.options.Logger.Warn("DNS does not serve", "address", at, "network", network, "error", err)
		}
		timer := time.NewTimer(pause.NextBackOff())
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
}

func (s *Server) serve(ctx context.Context, network string, at netip.AddrPort, served func()) error {
	server := &dns.Server{
		Net: network, Handler: s, UDPSize: udpAnswer, ReadTimeout: readTimeout, WriteTimeout: readTimeout, MaxTCPQueries: 128,
		NotifyStartedFunc: func() {
			served()
			s.served()
		},
	}
	var err error
	if network == "udp" {
		server.PacketConn, err = (&net.ListenConfig{}).ListenPacket(ctx, "udp", at.String())
	} else {
		server.Listener, err = (&net.ListenConfig{}).Listen(ctx, "tcp", at.String())
	}
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- server.ActivateAndServe() }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return errors.Join(server.Shutdown(), <-ended)
	}
}

// ServeDNS answers one query.
func (s *Server) ServeDNS(w dns.ResponseWriter, query *dns.Msg) {
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	default:
		s.write(w, query, refusal(query, dns.RcodeRefused))
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), readTimeout)
	defer cancel()
	s.write(w, query, s.answer(ctx, addrOf(w.RemoteAddr()), query))
}

func (s *Server) write(w dns.ResponseWriter, query, answer *dns.Msg) {
	size := dns.MaxMsgSize
	if _, udp := w.RemoteAddr().(*net.UDPAddr); udp {
		size = dns.MinMsgSize
		if opt := query.IsEdns0(); opt != nil {
			size = min(max(size, int(opt.UDPSize())), udpAnswer)
		}
	}
	if opt := query.IsEdns0(); opt != nil {
		answer.SetEdns0(udpAnswer, false)
	}
	answer.Truncate(size)
	if err := w.WriteMsg(answer); err != nil {
		s.options.Logger.Debug("answer DNS query", "error", err)
	}
}

func addrOf(a net.Addr) netip.Addr {
	switch a := a.(type) {
	case *net.UDPAddr:
		return a.AddrPort().Addr().Unmap()
	case *net.TCPAddr:
		return a.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

// refusal is an answer without content.
func refusal(query *dns.Msg, code int) *dns.Msg {
	answer := new(dns.Msg).SetRcode(query, code)
	answer.RecursionAvailable = true
	return answer
}

// systemServers are those of /etc/resolv.conf that are not ours.
func systemServers(ours []netip.AddrPort) ([]netip.AddrPort, error) {
	config, err := dns.ClientConfigFromFile("/etc/resolv.conf")
	if err != nil {
		return nil, fmt.Errorf("read upstream servers: %w", err)
	}
	var out []netip.AddrPort
	for _, server := range config.Servers {
		addr, err := netip.ParseAddr(server)
		if err != nil {
			continue
		}
		at := netip.AddrPortFrom(addr, 53)
		for _, own := range ours {
			if own.Addr() == addr {
				at = netip.AddrPort{}
			}
		}
		if at.IsValid() {
			out = append(out, at)
		}
	}
	if len(out) == 0 {
		return nil, errors.New("read upstream servers: /etc/resolv.conf names none (fix: set dnsUpstream)")
	}
	return out, nil
}
