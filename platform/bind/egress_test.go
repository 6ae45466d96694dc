package bind

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/bulkhead-mesh/bulkhead/overlay"
)

const (
	outside4 = "198.51.100.2"
	outside6 = "2001:db8::2"
)

// outside is a program on another machine, beyond the world's uplink, which serves on ports 7001 and 7002.
func (w *world) outside() *actor {
	w.t.Helper()
	ns := w.netns + "o"
	sh(w.t, "ip netns add "+ns)
	w.t.Cleanup(func() { sh(w.t, "ip netns delete "+ns) })
	w.shell(`ip link add uplink type veth peer name eth0 netns ` + ns + `; ip link set uplink up
		ip addr add 198.51.100.1/24 dev uplink; ip addr add 2001:db8::1/64 dev uplink nodad; ip route add 169.254.169.254 via 198.51.100.2`)
	sh(w.t, `ip -n `+ns+` link set lo up; ip -n `+ns+` link set eth0 up; ip -n `+ns+` addr add 169.254.169.254/32 dev lo
		ip -n `+ns+` addr add 198.51.100.2/24 dev eth0; ip -n `+ns+` addr add 2001:db8::2/64 dev eth0 nodad`)
	w.group("outside")
	a := w.startIn(ns, "outside", 0)
	for _, network := range []string{"tcp", "udp"} {
		for _, port := range []string{":7001", ":7002"} {
			a.must(order{Do: "serve", Network: network, Local: port})
		}
	}
	return a
}

// guard binds alice as a guarded agent, and bob, who is not, and carol.
func (c *cast) guard(allow ...overlay.EgressAllow) {
	c.t.Helper()
	c.apply(
		overlay.Binding{Agent: "alice", Addresses: addresses(1), Workload: overlay.Workload{Cgroups: []uint64{c.id("alice")}}, Guarded: true, Egress: allow},
		overlay.Binding{Agent: "bob", Addresses: addresses(2), Workload: overlay.Workload{Cgroups: []uint64{c.id("bob")}}},
		overlay.Binding{Agent: "carol", Addresses: addresses(3), Workload: overlay.Workload{UIDs: []uint32{carolID}}},
	)
}

func allow(prefix string, proto uint8, port uint16) overlay.EgressAllow {
	return overlay.EgressAllow{Prefix: netip.MustParsePrefix(prefix), Proto: proto, First: port, Last: port}
}

const (
	icmp = 1
	tcp  = 6
	udp  = 17
)

// A guarded agent reaches what its list has, and nothing else; the host and other agents reach all but the link's own.
func TestGuardedAgentsReachTheirListOnly(t *testing.T) {
	c := newCast(t)
	outside := c.outside()
	c.guard(allow(outside4+"/32", tcp, 7001), allow("198.51.0.0/16", udp, 7001), allow(outside6+"/128", tcp, 7001), allow("2001:db8::/32", udp, 7001), allow("::/0", tcp, 7002))
	for _, host := range []string{outside4, "[" + outside6 + "]"} {
		for _, network := range []string{"tcp", "mptcp", "udp"} {
			for _, port := range []string{":7001", ":7002"} {
				o := order{Do: "ask", Network: network, Remote: host + port}
				listed := port == ":7001" || strings.HasSuffix(network, "tcp") && host != outside4
				if r := c.alice.tell(o); (r.Error == "") != listed {
					t.Errorf("alice, guarded: %+v: %+v", o, r)
				} else if !listed && network != "mptcp" && !strings.Contains(r.Error, "not permitted") {
					t.Errorf("alice is not told: %+v: %+v", o, r)
				}
				c.bob.must(o)
				c.stranger.must(o)
			}
		}
		for _, port := range []string{":7001", ":7002"} {
			o := order{Do: "loose", Remote: host + port}
			if r := c.alice.tell(o); (r.Error == "") != (port == ":7001") {
				t.Errorf("alice, guarded: %+v: %+v", o, r)
			}
		}
	}
	if r := c.alice.tell(order{Do: "mapped", Remote: outside4 + ":7002"}); !strings.Contains(r.Error, "not permitted") {
		t.Errorf("alice, guarded, by IPv6 to IPv4: %+v", r)
	}
	for _, network := range []string{"tcp", "udp", "icmp"} {
		forge := order{Do: "raw", Network: network, Local: "198.51.100.1", Remote: outside4}
		if n := c.drops("egress", func() { c.alice.tell(forge) }); n != 1 {
			t.Errorf("alice, guarded, writes %s herself: %d dropped", network, n)
		}
	}
	ping := order{Do: "exec", Remote: "ping -n -c1 -W1 " + outside4}
	if r := c.alice.tell(ping); r.Error == "" {
		t.Error("alice, guarded, pings")
	}
	c.guard(allow(outside4+"/32", icmp, 0), allow(outside6+"/128", icmp, 0))
	c.alice.must(ping)
	c.alice.must(order{Do: "exec", Remote: "ping -n -c1 -W1 " + outside6})
	// Whoever asks her is answered.
	c.alice.must(order{Do: "serve", Network: "tcp", Local: ":7300"})
	outside.must(order{Do: "ask", Network: "tcp", Remote: "198.51.100.1:7300"})
	outside.must(order{Do: "ask", Network: "tcp", Remote: "[2001:db8::1]:7300"})
}

