package platform

import (
	"bytes"
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
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-mesh/bulkhead/overlay"
)

// probe is one attempt to open a flow.
type probe struct {
	direction overlay.Direction
	network   string
	v6        bool
	port      int
}

func (p probe) String() string {
	return fmt.Sprintf("direction=%d %s/%d v6=%t", p.direction, p.network, p.port, p.v6)
}

var protoOf = map[string]uint8{"tcp": protoTCP, "udp": protoUDP, "icmp": protoICMP}

func allProbes(ports []int) []probe {
	var out []probe
	for _, d := range []overlay.Direction{overlay.In, overlay.Out} {
		for _, v6 := range []bool{false, true} {
			out = append(out, probe{d, "icmp", v6, 0})
			for _, port := range ports {
				out = append(out, probe{d, "tcp", v6, port}, probe{d, "udp", v6, port})
			}
		}
	}
	return out
}

func (p probe) try(w *world, limit time.Duration) (bool, error) {
	src, dst, from := here4, there4, w.here
	if p.v6 {
		src, dst = here6, there6
	}
	if p.direction == overlay.In {
		src, dst, from = dst, src, w.there
	}
	return reach(from, p.network, src, dst, p.port, limit)
}

// allowedBy is the oracle: what a grant says, without sets.
func (p probe) allowedBy(allow []overlay.Allow) bool {
	return slices.ContainsFunc(allow, func(g overlay.Allow) bool {
		return g.Direction == p.direction && g.Local.Is6() == p.v6 && g.Proto == protoOf[p.network] &&
			(g.Proto == protoICMP || int(g.First) <= p.port && p.port <= int(g.Last))
	})
}

