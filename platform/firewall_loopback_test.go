package platform

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-mesh/bulkhead/overlay"
)

// newPair is a world with two agents here: at here and at near. The resolver is where ConfigureLink puts it.
func newPair(t testing.TB) *world {
	t.Helper()
	w := newWorld(t)
	w.here.sh(t, "ip addr add "+near4.String()+"/32 dev bulkhead0; ip -6 addr add "+near6.String()+"/128 dev bulkhead0 nodad")
	for _, a := range w.firewall.options.Resolvers {
		w.here.sh(t, "ip addr add "+single(a).String()+" dev bulkhead0 $(expr "+a.String()+" : .*: >/dev/null && echo nodad)")
	}
	return w
}

// applyPair is apply with the two agents.
func (w *world) applyPair(t testing.TB, allow ...overlay.Allow) {
	t.Helper()
	c := overlay.FirewallConfig{Local: []netip.Addr{here4, here6, near4, near6}, Allow: allow}
	w.here.must(t, func() error { return w.firewall.Apply(t.Context(), c) })
}

// between lets from open ports of to, both agents here: each is local in turn.
func between(from, to netip.Addr, proto uint8, first, last uint16) []overlay.Allow {
	return []overlay.Allow{
		{Direction: overlay.Out, Local: from, Remote: to, Proto: proto, First: first, Last: last},
		{Direction: overlay.In, Local: to, Remote: from, Proto: proto, First: first, Last: last},
	}
}

// hop is one attempt to open a flow, from an address to another, both here.
type hop struct {
	src, dst netip.Addr
	network  string
	port     int
}

func (h hop) String() string { return fmt.Sprintf("%s to %s %s/%d", h.src, h.dst, h.network, h.port) }

func (h hop) allowedBy(allow []overlay.Allow) bool {
	return h.src == h.dst || slices.ContainsFunc(allow, func(g overlay.Allow) bool {
		return g.Direction == overlay.Out && g.Local == h.src && g.Remote == h.dst && g.Proto == protoOf[h.network] &&
			(g.Proto == protoICMP || int(g.First) <= h.port && h.port <= int(g.Last))
	})
}

// tryHops makes all at once and compares what passes with what shall.
func tryHops(t *testing.T, w *world, hops []hop, want func(hop) bool) string {
	t.Helper()
	var mu sync.Mutex
	var wg sync.WaitGroup
	wanted, got := make(map[string]bool), make(map[string]bool)
	for _, h := range hops {
		wanted[h.String()] = want(h)
		limit := unexpected
		if want(h) {
			limit = expected
		}
		wg.Go(func() {
			ok, err := reach(w.here, h.network, h.src, h.dst, h.port, limit)
			if err != nil {
				t.Error(h, err)
			}
			mu.Lock()
			defer mu.Unlock()
			got[h.String()] = ok
		})
	}
	wg.Wait()
	return cmp.Diff(wanted, got)
}