// What the link has for itself, clouds' metadata among it, is opened by a rule for it alone.
func TestLinkLocalIsListedByItself(t *testing.T) {
	c := newCast(t)
	c.outside()
	ask := order{Do: "ask", Network: "tcp", Remote: "169.254.169.254:7001"}
	for _, list := range [][]overlay.EgressAllow{nil, {allow("0.0.0.0/0", tcp, 7001)}, {allow("169.254.169.254/32", tcp, 7001)}} {
		c.guard(list...)
		if r := c.alice.tell(ask); (r.Error == "") != (len(list) > 0 && list[0].Prefix.IsSingleIP()) {
			t.Errorf("alice with %v: %+v", list, r)
		}
		if r := c.bob.tell(ask); !strings.Contains(r.Error, "not permitted") {
			t.Errorf("bob: %+v", r)
		}
		c.stranger.must(ask)
	}
}

// What a guarded agent may reach of its own host it has to list, too.
func TestGuardHoldsOverLo(t *testing.T) {
	c := newCast(t)
	c.guard(allow("127.0.0.1/32", tcp, 8201))
	for _, network := range []string{"tcp", "udp"} {
		c.stranger.must(order{Do: "serve", Network: network, Local: ":8201"})
		c.stranger.must(order{Do: "serve", Network: network, Local: ":8202"})
		c.alice.must(order{Do: "serve", Network: network, Local: "127.0.0.1:8203"})
		for _, to := range []string{"127.0.0.1:8201", "127.0.0.1:8202", "127.0.0.1:8203", "192.168.50.1:8201"} {
			may := to == "127.0.0.1:8203" || to == "127.0.0.1:8201" && network == "tcp"
			if r := c.alice.tell(order{Do: "ask", Network: network, Remote: to}); (r.Error == "") != may {
				t.Errorf("alice, guarded, over %s to %s: %+v", network, to, r)
			}
			if to != "127.0.0.1:8203" {
				c.bob.must(order{Do: "ask", Network: network, Remote: to})
			}
		}
	}
	c.stranger.must(order{Do: "ask", Network: "tcp", Remote: "127.0.0.1:8203"}) // she answers
}

// A guard holds for what was opened before it, by a process that was no agent then; what others opened goes on.
func TestGuardHoldsForOldConnections(t *testing.T) {
	c := newCast(t)
	outside := c.outside()
	c.guard()
	late, lateServer := c.start("elsewhere", 0), c.start("elsewhere", 0)
	late.must(order{Do: "keep", Network: "tcp", Remote: outside4 + ":7001"})
	lateServer.must(order{Do: "serve", Network: "tcp", Local: ":7300"})
	outside.must(order{Do: "keep", Network: "tcp", Remote: "198.51.100.1:7300"})
	c.apply(overlay.Binding{Agent: "alice", Addresses: addresses(1), Workload: overlay.Workload{Cgroups: []uint64{c.id("elsewhere")}}, Guarded: true})
	if r := late.tell(order{Do: "again"}); r.Error == "" {
		t.Error("what was opened before the guard goes on")
	}
	outside.must(order{Do: "again"})
}

