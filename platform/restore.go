package platform

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/bulkhead-mesh/bulkhead/overlay"
)

const chainPrefix = "BULKHEAD-"

// Why a packet was dropped, as the comment of the rule that counts it. Append only: status shows them.
const (
	dropSpoofed   = "spoofed-source"
	dropMulticast = "multicast"
	dropInvalid   = "invalid"
	dropIn        = "not-allowed-in"
	dropOut       = "not-allowed-out"
	dropLeak      = "leak"
	dropLocal     = "not-allowed-here"

	commentPrefix = "bulkhead:"
)

// Errors about a known connection that pass for each peer: enough for path MTU discovery and no flood.
const errorLimit = "--hashlimit-upto 50/sec --hashlimit-burst 50"

// chain is one chain of ours and where it is called from, in the words of `iptables -S`.
type chain struct {
	table, name string
	hook        string // built-in chain that jumps here before all else
	match       string // which packets do; may be empty
	rules       []string
}

func (c chain) jump() string {
	if c.match == "" {
		return "-j " + c.name
	}
	return c.match + " -j " + c.name
}

// chains are all chains of one family. They only drop or return, so that other rules keep their say.
func (f *Firewall) chains(fam family, data ruleData) []chain {
	g := ruleGen{family: fam, iface: f.options.Interface}
	for _, p := range f.options.Prefixes {
		if familyOf(p.Addr()) == fam {
			g.prefixes = append(g.prefixes, p.Masked())
		}
	}
	for _, w := range data.wide {
		if familyOf(w.local) == fam {
			g.wide = append(g.wide, w)
		}
	}
	other := func(a netip.Addr) bool { return familyOf(a) != fam }
	g.own = slices.DeleteFunc(slices.Clone(data.own), other)
	g.owners, g.byOwner = data.owners, f.options.ByOwner
	g.resolvers = slices.DeleteFunc(slices.Clone(f.options.Resolvers), other)
	return g.chains()
}

// ruleGen makes the rules of one family. It is a pure function of its fields.
type ruleGen struct {
	family   family
	iface    string
	prefixes []netip.Prefix
	wide     []wideRange

	own       []netip.Addr
	resolvers []netip.Addr
	owners    []Owner
	byOwner   bool
}

func (g ruleGen) chains() []chain {
	on, out := "-i "+g.iface, "-o "+g.iface
	chains := []chain{
		{"raw", chainPrefix + "RAW", "PREROUTING", "", g.raw()},
		{"mangle", chainPrefix + "IN", "PREROUTING", on, g.ingress()},
		{"mangle", chainPrefix + "OUT", "POSTROUTING", out, g.egress("bulkhead-out", drop)},
		{"mangle", chainPrefix + "LEAK", "POSTROUTING", "! " + out, g.leak()},
		{"mangle", chainPrefix + "LOCAL", "POSTROUTING", "-o lo", g.loopback("bulkhead-local", drop)},
		{"filter", chainPrefix + "REJECT", "OUTPUT", out, g.egress("bulkhead-reject", g.reject)},
		{"filter", chainPrefix + "REJECTL", "OUTPUT", "-o lo", g.loopback("bulkhead-rejectl", g.reject)},
	}
	if g.byOwner && g.owners != nil {
		chains = slices.Insert(chains, 5, chain{"mangle", ownerChain, "OUTPUT", "", g.ownership()})
	}
	return chains
}

func drop(reason string) string {
	return "-m comment --comment " + commentPrefix + reason + " -j DROP"
}

func (g ruleGen) reject(reason string) string {
	with := "icmp-admin-prohibited"
	if g.family == ipv6 {
		with = "icmp6-adm-prohibited"
	}
	return "-m comment --comment " + commentPrefix + reason + " -j REJECT --reject-with " + with
}

// raw keeps overlay addresses on the overlay interface, and others off it, before anything looks at a packet.
func (g ruleGen) raw() []string {
	rules := []string{"-i lo -j RETURN"}
	for _, p := range g.prefixes {
		rules = append(rules, fmt.Sprintf("-s %s -i %s -j RETURN", p, g.iface))
	}
	rules = append(rules, fmt.Sprintf("-i %s %s", g.iface, drop(dropSpoofed)))
	for _, p := range g.prefixes {
		rules = append(rules, fmt.Sprintf("-s %s %s", p, drop(dropSpoofed)), fmt.Sprintf("-d %s %s", p, drop(dropSpoofed)))
	}
	return rules
}

