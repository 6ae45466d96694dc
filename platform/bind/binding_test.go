package bind

import (
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-mesh/bulkhead/overlay"
)

// two agents in cgroups and one by user, with a program of each and of nobody.
type cast struct {
	*world
	alice, bob, carol, stranger *actor
}

const carolID = 64001

func newCast(t *testing.T) *cast {
	t.Parallel()
	w := newWorld(t)
	a, b := w.group("alice"), w.group("bob")
	w.group("bob/inner")
	w.group("elsewhere")
	w.apply(
		overlay.Binding{Agent: "alice", Addresses: addresses(1), Workload: overlay.Workload{Cgroups: []uint64{a}}},
		overlay.Binding{Agent: "bob", Addresses: addresses(2), Workload: overlay.Workload{Cgroups: []uint64{b}}},
		overlay.Binding{Agent: "carol", Addresses: addresses(3), Workload: overlay.Workload{UIDs: []uint32{carolID}}},
	)
	return &cast{w, w.start("alice", 0), w.start("bob/inner", 0), w.start("elsewhere", carolID), w.start("elsewhere", 0)}
}

func at(a netip.Addr, port uint16) string { return netip.AddrPortFrom(a, port).String() }

// Whoever opens something in the overlay has its agent's address, as it sees itself and as the other sees it.
func TestSourceIsTheAgentsOwn(t *testing.T) {
	c := newCast(t)
	for _, six := range []bool{false, true} {
		for _, network := range []string{"tcp", "udp"} {
			c.bob.must(order{Do: "serve", Network: network, Local: at(address(2, six), 8080)})
		}
		to := at(address(2, six), 8080)
		for name, who := range map[string]struct {
			*actor
			n int
		}{"alice": {c.alice, 1}, "carol": {c.carol, 3}, "bob himself": {c.bob, 2}} {
			want := address(who.n, six).String()
			for _, network := range []string{"tcp", "udp"} {
				if r := who.must(order{Do: "ask", Network: network, Remote: to}); hostOf(r.Local) != want {
					t.Errorf("%s over %s to %s: from %s, want %s", name, network, to, r.Local, want)
				}
				wild := "0.0.0.0:0"
				if six {
					wild = "[::]:0"
				}
				// With a port but no address of its own only the routes could choose, which cannot on this host.
				if r := who.tell(order{Do: "ask", Network: network, Remote: to, Local: wild}); (r.Error == "") != (who.n == 2) {
					t.Errorf("%s over %s with a port of its own: %+v", name, network, r)
				}
			}
			who.must(order{Do: "loose", Remote: to})
		}
	}
	// A socket for both families that speaks IPv4.
	c.alice.must(order{Do: "loose", Network: "udp", Remote: at(address(2, false), 8080)})
}

func hostOf(s string) string {
	ap, err := netip.ParseAddrPort(s)
	if err != nil {
		return s
	}
	return ap.Addr().Unmap().String()
}

// A ping to another host has the agent's address; the other host here is a packet socket that records what comes.
func TestMarkedSocketsHaveTheAgentsAddress(t *testing.T) {
	c := newCast(t)
	for n, who := range map[int]*actor{1: c.alice, 2: c.bob, 3: c.carol} {
		for _, six := range []bool{false, true} {
			want := address(n, six)
			if got := c.sourceOf(t, who, order{Do: "exec", Remote: "ping -n -c1 -W1 " + address(99, six).String()}); got != want {
				t.Errorf("ping of %d: from %s, want %s", n, got, want)
			}
			wild := "0.0.0.0:0"
			if six {
				wild = "[::]:0"
			}
			if got := c.sourceOf(t, who, order{Do: "ask", Network: "udp", Local: wild, Remote: at(address(99, six), 9)}); got != want {
				t.Errorf("UDP of %d with a port of its own: from %s, want %s", n, got, want)
			}
		}
		who.must(order{Do: "exec", Remote: "ping -n -c1 -W1 -I " + address(n, false).String() + " " + address(4-n+n/3, false).String()})
	}
}

// sourceOf is the source of the next packet for agent 99, which is elsewhere.
func (c *cast) sourceOf(t *testing.T, who *actor, o order) netip.Addr {
	t.Helper()
	var fd int
	err := c.inside(func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM, int(htons(unix.ETH_P_ALL)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 3}); err != nil {
		t.Fatal(err)
	}
	c.shell("ip neigh replace 10.201.0.99 lladdr 02:00:00:00:00:01 dev bulkhead0; ip neigh replace fd12:3456:789a::63 lladdr 02:00:00:00:00:01 dev bulkhead0")
	who.tell(o) // nobody answers
	buf := make([]byte, 2048)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err != nil {
			t.Fatalf("%+v: no packet: %v", o, err)
		}
		if src, dst, ok := ends(buf[:n]); ok && (dst == address(99, false) || dst == address(99, true)) {
			return src
		}
	}
}

