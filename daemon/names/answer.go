package names

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/bulkhead-mesh/bulkhead/segment"
)

// meshTTL is how long an agent's address may be kept: a removed agent's name goes nowhere in any case.
const meshTTL = 5 // seconds

// answer is what asker hears. What it may not know of is answered as if it were not.
func (s *Server) answer(ctx context.Context, asker netip.Addr, query *dns.Msg) *dns.Msg {
	if query.Opcode != dns.OpcodeQuery || query.Response || len(query.Question) != 1 || query.Question[0].Qclass != dns.ClassINET {
		return refusal(query, dns.RcodeNotImplemented)
	}
	agent, ok := s.options.Directory.Asker(asker)
	if !ok {
		return refusal(query, dns.RcodeRefused)
	}
	q := query.Question[0]
	name := dns.CanonicalName(q.Name)
	switch {
	case name == s.zone || strings.HasSuffix(name, "."+s.zone):
		return s.answerMesh(query, agent, name)
	case strings.HasSuffix(name, ".in-addr.arpa.") || strings.HasSuffix(name, ".ip6.arpa."):
		return s.answerReverse(query, agent, name)
	case s.options.Directory.Egress(agent, strings.TrimSuffix(name, ".")):
		return s.answerEgress(ctx, query, agent, name)
	}
	return refusal(query, dns.RcodeRefused)
}

// answerMesh is about NAME.MESH.internal.
func (s *Server) answerMesh(query *dns.Msg, agent, name string) *dns.Msg {
	q := query.Question[0]
	answer := refusal(query, dns.RcodeNameError)
	answer.Authoritative = true
	answer.Ns = []dns.RR{s.soa()}
	if name == s.zone {
		answer.Rcode = dns.RcodeSuccess
		return answer
	}
	label := strings.TrimSuffix(name, "."+s.zone)
	reach := s.options.Directory.Reach(agent)
	i := slices.IndexFunc(reach, func(a segment.Agent) bool { return a.Name == label })
	if i < 0 {
		return answer
	}
	answer.Rcode = dns.RcodeSuccess
	for _, addr := range reach[i].Addresses {
		if rr := address(q.Name, addr, meshTTL); q.Qtype == rr.Header().Rrtype || q.Qtype == dns.TypeANY {
			answer.Answer = append(answer.Answer, rr)
		}
	}
	if len(answer.Answer) > 0 {
		answer.Ns = nil
	}
	return answer
}

// answerReverse is about an address: the name of an agent that the asker may reach.
func (s *Server) answerReverse(query *dns.Msg, agent, name string) *dns.Msg {
	q := query.Question[0]
	answer := refusal(query, dns.RcodeNameError)
	for _, a := range s.options.Directory.Reach(agent) {
		for _, addr := range a.Addresses {
			reverse, err := dns.ReverseAddr(addr.String())
			if err != nil || dns.CanonicalName(reverse) != name {
				continue
			}
			answer.Rcode, answer.Authoritative = dns.RcodeSuccess, true
			if q.Qtype == dns.TypePTR || q.Qtype == dns.TypeANY {
				answer.Answer = []dns.RR{&dns.PTR{Hdr: header(q.Name, dns.TypePTR, meshTTL), Ptr: a.Name + "." + s.zone}}
			}
			return answer
		}
	}
	return answer
}

func (s *Server) soa() dns.RR {
	return &dns.SOA{
		Hdr: header(s.zone, dns.TypeSOA, meshTTL), Ns: s.zone, Mbox: "hostmaster." + s.zone,
		Serial: 1, Refresh: 3600, Retry: 600, Expire: 86400, Minttl: meshTTL,
	}
}

func header(name string, kind uint16, ttl uint32) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: kind, Class: dns.ClassINET, Ttl: ttl}
}

// address is an A or AAAA record.
func address(name string, addr netip.Addr, ttl uint32) dns.RR {
	if addr.Is4() {
		return &dns.A{Hdr: header(name, dns.TypeA, ttl), A: addr.AsSlice()}
	}
	return &dns.AAAA{Hdr: header(name, dns.TypeAAAA, ttl), AAAA: addr.AsSlice()}
}

// answerEgress asks upstream for what the agent's egress list names, and opens the way before it tells.
func (s *Server) answerEgress(ctx context.Context, query *dns.Msg, agent, name string) *dns.Msg {
	q := query.Question[0]
	if q.Qtype != dns.TypeA && q.Qtype != dns.TypeAAAA {
		return refusal(query, dns.RcodeSuccess) // there is nothing else to go to
	}
	found, ttl, code, err := s.resolve(ctx, name, q.Qtype)
	if err != nil {
		s.options.Logger.Warn("resolve name of an egress list", "agent", agent, "name", name, "error", err)
		return refusal(query, dns.RcodeServerFailure)
	}
	safe := slices.DeleteFunc(found, func(addr netip.Addr) bool {
		return !public(addr) && !s.options.Directory.Private(agent, addr)
	})
	if len(safe) < len(found) {
		s.options.Logger.Warn("a name leads to addresses that it may not", "agent", agent, "name", name)
	}
	if len(safe) == 0 {
		return refusal(query, code)
	}
	bare := strings.TrimSuffix(name, ".")
	if err := s.options.Learn(agent, bare, safe, time.Duration(ttl)*time.Second+grace); err != nil {
		s.options.Logger.Warn("open what a name leads to", "agent", agent, "name", name, "error", err)
		return refusal(query, dns.RcodeServerFailure)
	}
	answer := refusal(query, dns.RcodeSuccess)
	for _, addr := range safe {
		answer.Answer = append(answer.Answer, address(q.Name, addr, ttl))
	}
	return answer
}

// grace is how long after an answer's end its addresses stay open: for programs that connect late.
const grace = 2 * time.Second

// special are addresses that no name of a stranger's may lead to: by them it could make an agent turn on its own network.
var special = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.0.0.0/24"), netip.MustParsePrefix("192.168.0.0/16"), netip.MustParsePrefix("198.18.0.0/15"),
	netip.MustParsePrefix("224.0.0.0/3"), netip.MustParsePrefix("::/96"), netip.MustParsePrefix("64:ff9b::/96"),
	netip.MustParsePrefix("64:ff9b:1::/48"), netip.MustParsePrefix("2002::/16"), netip.MustParsePrefix("fc00::/7"),
	netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("ff00::/8"),
}

func public(addr netip.Addr) bool {
	return !addr.Is4In6() && !slices.ContainsFunc(special, func(p netip.Prefix) bool { return p.Contains(addr) })
}