// ingress and egress pass what sets allow by their first two rules, because every packet goes through them. That is
// safe before all else: a packet without a valid connection has no direction, entries of sets are about agents' own
// addresses, and none of them is multicast.
func (g ruleGen) ingress() []string {
	rules := []string{
		"-m conntrack --ctdir ORIGINAL -m set --match-set " + nameIn(g.family) + " src,dst,dst -j RETURN",
		"-m conntrack --ctdir REPLY -m set --match-set " + nameOut(g.family) + " dst,src,src -j RETURN",
	}
	rules = append(rules, g.dropMulticast()...)
	rules = append(rules, "-m conntrack --ctstate INVALID "+drop(dropInvalid), g.errors("bulkhead-in", "srcip"))
	for _, w := range g.wide {
		rules = append(rules, g.wideRule(w, "-d", "src", overlay.In))
	}
	return append(rules, drop(dropIn))
}

func (g ruleGen) egress(limit string, deny func(reason string) string) []string {
	rules := []string{
		"-m conntrack --ctdir ORIGINAL -m set --match-set " + nameOut(g.family) + " src,dst,dst -j RETURN",
		"-m conntrack --ctdir REPLY -m set --match-set " + nameIn(g.family) + " dst,src,src -j RETURN",
	}
	rules = append(rules, g.dropMulticast()...)
	rules = append(rules, "-m set ! --match-set "+nameLocal(g.family)+" src "+deny(dropSpoofed),
		"-m conntrack --ctstate INVALID "+deny(dropInvalid), g.errors(limit, "dstip"))
	for _, w := range g.wide {
		rules = append(rules, g.wideRule(w, "-s", "dst", overlay.Out))
	}
	return append(rules, deny(dropOut))
}

// loopback judges what agents of this host send each other, as egress judges what they send others: both sides' sets have
// the pair. Besides, each may talk to itself, and ask the resolver.
func (g ruleGen) loopback(limit string, deny func(reason string) string) []string {
	var rules []string
	if len(g.prefixes) == 1 { // all else on this busy interface goes first
		rules = append(rules, fmt.Sprintf("! -s %s ! -d %s -j RETURN", g.prefixes[0], g.prefixes[0]))
	}
	rules = append(rules,
		"-m conntrack --ctdir ORIGINAL -m set --match-set "+nameOut(g.family)+" src,dst,dst -j RETURN",
		"-m conntrack --ctdir REPLY -m set --match-set "+nameOut(g.family)+" dst,src,src -j RETURN",
		g.errors(limit, "dstip"))
	for _, w := range g.wide {
		rules = append(rules, g.wideRule(w, "-s", "dst", overlay.Out))
	}
	for _, a := range g.own {
		rules = append(rules, fmt.Sprintf("-s %s -d %s -j RETURN", single(a), single(a)))
	}
	for _, a := range g.resolvers {
		rules = append(rules, g.ofResolver(a)...)
	}
	for _, p := range g.prefixes {
		rules = append(rules, fmt.Sprintf("-s %s %s", p, deny(dropLocal)), fmt.Sprintf("-d %s %s", p, deny(dropLocal)))
	}
	return rules
}

// ofResolver passes questions to the resolver, and pings, from anyone here, and the answers.
func (g ruleGen) ofResolver(a netip.Addr) []string {
	icmp, request, reply := "-p icmp -m icmp", "--icmp-type 8", "--icmp-type 0"
	if g.family == ipv6 {
		icmp, request, reply = "-p ipv6-icmp -m icmp6", "--icmpv6-type 128", "--icmpv6-type 129"
	}
	var rules []string
	for _, p := range []struct{ proto, to, from string }{
		{"-p udp -m udp", "--dport 53", "--sport 53"}, {"-p tcp -m tcp", "--dport 53", "--sport 53"}, {icmp, request, reply},
	} {
		rules = append(rules, fmt.Sprintf("-d %s %s %s -m conntrack --ctdir ORIGINAL -j RETURN", single(a), p.proto, p.to),
			fmt.Sprintf("-s %s %s %s -m conntrack --ctdir REPLY -j RETURN", single(a), p.proto, p.from))
	}
	return rules
}

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// errors lets ICMP errors through that quote a packet of a known connection; redirects are none of them.
func (g ruleGen) errors(name, mode string) string {
	what := "-p icmp -m icmp ! --icmp-type 5"
	if g.family == ipv6 {
		what = "-p ipv6-icmp"
	}
	return fmt.Sprintf("%s -m conntrack --ctstate RELATED -m hashlimit %s --hashlimit-mode %s --hashlimit-name %s -j RETURN",
		what, errorLimit, mode, name)
}