func ends(p []byte) (src, dst netip.Addr, ok bool) {
	switch {
	case len(p) >= 20 && p[0]>>4 == 4:
		return netip.AddrFrom4([4]byte(p[12:16])), netip.AddrFrom4([4]byte(p[16:20])), true
	case len(p) >= 40 && p[0]>>4 == 6:
		return netip.AddrFrom16([16]byte(p[8:24])), netip.AddrFrom16([16]byte(p[24:40])), true
	}
	return src, dst, false
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

// Nobody takes another's address, whatever it asks for it with.
func TestAddressesAreTheirOwners(t *testing.T) {
	c := newCast(t)
	const transparent, freebind, transparent6, freebind6 = 19, 15, 75, 78
	for _, network := range []string{"tcp", "udp"} {
		for name, who := range map[string]*actor{"bob": c.bob, "carol": c.carol, "a stranger": c.stranger} {
			for _, six := range []bool{false, true} {
				options := []int{0, transparent, freebind}
				if six {
					options = []int{0, transparent6, freebind6}
				}
				for _, option := range options {
					if who == c.carol && (option == transparent || option == transparent6) {
						continue // needs a capability, which users lack
					}
					for _, a := range []netip.Addr{address(1, six), address(77, six)} {
						if r := who.tell(order{Do: "serve", Network: network, Local: at(a, 9000), Option: option}); !strings.Contains(r.Error, "not permitted") {
							t.Errorf("%s binds %s/%s with option %d: %+v", name, network, a, option, r)
						}
					}
				}
			}
		}
		c.alice.must(order{Do: "serve", Network: network, Local: at(address(1, false), 9001)})
	}
	if r := c.bob.tell(order{Do: "ask", Network: "udp", Local: at(address(1, false), 0), Remote: at(address(2, false), 1)}); !strings.Contains(r.Error, "not permitted") {
		t.Errorf("bob asks from alice's address: %+v", r)
	}
}

// A wildcard listener outside an agent does not receive what is for the agent; one inside does.
func TestWildcardListenersHearTheirOwnAddressOnly(t *testing.T) {
	c := newCast(t)
	for i, network := range []string{"tcp", "udp"} {
		for name, listener := range map[string]struct {
			*actor
			n int
		}{"a stranger": {c.stranger, 0}, "bob": {c.bob, 2}} {
			port := uint16(8100 + 10*i + listener.n)
			wild := "0.0.0.0"
			listener.must(order{Do: "serve", Network: network + "4", Local: at(netip.MustParseAddr(wild), port)})
			for n := 1; n <= 3; n++ {
				r := c.alice.tell(order{Do: "ask", Network: network, Remote: at(address(n, false), port)})
				if (r.Error == "") != (n == listener.n) {
					t.Errorf("%s/%d of %s at the address of %d: %+v", network, port, name, n, r)
				}
			}
		}
	}
}

// Strangers reach no agent, and are told so at once.
func TestStrangersHaveNoOverlay(t *testing.T) {
	c := newCast(t)
	c.bob.must(order{Do: "serve", Network: "tcp", Local: at(address(2, false), 8080)})
	c.bob.must(order{Do: "serve", Network: "udp", Local: at(address(2, false), 8080)})
	for _, o := range []order{
		{Do: "ask", Network: "tcp", Remote: at(address(2, false), 8080)}, {Do: "ask", Network: "udp", Remote: at(address(2, false), 8080)},
		{Do: "loose", Remote: at(address(2, false), 8080)}, {Do: "mapped", Remote: at(address(2, false), 8080)},
	} {
		if r := c.stranger.tell(o); !strings.Contains(r.Error, "not permitted") {
			t.Errorf("%+v: %+v", o, r)
		}
	}
	before, err := c.binding.Drops()
	if err != nil {
		t.Fatal(err)
	}
	c.stranger.tell(order{Do: "raw", Network: "udp", Local: "10.201.0.1", Remote: "10.201.0.2"})
	after, err := c.binding.Drops()
	if err != nil {
		t.Fatal(err)
	}
	if after["foreign-source"] != before["foreign-source"]+1 {
		t.Errorf("a forged packet was not dropped: %v, then %v", before, after)
	}
	for _, do := range []string{"raw", "packet"} {
		if r := c.carol.tell(order{Do: do, Network: "udp", Local: "10.201.0.1", Remote: "10.201.0.2"}); !strings.Contains(r.Error, "not permitted") {
			t.Errorf("a user without capabilities: %s: %+v", do, r)
		}
	}
}

// Two agents of a host meet on the overlay only.
func TestNeighboursDoNotMeetPastTheOverlay(t *testing.T) {
	c := newCast(t)
	for _, network := range []string{"tcp", "udp"} {
		c.bob.must(order{Do: "serve", Network: network, Local: ":8200"})
		c.stranger.must(order{Do: "serve", Network: network, Local: ":8201"})
		for _, host := range []string{"127.0.0.1", "192.168.50.1", "[::1]"} {
			if r := c.alice.tell(order{Do: "ask", Network: network, Remote: host + ":8200"}); r.Error == "" {
				t.Errorf("alice reaches bob over %s at %s", network, host)
			}
			c.alice.must(order{Do: "ask", Network: network, Remote: host + ":8201"}) // the host's own
			c.bob.must(order{Do: "ask", Network: network, Remote: host + ":8200"})
			c.stranger.must(order{Do: "ask", Network: network, Remote: host + ":8200"})
		}
	}
	if r := c.alice.tell(order{Do: "ask", Network: "tcp", Remote: "127.0.0.1:7443"}); r.Error == "" {
		t.Error("alice reaches the control API")
	}
}

// A socket is what the process was that made it, wherever the process or the socket goes.
func TestSocketsKeepTheirIdentity(t *testing.T) {
	c := newCast(t)
	c.bob.must(order{Do: "serve", Network: "tcp", Local: at(address(2, false), 8080)})
	mover := c.start("alice", 0)
	mover.must(order{Do: "keep", Network: "tcp", Remote: at(address(2, false), 8080)})
	mover.must(order{Do: "move", Group: c.root + "/elsewhere"})
	mover.must(order{Do: "again"})
	if r := mover.tell(order{Do: "ask", Network: "tcp", Remote: at(address(2, false), 8080)}); !strings.Contains(r.Error, "not permitted") {
		t.Errorf("a process that left alice's cgroup opens more: %+v", r)
	}
}

// A socket that is passed on over a Unix socket stays its maker's: the other process speaks with it as the first agent, and
// opens what it opens itself as what it is.
func TestPassedSocketsStayTheirMakers(t *testing.T) {
	c := newCast(t)
	c.bob.must(order{Do: "serve", Network: "tcp", Local: at(address(2, false), 8080)})
	to := at(address(2, false), 8080)
	path := filepath.Join(t.TempDir(), "s")
	c.stranger.must(order{Do: "borrow", Local: path})
	c.alice.must(order{Do: "keep", Network: "tcp", Remote: to})
	c.alice.must(order{Do: "lend", Remote: path})
	if r := c.stranger.must(order{Do: "take"}); hostOf(r.Local) != address(1, false).String() {
		t.Errorf("the socket has the address %s", r.Local)
	}
	c.stranger.must(order{Do: "again"})
	if r := c.stranger.tell(order{Do: "ask", Network: "tcp", Remote: to}); !strings.Contains(r.Error, "not permitted") {
		t.Errorf("the borrower opens more: %+v", r)
	}
}

// Whoever serves at the resolver's address, which only the host's root may, hears each agent by its address, and answers.
func TestResolverIsAskedByAddress(t *testing.T) {
	c := newCast(t)
	for _, six := range []bool{false, true} {
		at53 := at(resolvers[0], 53)
		if six {
			at53 = at(resolvers[1], 53)
		}
		for _, network := range []string{"udp", "tcp"} {
			if r := c.alice.tell(order{Do: "serve", Network: network, Local: at53}); !strings.Contains(r.Error, "not permitted") {
				t.Errorf("alice serves as the resolver: %+v", r)
			}
			c.stranger.must(order{Do: "serve", Network: network, Local: at53})
			for n, who := range map[int]*actor{1: c.alice, 3: c.carol} {
				if r := who.must(order{Do: "ask", Network: network, Remote: at53}); hostOf(r.Local) != address(n, six).String() {
					t.Errorf("%d asks over %s from %s", n, network, r.Local)
				}
			}
			c.stranger.must(order{Do: "ask", Network: network, Remote: at53})
		}
		c.alice.must(order{Do: "loose", Remote: at53})
	}
}