// tryAll makes all probes at once and compares what passes with what shall.
func tryAll(t *testing.T, w *world, probes []probe, want func(probe) bool) string {
	t.Helper()
	wanted := make(map[string]bool)
	for _, p := range probes {
		wanted[p.String()] = want(p)
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	got := make(map[string]bool)
	for _, p := range probes {
		wg.Go(func() {
			limit := unexpected
			if wanted[p.String()] {
				limit = expected
			}
			ok, err := p.try(w, limit)
			if err != nil {
				t.Error(p, err)
			}
			mu.Lock()
			defer mu.Unlock()
			got[p.String()] = ok
		})
	}
	wg.Wait()
	return cmp.Diff(wanted, got)
}

func TestPacketsPassAsGranted(t *testing.T) {
	w := newWorld(t)
	ports := []int{443, 5000, 20000}
	serve(t, w.here, ports...)
	serve(t, w.there, ports...)
	probes := allProbes(ports)

	if diff := tryAll(t, w, probes, func(probe) bool { return true }); diff != "" {
		t.Fatalf("not all passes without a firewall:\n%s", diff)
	}
	w.fence(t)
	if diff := tryAll(t, w, probes, func(probe) bool { return false }); diff != "" {
		t.Fatalf("something passes the fence:\n%s", diff)
	}

	const seed = 7
	random := rand.New(rand.NewPCG(seed, 0))
	ranges := [][2]uint16{{443, 443}, {4990, 5010}, {4000, 30000}, {20000, 20000}}
	for round := range 12 {
		var allow []overlay.Allow
		for range random.IntN(10) {
			g := overlay.Allow{
				Direction: overlay.Direction(1 + random.IntN(2)), Remote: there4, Local: here4,
				Proto: []uint8{protoICMP, protoTCP, protoUDP}[random.IntN(3)],
			}
			if random.IntN(2) == 0 {
				g.Remote, g.Local = there6, here6
			}
			if g.Proto != protoICMP {
				r := ranges[random.IntN(len(ranges))]
				g.First, g.Last = r[0], r[1]
			}
			allow = append(allow, g)
		}
		w.apply(t, allow...)
		if diff := tryAll(t, w, probes, func(p probe) bool { return p.allowedBy(allow) }); diff != "" {
			t.Fatalf("seed %d round %d, %+v: packets differ from grants (-want +got):\n%s", seed, round, allow, diff)
		}
	}
}

func TestSpoofedSourcesAreDropped(t *testing.T) {
	w := newWorld(t)
	serve(t, w.here, 443)
	serve(t, w.there, 443)
	w.fence(t)
	w.apply(t, append(grant(overlay.In, protoTCP, 443, 443), grant(overlay.Out, protoTCP, 443, 443)...)...)
	w.there.sh(t, `ip addr add 10.201.0.3/32 dev bulkhead0; ip addr add 192.0.2.1/24 dev bulkhead0; ip -6 addr add fd00:bd::3/128 dev bulkhead0 nodad`)
	w.here.sh(t, `ip addr add 10.201.0.9/32 dev bulkhead0; ip -6 addr add fd00:bd::9/128 dev bulkhead0 nodad; ip route add 192.0.2.0/24 dev bulkhead0`)
	for _, c := range []struct {
		from     space
		src, dst string
		reason   string
	}{
		{w.there, "10.201.0.3", "10.201.0.1", dropIn}, // another agent's address
		{w.there, "fd00:bd::3", "fd00:bd::1", dropIn},
		{w.there, "192.0.2.1", "10.201.0.1", dropSpoofed}, // not of the overlay
		{w.here, "10.201.0.9", "10.201.0.2", dropSpoofed}, // not an agent's here
		{w.here, "fd00:bd::9", "fd00:bd::2", dropSpoofed},
	} {
		before := w.drops(t)[c.reason]
		if !blocked(c.from, netip.MustParseAddr(c.src), netip.MustParseAddr(c.dst), 443) {
			t.Errorf("%s reaches %s", c.src, c.dst)
		}
		if after := w.drops(t); after[c.reason] == before {
			t.Errorf("%s to %s is not counted as %s: %v", c.src, c.dst, c.reason, after)
		}
	}
	if !passes(w.there, there4, here4, 443) {
		t.Error("the agent itself does not pass")
	}
}

// Replies pass, new flows the other way do not, even if they use the same ports.
func TestAServiceOpensNothing(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		w := newWorld(t)
		w.fence(t)
		w.apply(t, append(grant(overlay.In, protoUDP, 443, 443), append(grant(overlay.Out, protoUDP, 53, 53), append(grant(overlay.Out, protoUDP, 5000, 9000), grant(overlay.In, protoUDP, 10000, 20000)...)...)...)...)
		local, remote := here4, there4
		if v6 {
			local, remote = here6, there6
		}
		listen := func(s space, addr netip.Addr, port uint16) net.PacketConn {
			var c net.PacketConn
			s.must(t, func() (err error) {
				c, err = net.ListenPacket("udp", netip.AddrPortFrom(addr, port).String())
				return err
			})
			t.Cleanup(func() { c.Close() })
			return c
		}
		for _, c := range []struct{ from, to net.PacketConn }{
			{listen(w.here, local, 443), listen(w.there, remote, 40000)},
			{listen(w.here, local, 10001), listen(w.there, remote, 40001)},
			{listen(w.there, remote, 53), listen(w.here, local, 40000)},
			{listen(w.there, remote, 5001), listen(w.here, local, 40001)},
		} {
			c.from.WriteTo([]byte("unasked"), c.to.LocalAddr()) // here it is refused, there it is not
			c.to.SetReadDeadline(time.Now().Add(unexpected))
			if n, _, err := c.to.ReadFrom(make([]byte, 16)); err == nil {
				t.Errorf("%s got %d bytes from %s, which may only answer", c.to.LocalAddr(), n, c.from.LocalAddr())
			}
			// The same ports, opened from the right side.
			if _, err := c.to.WriteTo([]byte("question"), c.from.LocalAddr()); err != nil {
				t.Error(err)
			}
			c.from.SetReadDeadline(time.Now().Add(expected))
			if _, _, err := c.from.ReadFrom(make([]byte, 16)); err != nil {
				t.Errorf("no question: %v", err)
			}
			if _, err := c.from.WriteTo([]byte("answer"), c.to.LocalAddr()); err != nil {
				t.Error(err)
			}
			c.to.SetReadDeadline(time.Now().Add(expected))
			if _, _, err := c.to.ReadFrom(make([]byte, 16)); err != nil {
				t.Errorf("no answer: %v", err)
			}
		}
	}
}

func TestErrorsOfAllowedFlowsPass(t *testing.T) {
	w := newWorld(t)
	w.fence(t)
	w.apply(t, append(grant(overlay.In, protoUDP, 777, 777), grant(overlay.Out, protoUDP, 777, 777)...)...)
	for _, c := range []struct {
		from space
		to   netip.Addr
	}{{w.there, here4}, {w.there, here6}, {w.here, there4}, {w.here, there6}} {
		var conn net.Conn
		c.from.must(t, func() (err error) {
			conn, err = net.Dial("udp", netip.AddrPortFrom(c.to, 777).String())
			return err
		})
		defer conn.Close()
		if _, err := conn.Write([]byte("anybody?")); err != nil {
			t.Error(err)
		}
		conn.SetReadDeadline(time.Now().Add(expected))
		if _, err := conn.Read(make([]byte, 8)); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("%s, where nobody listens: %v", c.to, err)
		}
	}
}