// Agents of one host meet over the loopback interface as those of two do on the wire.
func TestAgentsOfOneHostMeetAsGranted(t *testing.T) {
	w := newPair(t)
	ports := []int{443, 5000, 20000}
	serve(t, w.here, ports...)
	var hops []hop
	for _, pair := range [][2]netip.Addr{{here4, near4}, {here6, near6}} {
		for _, src := range pair {
			for _, dst := range pair {
				hops = append(hops, hop{src, dst, "icmp", 0})
				for _, port := range ports {
					hops = append(hops, hop{src, dst, "tcp", port}, hop{src, dst, "udp", port})
				}
			}
		}
	}
	if diff := tryHops(t, w, hops, func(hop) bool { return true }); diff != "" {
		t.Fatalf("not all passes without a firewall:\n%s", diff)
	}
	w.fence(t)
	if diff := tryHops(t, w, hops, func(hop) bool { return false }); diff != "" {
		t.Fatalf("something passes the fence:\n%s", diff)
	}
	const seed = 11
	random := rand.New(rand.NewPCG(seed, 0))
	ranges := [][2]uint16{{443, 443}, {4990, 5010}, {4000, 30000}, {20000, 20000}}
	for round := range 12 {
		var allow []overlay.Allow
		for range random.IntN(8) {
			pair := [][2]netip.Addr{{here4, near4}, {near4, here4}, {here6, near6}, {near6, here6}}[random.IntN(4)]
			proto, r := []uint8{protoICMP, protoTCP, protoUDP}[random.IntN(3)], [2]uint16{}
			if proto != protoICMP {
				r = ranges[random.IntN(len(ranges))]
			}
			allow = append(allow, between(pair[0], pair[1], proto, r[0], r[1])...)
		}
		w.applyPair(t, allow...)
		if diff := tryHops(t, w, hops, func(h hop) bool { return h.allowedBy(allow) }); diff != "" {
			t.Fatalf("seed %d round %d, %+v: packets differ from grants (-want +got):\n%s", seed, round, allow, diff)
		}
	}
	if err := w.check(t); err != nil {
		t.Error(err)
	}
}

func TestWithdrawalStopsFlowsOfOneHost(t *testing.T) {
	for _, network := range []string{"tcp", "udp"} {
		for _, pair := range [][2]netip.Addr{{here4, near4}, {here6, near6}} {
			for _, last := range []uint16{443, 9000} {
				t.Run(fmt.Sprintf("%s-%s-%d", network, pair[0], last), func(t *testing.T) {
					w := newPair(t)
					w.fence(t)
					kept := between(pair[1], pair[0], protoTCP, 9, 9)
					w.applyPair(t, append(between(pair[0], pair[1], protoOf[network], 443, last), kept...)...)
					s := openStream(t, network, w.here, w.here, pair[0], pair[1], 443)
					own := openStream(t, "tcp", w.here, w.here, pair[0], pair[0], 8) // an agent with itself
					w.applyPair(t, kept...)
					s.silent(t)
					if network == "tcp" {
						eventually(t, expected, "both sockets are closed", func() bool { _, _, errs := s.state(); return errs[0] != nil && errs[1] != nil })
					}
					before, _, _ := own.state()
					eventually(t, expected, "the agent goes on with itself", func() bool { now, _, _ := own.state(); return now > before })
				})
			}
		}
	}
}

// Overlay addresses meet nothing else on the loopback interface, however it is addressed.
func TestOverlayAndHostDoNotMix(t *testing.T) {
	w := newPair(t)
	serve(t, w.here, 443)
	w.fence(t)
	w.applyPair(t, append(between(here4, near4, protoTCP, 1, 65535), between(here6, near6, protoTCP, 1, 65535)...)...)
	w.here.sh(t, "ip addr add 192.0.2.7/32 dev lo; ip -6 addr add fd99::7/128 dev lo nodad; ip addr add 10.201.0.99/32 dev bulkhead0; ip -6 addr add fd00:bd::99/128 dev bulkhead0 nodad")
	nobody4, nobody6 := netip.MustParseAddr("10.201.0.99"), netip.MustParseAddr("fd00:bd::99")
	other4, other6 := netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("fd99::7")
	for _, c := range [][2]netip.Addr{
		{here4, other4}, {other4, here4}, {here6, other6}, {other6, here6},
		{nobody4, here4}, {here4, nobody4}, {nobody6, here6}, {here6, nobody6}, {nobody4, nobody4}, {nobody6, nobody6},
		{netip.MustParseAddr("127.0.0.1"), near4}, {near4, netip.MustParseAddr("127.0.0.1")}, {netip.MustParseAddr("::1"), near6},
	} {
		before := w.drops(t)[dropLocal]
		if !blocked(w.here, c[0], c[1], 443) {
			t.Errorf("%s reaches %s", c[0], c[1])
		}
		if after := w.drops(t)[dropLocal]; after == before {
			t.Errorf("%s to %s is not counted", c[0], c[1])
		}
	}
	if !passes(w.here, here4, near4, 443) || !passes(w.here, other4, other4, 443) || !passes(w.here, other6, other6, 443) {
		t.Error("what is allowed, or is no business of the overlay, does not pass")
	}
}