// What names were resolved to is open until it ends.
func TestLearnedDestinationsEnd(t *testing.T) {
	c := newCast(t)
	c.outside()
	c.guard(allow("198.51.100.0/24", tcp, 7001))
	asks := func(port string) string {
		return c.alice.tell(order{Do: "ask", Network: "tcp", Remote: outside4 + port}).Error
	}
	lesson := allow(outside4+"/32", tcp, 7002)
	lesson.Until = time.Now().Add(400 * time.Millisecond)
	if err := c.binding.Learn("bob", "api.example.com", []overlay.EgressAllow{lesson}); err == nil {
		t.Error("bob, who is not guarded, learns")
	}
	if err := c.binding.Learn("alice", "api.example.com", []overlay.EgressAllow{lesson}); err != nil {
		t.Fatal(err)
	}
	if err := asks(":7002"); err != "" && time.Now().Before(lesson.Until) {
		t.Errorf("what was learned is closed: %s", err)
	}
	if err := asks(":7001"); err != "" {
		t.Errorf("what was learned hides what is listed: %s", err)
	}
	for asks(":7002") == "" {
		if time.Now().After(lesson.Until.Add(time.Second)) {
			t.Fatal("what was learned does not end")
		}
	}
	if time.Now().Before(lesson.Until) {
		t.Error("what was learned ended early")
	}
}

