package bind

import (
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
)

// drops is how often a reason refused something while fn ran.
func (w *world) drops(reason string, fn func()) uint64 {
	w.t.Helper()
	before, err := w.binding.Drops()
	if err != nil {
		w.t.Fatal(err)
	}
	fn()
	after, err := w.binding.Drops()
	if err != nil {
		w.t.Fatal(err)
	}
	return after[reason] - before[reason]
}

// What a process with CAP_NET_RAW writes itself does not leave with an agent's address, be it made to look like the
// kernel's own answers; those leave.
func TestForgedPacketsDoNotLeave(t *testing.T) {
	c := newCast(t)
	for _, network := range []string{"udp", "tcp", "icmp"} {
		for name, who := range map[string]*actor{"a stranger": c.stranger, "bob": c.bob} {
			for _, to := range []string{"10.201.0.3", "10.201.0.99"} {
				forge := order{Do: "raw", Network: network, Local: "10.201.0.1", Remote: to}
				if n := c.drops("foreign-source", func() { who.tell(forge) }); n != 1 {
					t.Errorf("%s forges %s to %s: %d dropped", name, network, to, n)
				}
			}
		}
		// Of lo, only the sender knows whose a packet is.
		if network != "icmp" {
			forge := order{Do: "raw", Network: network, Local: "127.0.0.1", Remote: "127.0.0.1"}
			if n := c.drops("foreign-source", func() { c.alice.tell(forge) }); n != 1 {
				t.Errorf("alice forges %s over lo: %d dropped", network, n)
			}
		}
	}
	if r := c.alice.tell(order{Do: "ask", Network: "tcp", Remote: at(address(2, false), 9999)}); !strings.Contains(r.Error, "refused") {
		t.Errorf("a closed port does not say so: %+v", r)
	}
	if r := c.alice.tell(order{Do: "ask", Network: "tcp", Remote: "127.0.0.1:9999"}); !strings.Contains(r.Error, "refused") {
		t.Errorf("a closed port of lo does not say so: %+v", r)
	}
	c.alice.must(order{Do: "exec", Remote: "ping -n -c1 -W1 -I 10.201.0.1 10.201.0.2"})
}

// Neither another source nor a socket that seems to talk to someone else hides from a neighbour who sends.
func TestNeighboursCannotPretend(t *testing.T) {
	c := newCast(t)
	c.bob.must(order{Do: "serve", Network: "udp", Local: "127.0.0.1:8080"})
	for name, o := range map[string]order{
		"another source":         {Do: "pretend", Local: "127.0.0.9"},
		"the underlay's address": {Do: "pretend", Local: "192.168.50.1"},
		"connected to another":   {Do: "pretend"},
		"one's own":              {Do: "loose"},
	} {
		o.Remote = "127.0.0.1:8080"
		if n := c.drops("neighbour", func() { c.alice.tell(o) }); n != 1 {
			t.Errorf("%s: %d dropped", name, n)
		}
		if n := c.drops("neighbour", func() { c.stranger.tell(o) }); n != 0 {
			t.Errorf("%s: %d dropped of the host's own", name, n)
		}
	}
	if r := c.bob.must(order{Do: "heard"}); r.Heard != 4 {
		t.Errorf("bob heard %d datagrams, want the host's 4", r.Heard)
	}
}

// Whose a listener is says who made it, not who has it now.
func TestPassedListenersAreTheirMakers(t *testing.T) {
	c := newCast(t)
	lend := func(from *actor, local string) {
		path := filepath.Join(t.TempDir(), "s")
		c.bob.must(order{Do: "borrow", Local: path})
		from.must(order{Do: "lend", Network: "tcp4", Local: local, Remote: path})
	}
	lend(c.alice, "10.201.0.1:8300")
	c.alice.must(order{Do: "ask", Network: "tcp", Remote: "10.201.0.1:8300"}) // it is alice's still
	lend(c.alice, "0.0.0.0:8301")
	for _, n := range []int{1, 2} {
		r := c.alice.tell(order{Do: "ask", Network: "tcp", Remote: at(address(n, false), 8301)})
		if (r.Error == "") != (n == 1) {
			t.Errorf("bob, with alice's listener, at the address of %d: %+v", n, r)
		}
	}
	lend(c.stranger, "0.0.0.0:8302")
	if r := c.alice.tell(order{Do: "ask", Network: "tcp", Remote: "10.201.0.2:8302"}); r.Error == "" {
		t.Error("bob serves at his address with a listener of the host's")
	}
}

// A socket of several paths is as any other: it has its agent's address, or none.
func TestMultipathHasTheAgentsAddress(t *testing.T) {
	c := newCast(t)
	c.bob.must(order{Do: "serve", Network: "tcp", Local: "10.201.0.2:8080"})
	ask := order{Do: "ask", Network: "mptcp", Remote: "10.201.0.2:8080"}
	for n, who := range map[int]*actor{1: c.alice, 3: c.carol} {
		if r := who.tell(ask); r.Error == "" && hostOf(r.Local) != address(n, false).String() {
			t.Errorf("%d asks from %s", n, r.Local)
		} else if r.Error != "" {
			t.Logf("%d: %s", n, r.Error)
		}
	}
	if r := c.stranger.tell(ask); r.Error == "" {
		t.Errorf("a stranger asks: %+v", r)
	}
}

// IPv4 in IPv6 is IPv4.
func TestMappedAddressesAreTheSame(t *testing.T) {
	c := newCast(t)
	if r := c.bob.tell(order{Do: "mapped", Local: "10.201.0.1:8400"}); !strings.Contains(r.Error, "not permitted") {
		t.Errorf("bob binds alice's mapped address: %+v", r)
	}
	c.bob.must(order{Do: "serve", Network: "tcp", Local: "[::]:8401"})
	c.bob.must(order{Do: "serve", Network: "udp", Local: "[::]:8401"})
	c.alice.must(order{Do: "mapped", Remote: "10.201.0.2:8401"})
	c.alice.must(order{Do: "loose", Network: "udp", Remote: "10.201.0.2:8401"})
	if r := c.alice.tell(order{Do: "ask", Network: "udp", Remote: "10.201.0.3:8401"}); r.Error == "" {
		t.Error("bob's listener for both families hears what is carol's")
	}
	if r := c.stranger.tell(order{Do: "mapped", Remote: "10.201.0.2:8401"}); !strings.Contains(r.Error, "not permitted") {
		t.Errorf("a stranger connects: %+v", r)
	}
}

// With the daemon gone, nobody but the host itself hears what agents ask the resolver.
func TestResolverIsNoAgents(t *testing.T) {
	c := newCast(t)
	c.bob.must(order{Do: "serve", Network: "udp4", Local: "0.0.0.0:53"})
	to := netip.AddrPortFrom(resolvers[0], 53).String()
	if r := c.alice.tell(order{Do: "ask", Network: "udp", Remote: to}); r.Error == "" {
		t.Error("bob answers in the resolver's place")
	}
	if r := c.bob.must(order{Do: "heard"}); r.Heard != 0 {
		t.Error("bob hears what alice asks the resolver")
	}
}