// The resolver answers DNS queries and pings of this host, no other questions, and nobody on the wire.
func TestResolverAnswersThisHostAlone(t *testing.T) {
	w := newPair(t)
	serve(t, w.here, 53, 54)
	w.fence(t)
	w.applyPair(t, append(grant(overlay.In, protoTCP, 53, 53), grant(overlay.In, protoUDP, 1, 60000)...)...)
	resolvers := w.firewall.options.Resolvers
	for i, resolver := range resolvers {
		for _, src := range []netip.Addr{[]netip.Addr{here4, here6}[i], []netip.Addr{near4, near6}[i], resolver} {
			for _, network := range []string{"udp", "tcp", "icmp"} {
				if ok, err := reach(w.here, network, src, resolver, 53, expected); !ok || err != nil {
					t.Errorf("%s gets no %s answer of %s: %v", src, network, resolver, err)
				}
			}
			for _, network := range []string{"udp", "tcp"} {
				if ok, _ := reach(w.here, network, src, resolver, 54, unexpected); ok {
					t.Errorf("%s reaches %s port 54", src, resolver)
				}
			}
		}
		remote := []netip.Addr{there4, there6}[i]
		w.there.sh(t, "ip route replace "+single(resolver).String()+" dev bulkhead0")
		for _, network := range []string{"udp", "tcp", "icmp"} {
			if ok, _ := reach(w.there, network, remote, resolver, 53, unexpected); ok {
				t.Errorf("%s reaches %s from another host by %s", remote, resolver, network)
			}
		}
		if ok, _ := reach(w.here, "udp", resolver, []netip.Addr{here4, here6}[i], 53, unexpected); ok {
			t.Errorf("the resolver %s asks an agent", resolver)
		}
	}
	if err := w.check(t); err != nil {
		t.Error(err)
	}
}

// A denied agent is told at once, also by its own host.
func TestRefusalByThisHostIsSeenAtOnce(t *testing.T) {
	w := newPair(t)
	w.fence(t)
	w.applyPair(t)
	for _, c := range [][2]netip.Addr{{here4, near4}, {here6, near6}} {
		start := time.Now()
		err := w.here.do(func() error {
			d := net.Dialer{Timeout: expected, LocalAddr: &net.TCPAddr{IP: c[0].AsSlice()}}
			conn, err := d.Dial("tcp", netip.AddrPortFrom(c[1], 443).String())
			if err == nil {
				conn.Close()
			}
			return err
		})
		if !errors.Is(err, unix.EHOSTUNREACH) && !errors.Is(err, unix.EACCES) {
			t.Errorf("%s after %s: %v", c[1], time.Since(start), err)
		}
	}
}

// Errors about a flow that is allowed pass between agents of one host.
func TestErrorsOfAllowedFlowsPassHere(t *testing.T) {
	w := newPair(t)
	w.fence(t)
	w.applyPair(t, append(between(here4, near4, protoUDP, 777, 777), between(here6, near6, protoUDP, 777, 777)...)...)
	for _, c := range [][2]netip.Addr{{here4, near4}, {here6, near6}, {here4, here4}, {here6, here6}} {
		var conn net.Conn
		w.here.must(t, func() (err error) {
			conn, err = net.DialUDP("udp", &net.UDPAddr{IP: c[0].AsSlice()}, &net.UDPAddr{IP: c[1].AsSlice(), Port: 777})
			return err
		})
		defer conn.Close()
		if _, err := conn.Write([]byte("anybody?")); err != nil {
			t.Error(err)
		}
		conn.SetReadDeadline(time.Now().Add(expected))
		if _, err := conn.Read(make([]byte, 8)); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("%s, where nobody listens: %v", c[1], err)
		}
	}
}
