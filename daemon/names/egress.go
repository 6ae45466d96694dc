package names

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// grace is how long after an answer's end its addresses stay open: for programs that connect late.
const grace = 2 * time.Second

// answerEgress asks upstream for what the agent's egress list names, and opens the way before it tells.
func (s *Server) answerEgress(ctx context.Context, query *dns.Msg, agent, name string) *dns.Msg {
	q := query.Question[0]
	if q.Qtype != dns.TypeA && q.Qtype != dns.TypeAAAA {
		return empty(query, dns.RcodeSuccess) // there is nothing else to go to
	}
	done, ok := s.asking.take(agent)
	if !ok {
		return empty(query, dns.RcodeRefused)
	}
	defer done()
	found, err := s.resolve(ctx, name, q.Qtype)
	if err != nil {
		s.options.Logger.Warn("resolve name of an egress list", "agent", agent, "name", name, "error", err)
		return empty(query, dns.RcodeServerFailure)
	}
	safe := slices.DeleteFunc(found.addrs, func(addr netip.Addr) bool { return !s.mayLead(agent, addr) })
	if len(safe) < len(found.addrs) {
		s.options.Logger.Warn("a name leads to addresses that it may not", "agent", agent, "name", name)
	}
	if len(safe) == 0 {
		return empty(query, found.code)
	}
	life := time.Duration(found.ttl)*time.Second + grace
	if err := s.options.Learn(agent, strings.TrimSuffix(name, "."), safe, life); err != nil {
		s.options.Logger.Warn("open what a name leads to", "agent", agent, "name", name, "error", err)
		return empty(query, dns.RcodeServerFailure)
	}
	answer := empty(query, dns.RcodeSuccess)
	for _, addr := range safe {
		answer.Answer = append(answer.Answer, address(q.Name, addr, found.ttl))
	}
	return answer
}

// plain reports whether a name has nothing that needs escaping. A dot inside of a label would make a stranger's name end
// like one that an egress list has.
func plain(name string) bool {
	return !strings.ContainsFunc(name, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '_' && r != '.'
	})
}

var (
	// nowhere are addresses that no name leads to: those of a host alone or of a link, among them cloud metadata, and no
	// host's. By them, whoever has a name could turn an agent on its own host. An egress list may name them by number.
	nowhere = prefixes("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3", "::/96", "fe80::/10", "ff00::/8", "fd00:ec2::/32")
	// private are addresses that a name leads to only if the egress list names them by a prefix, too: networks behind the
	// host's own borders, ways of writing IPv4 addresses as IPv6, and the one public address that is a cloud's own.
	private = prefixes("10.0.0.0/8", "100.64.0.0/10", "168.63.129.16/32", "172.16.0.0/12", "192.0.0.0/24", "192.168.0.0/16", "198.18.0.0/15",
		"64:ff9b::/96", "64:ff9b:1::/48", "2001::/32", "2002::/16", "fc00::/7", "fec0::/10")
)

func prefixes(texts ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(texts))
	for i, text := range texts {
		out[i] = netip.MustParsePrefix(text)
	}
	return out
}

func within(list []netip.Prefix, addr netip.Addr) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// mayLead reports whether a name of an agent's egress list may lead to an address.
func (s *Server) mayLead(agent string, addr netip.Addr) bool {
	if addr.Is4In6() || within(nowhere, addr) || within(s.options.Prefixes, addr) {
		return false
	}
	return !within(private, addr) || s.options.Directory.Private(agent, addr)
}