// dropMulticast drops what hosts say on every link; a tunnel needs none of it, and it is not counted as denied.
func (g ruleGen) dropMulticast() []string {
	to := []string{"224.0.0.0/4"}
	if g.family == ipv6 {
		to = []string{"ff00::/8", "fe80::/10"}
	}
	var rules []string
	for _, p := range to {
		rules = append(rules, "-d "+p+" "+drop(dropMulticast))
	}
	return rules
}

// wideRule passes a wide range where the local agent is at side local and the remote at side remote of a
// packet; opener is the direction whose connections are opened by such packets.
func (g ruleGen) wideRule(w wideRange, local, remote string, opener overlay.Direction) string {
	proto := "tcp"
	if w.proto == protoUDP {
		proto = "udp"
	}
	ports, direction := "--dport", "ORIGINAL"
	if w.direction != opener {
		ports, direction = "--sport", "REPLY"
	}
	return fmt.Sprintf("%s %s -p %s -m %s %s %d:%d -m conntrack --ctdir %s -m set --match-set %s %s -j RETURN",
		local, netip.PrefixFrom(w.local, w.local.BitLen()), proto, proto, ports, w.first, w.last, direction, w.name(), remote)
}

// leak stops overlay addresses on any other way out than the interface, as when that is gone.
func (g ruleGen) leak() []string {
	rules := []string{"-o lo -j RETURN"}
	for _, p := range g.prefixes {
		rules = append(rules, fmt.Sprintf("-s %s %s", p, drop(dropLeak)), fmt.Sprintf("-d %s %s", p, drop(dropLeak)))
	}
	return rules
}

// hook names a built-in chain.
type hook struct{ table, chain string }

// restoreText is the input of `iptables-restore --noflush` that makes chains what they shall be and has the
// hooks jump to them before all else. hooks are the rules now in the built-in chains, as `iptables -S` prints.
func restoreText(chains []chain, hooks map[hook][]string) []byte {
	var b bytes.Buffer
	for i := 0; i < len(chains); {
		table := chains[i].table
		n := i
		for n < len(chains) && chains[n].table == table {
			n++
		}
		writeTable(&b, table, chains[i:n], hooks)
		i = n
	}
	return b.Bytes()
}

func writeTable(b *bytes.Buffer, table string, chains []chain, hooks map[hook][]string) {
	fmt.Fprintf(b, "*%s\n", table)
	for _, c := range chains {
		fmt.Fprintf(b, ":%s - [0:0]\n", c.name)
	}
	for _, c := range chains {
		for _, r := range c.rules {
			fmt.Fprintf(b, "-A %s %s\n", c.name, r)
		}
	}
	done := make(map[string]bool)
	for _, c := range chains {
		if done[c.hook] {
			continue
		}
		done[c.hook] = true
		lines := hooks[hook{table, c.hook}]
		want := jumps(chains, c.hook)
		if inPlace(lines, want) {
			continue
		}
		writeDeletes(b, lines)
		for i, jump := range want {
			fmt.Fprintf(b, "-I %s %d %s\n", c.hook, i+1, strings.TrimPrefix(jump, "-A "+c.hook+" "))
		}
	}
	b.WriteString("COMMIT\n")
}

// jumps are the rules of a built-in chain that call ours, in order.
func jumps(chains []chain, hook string) []string {
	var out []string
	for _, c := range chains {
		if c.hook == hook {
			out = append(out, "-A "+hook+" "+c.jump())
		}
	}
	return out
}

// inPlace reports whether the rules of a built-in chain begin with want, and no other calls a chain of ours.
func inPlace(lines, want []string) bool {
	i := 0
	for _, line := range lines {
		if !strings.HasPrefix(line, "-A ") {
			continue
		}
		first := i < len(want) && canonical(line) == canonical(want[i])
		if !first && (i < len(want) || callsOurs(line)) {
			return false
		}
		i++
	}
	return i >= len(want)
}

// writeDeletes deletes the rules that call a chain of ours, in the words in which they were printed.
func writeDeletes(b *bytes.Buffer, lines []string) {
	for _, line := range lines {
		if rest, ok := strings.CutPrefix(line, "-A "); ok && callsOurs(line) {
			fmt.Fprintf(b, "-D %s\n", rest)
		}
	}
}