// What the name of an answer does not open any more is closed, also to what runs.
func TestReviewClosesWhatNamesOpened(t *testing.T) {
	c := newCast(t)
	c.outside()
	c.guard()
	lesson := allow(outside4+"/32", tcp, 7001)
	lesson.Until = time.Now().Add(time.Hour)
	for _, name := range []string{"api.example.com", "www.example.com"} {
		if err := c.binding.Learn("alice", name, []overlay.EgressAllow{lesson}); err != nil {
			t.Fatal(err)
		}
	}
	c.alice.must(order{Do: "keep", Network: "tcp", Remote: outside4 + ":7001"})
	review := func(keep string) {
		t.Helper()
		err := c.binding.Review(func(agent, name string, a overlay.EgressAllow) bool {
			return agent == "alice" && name == keep && a.Prefix == lesson.Prefix
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	review("www.example.com")
	c.alice.must(order{Do: "again"})
	review("")
	if r := c.alice.tell(order{Do: "again"}); r.Error == "" {
		t.Error("what a name opened goes on without it")
	}
}

// A guarded agent's queries go to the resolver, whom it takes for the server that it asked.
func TestGuardedAgentsAskTheResolver(t *testing.T) {
	c := newCast(t)
	c.outside()
	c.guard(allow("0.0.0.0/0", udp, 53), allow("0.0.0.0/0", tcp, 53))
	for i, server := range []string{outside4 + ":53", "[" + outside6 + "]:53"} {
		for _, network := range []string{"tcp", "udp"} {
			c.stranger.must(order{Do: "serve", Network: network, Local: at(resolvers[i], 53)})
			if r := c.alice.must(order{Do: "ask", Network: network, Remote: server}); r.Peer != server || hostOf(r.Local) != address(1, i == 1).String() {
				t.Errorf("over %s from %s to %s, want %s", network, r.Local, r.Peer, server)
			}
			if r := c.bob.tell(order{Do: "ask", Network: network, Remote: server}); r.Error == "" {
				t.Error("bob, who is not guarded, is redirected")
			}
		}
		if r := c.alice.must(order{Do: "loose", Remote: server}); r.Peer != server {
			t.Errorf("%s answers in place of %s", r.Peer, server)
		}
	}
}

// Agents do not reach control APIs, here or elsewhere.
func TestAgentsDoNotReachControl(t *testing.T) {
	c := newCast(t)
	c.outside()
	c.stranger.must(order{Do: "serve", Network: "tcp", Local: ":7443"})
	if err := c.binding.SetDenied([]netip.AddrPort{netip.MustParseAddrPort(outside4 + ":7002")}); err != nil {
		t.Fatal(err)
	}
	for _, to := range []string{"127.0.0.1:7443", "192.168.50.1:7443", "[::1]:7443", outside4 + ":7002"} {
		o := order{Do: "ask", Network: "tcp", Remote: to}
		for name, who := range map[string]*actor{"alice": c.alice, "carol": c.carol} {
			if n := c.drops("control-api", func() { who.tell(o) }); n == 0 {
				t.Errorf("%s reaches %s", name, to)
			}
		}
		c.stranger.must(o)
	}
	c.alice.must(order{Do: "ask", Network: "udp", Remote: outside4 + ":7002"})
	if err := c.binding.SetDenied(nil); err != nil {
		t.Fatal(err)
	}
	c.alice.must(order{Do: "ask", Network: "tcp", Remote: outside4 + ":7002"})
}

// For every destination, the longest prefix has the ports of all rules that cover it, but for the link's own.
func TestDestinationsAreUnions(t *testing.T) {
	now := time.Now()
	c := clock{now: now, kernel: int64(time.Hour)}
	bases := []string{"198.51.100.0", "198.51.100.128", "169.254.169.254", "10.0.0.0", "2001:db8::", "fe80::", "fd00:ec2::254", "::", "0.0.0.0"}
	rapid.Check(t, func(rt *rapid.T) {
		var rules []overlay.EgressAllow
		for range rapid.IntRange(0, 10).Draw(rt, "rules") {
			addr := netip.MustParseAddr(rapid.SampledFrom(bases).Draw(rt, "base"))
			first := rapid.Uint16Range(1, 40).Draw(rt, "first")
			r := overlay.EgressAllow{
				Prefix: netip.PrefixFrom(addr, rapid.IntRange(0, addr.BitLen()).Draw(rt, "bits")).Masked(), Proto: rapid.SampledFrom([]uint8{tcp, udp}).Draw(rt, "proto"),
				First: first, Last: rapid.Uint16Range(first, 40).Draw(rt, "last"),
			}
			if s := rapid.IntRange(-1, 2).Draw(rt, "until"); s != 0 {
				r.Until = now.Add(time.Duration(s) * time.Minute)
			}
			rules = append(rules, r)
		}
		trie, left := c.destinations(7, rules, now)
		if left > 0 {
			rt.Skip("more ranges than there is room for")
		}
		to := netip.MustParseAddr(rapid.SampledFrom(append(bases, "198.51.100.77", "169.254.0.1", "fe80::1", "2001:db8::1", "fd00:ec2::253")).Draw(rt, "to"))
		proto, port := rapid.SampledFrom([]uint8{tcp, udp}).Draw(rt, "protocol"), rapid.Uint16Range(1, 41).Draw(rt, "port")
		at := now.Add(time.Duration(rapid.IntRange(0, 3).Draw(rt, "at")) * 30 * time.Second)
		want := slices.ContainsFunc(rules, func(r overlay.EgressAllow) bool { return opens(r, to, proto, port, at) })
		if got := finds(trie, to, proto, port, c.until(at)); got != want {
			rt.Fatalf("%v %d/%d at %v: %v, want %v by %v", to, proto, port, at.Sub(now), got, want, rules)
		}
	})
}

// opens is what one rule means.
func opens(r overlay.EgressAllow, to netip.Addr, proto uint8, port uint16, at time.Time) bool {
	for _, a := range alone {
		if a.Contains(to) && !(a.Contains(r.Prefix.Addr()) && r.Prefix.Bits() >= a.Bits()) {
			return false
		}
	}
	return r.Prefix.Contains(to) && r.Proto == proto && r.First <= port && port <= r.Last && (r.Until.IsZero() || at.Before(r.Until))
}

// finds does what the kernel does.
func finds(trie map[kernelDestination]kernelPorts, to netip.Addr, proto uint8, port uint16, now uint64) bool {
	var longest kernelDestination
	for k := range trie {
		p := netip.PrefixFrom(netip.AddrFrom16(addrFrom(k.Addr).As16()), int(k.Prefixlen)-prefixExtra)
		if p.Contains(netip.AddrFrom16(to.As16())) && (longest.Prefixlen == 0 || k.Prefixlen > longest.Prefixlen) {
			longest = k
		}
	}
	for _, r := range trie[longest].Range {
		if r.Proto == proto && r.First <= port && port <= r.Last && (r.Until == 0 || now < r.Until) {
			return true
		}
	}
	return false
}
