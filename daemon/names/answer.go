package names

import (
	"context"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"

	"github.com/bulkhead-mesh/bulkhead/segment"
)

// meshTTL is how long an agent's address may be kept: a removed agent's name goes nowhere in any case.
const meshTTL = 5 // seconds

// answer is what asker hears. What it may not know of is answered as if it were not.
func (s *Server) answer(ctx context.Context, asker netip.Addr, query *dns.Msg) *dns.Msg {
	opt := query.IsEdns0()
	if opt == nil {
		return s.answerPlain(ctx, asker, query)
	}
	var answer *dns.Msg
	if opt.Version() != 0 {
		answer = empty(query, dns.RcodeBadVers)
	} else {
		answer = s.answerPlain(ctx, asker, query)
	}
	return answer.SetEdns0(udpAnswer, false)
}

func (s *Server) answerPlain(ctx context.Context, asker netip.Addr, query *dns.Msg) *dns.Msg {
	if query.Opcode != dns.OpcodeQuery || query.Response || len(query.Question) != 1 || query.Question[0].Qclass != dns.ClassINET {
		return empty(query, dns.RcodeNotImplemented)
	}
	agent, ok := s.options.Directory.Asker(asker)
	if !ok {
		return empty(query, dns.RcodeRefused)
	}
	name := dns.CanonicalName(query.Question[0].Name)
	if s.ours(name) {
		return s.answerMesh(query, agent, name)
	}
	if addr, ok := addrOfReverse(name); ok {
		return s.answerReverse(query, agent, addr)
	}
	if plain(name) && s.options.Directory.Egress(agent, strings.TrimSuffix(name, ".")) {
		return s.answerEgress(ctx, query, agent, name)
	}
	return empty(query, dns.RcodeRefused)
}

// ours reports whether a name is in the mesh's zone, of which nobody else is asked.
func (s *Server) ours(name string) bool { return name == s.zone || strings.HasSuffix(name, "."+s.zone) }

// answerMesh is about NAME.MESH.internal.
func (s *Server) answerMesh(query *dns.Msg, agent, name string) *dns.Msg {
	q := query.Question[0]
	answer := empty(query, dns.RcodeNameError)
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
func (s *Server) answerReverse(query *dns.Msg, agent string, addr netip.Addr) *dns.Msg {
	q := query.Question[0]
	reach := s.options.Directory.Reach(agent)
	i := slices.IndexFunc(reach, func(a segment.Agent) bool { return slices.Contains(a.Addresses, addr) })
	if i < 0 {
		if within(s.options.Prefixes, addr) {
			return empty(query, dns.RcodeNameError)
		}
		return empty(query, dns.RcodeRefused)
	}
	answer := empty(query, dns.RcodeSuccess)
	answer.Authoritative = true
	if q.Qtype == dns.TypePTR || q.Qtype == dns.TypeANY {
		answer.Answer = []dns.RR{&dns.PTR{Hdr: header(q.Name, dns.TypePTR, meshTTL), Ptr: reach[i].Name + "." + s.zone}}
	}
	return answer
}

func (s *Server) soa() dns.RR {
	return &dns.SOA{
		Hdr: header(s.zone, dns.TypeSOA, meshTTL), Ns: s.zone, Mbox: "hostmaster." + s.zone,
		Serial: 1, Refresh: 3600, Retry: 600, Expire: 86400, Minttl: meshTTL,
	}
}

// empty is an answer without content.
func empty(query *dns.Msg, code int) *dns.Msg {
	answer := new(dns.Msg).SetRcode(query, code)
	answer.RecursionAvailable = true
	return answer
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