func TestFragmentsAreJudgedWhole(t *testing.T) {
	w := newWorld(t)
	serve(t, w.here, 443, 444)
	w.fence(t)
	w.apply(t, grant(overlay.In, protoUDP, 443, 443)...)
	for _, to := range []netip.Addr{here4, here6} {
		for port, limit := range map[uint16]time.Duration{443: expected, 444: unexpected} {
			var conn net.Conn
			w.there.must(t, func() (err error) {
				conn, err = net.Dial("udp", netip.AddrPortFrom(to, port).String())
				return err
			})
			defer conn.Close()
			if _, err := conn.Write(make([]byte, 2000)); err != nil {
				t.Error(err)
			}
			conn.SetReadDeadline(time.Now().Add(limit))
			if n, err := conn.Read(make([]byte, 4000)); (err == nil && n == 2000) != (port == 443) {
				t.Errorf("%s port %d: %d bytes, %v", to, port, n, err)
			}
		}
	}
}

// A denied agent is told at once.
func TestRefusalIsSeenAtOnce(t *testing.T) {
	w := newWorld(t)
	w.fence(t)
	w.apply(t)
	for _, to := range []netip.Addr{there4, there6} {
		err := w.here.do(func() error {
			c, err := net.DialTimeout("tcp", netip.AddrPortFrom(to, 443).String(), expected)
			if err == nil {
				c.Close()
			}
			return err
		})
		if !errors.Is(err, unix.EHOSTUNREACH) && !errors.Is(err, unix.EACCES) {
			t.Errorf("%s: %v", to, err)
		}
	}
}

func TestNothingLeavesWhileTheInterfaceIsGone(t *testing.T) {
	w := newWorld(t)
	w.fence(t)
	w.apply(t, grant(overlay.Out, protoUDP, 9, 9)...)
	internet := newSpace(t)
	w.here.must(t, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "eth9"
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth9", PeerNamespace: netlink.NsFd(internet.handle)})
	})
	wire := sniff(t, internet)
	w.here.sh(t, `ip link del bulkhead0; ip link set eth9 up
		ip addr add 198.51.100.1/24 dev eth9; ip route add default via 198.51.100.2
		ip neigh add 198.51.100.2 lladdr 2:0:0:0:0:9 dev eth9
		ip -6 addr add fd99::1/64 dev eth9 nodad; ip -6 route add default via fd99::2
		ip neigh add fd99::2 lladdr 2:0:0:0:0:9 dev eth9`)
	say := func(dst string, text string) error {
		return w.here.do(func() error {
			c, err := net.Dial("udp", dst)
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = c.Write([]byte(text))
			return err
		})
	}
	for _, dst := range []string{"10.201.0.2:9", "[fd00:bd::2]:9"} {
		if err := say(dst, "secret"); err == nil {
			t.Errorf("%s has a route while the interface is gone", dst)
		}
	}
	// A route that another program or a DHCP server adds is stopped at the way out.
	w.here.sh(t, "ip route add 10.201.0.2/32 via 198.51.100.2; ip -6 route add fd00:bd::2/128 via fd99::2")
	for _, dst := range []string{"10.201.0.2:9", "[fd00:bd::2]:9"} {
		if err := say(dst, "secret"); err != nil && !errors.Is(err, unix.EPERM) {
			t.Error(err)
		}
	}
	if drops := w.drops(t); drops[dropLeak] != 2 {
		t.Errorf("2 packets would have leaked: %v", drops)
	}
	if err := say("203.0.113.1:9", "last"); err != nil {
		t.Fatal(err)
	}
	for {
		packet := wire()
		if bytes.Contains(packet, []byte("secret")) {
			t.Fatalf("leaked: %q", packet)
		}
		if bytes.Contains(packet, []byte("last")) {
			break
		}
	}
}

// sniff returns a function that waits for the next packet on eth9 inside s.
func sniff(t *testing.T, s space) func() []byte {
	t.Helper()
	var fd int
	s.must(t, func() (err error) {
		link, err := netlink.LinkByName("eth9")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return err
		}
		const everything = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, everything)
		return err
	})
	t.Cleanup(func() { unix.Close(fd) })
	limit := unix.Timeval{Sec: 2}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 2048)
	return func() []byte {
		t.Helper()
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err != nil {
			t.Fatalf("read from the wire: %v", err)
		}
		return buf[:n]
	}
}
