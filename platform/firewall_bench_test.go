package platform

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/bulkhead-mesh/bulkhead/overlay"
)

// manyGrants is a configuration of n entries in each family's half, and one that differs in one entry.
func manyGrants(n int) (overlay.FirewallConfig, overlay.FirewallConfig) {
	var allow []overlay.Allow
	for i := range n / 2 {
		for _, remote := range []netip.Addr{
			netip.AddrFrom4([4]byte{10, 201, byte(1 + i/1000), byte(i / 4 % 250)}),
			netip.MustParseAddr(fmt.Sprintf("fd00:bd::%x:%x", 1+i/1000, i/4%250)),
		} {
			g := overlay.Allow{Direction: overlay.In, Remote: remote, Local: here4, Proto: protoTCP, First: uint16(1000 + i%4), Last: uint16(1000 + i%4)}
			if remote.Is6() {
				g.Local = here6
			}
			allow = append(allow, g)
		}
	}
	return config(allow...), config(allow[1:]...)
}

func benchmarkApply(b *testing.B, next func(i int) overlay.FirewallConfig) {
	w := newWorld(b)
	w.fence(b)
	w.here.must(b, func() error {
		if err := w.firewall.Apply(context.Background(), next(1)); err != nil {
			return err
		}
		i := 0
		for b.Loop() {
			if err := w.firewall.Apply(context.Background(), next(i)); err != nil {
				return err
			}
			i++
		}
		return nil
	})
}

// BenchmarkApply50000 puts 50,000 entries into empty sets, and empties them.
func BenchmarkApply50000(b *testing.B) {
	all, _ := manyGrants(50_000)
	benchmarkApply(b, func(i int) overlay.FirewallConfig {
		if i%2 == 0 {
			return all
		}
		return config()
	})
}

// BenchmarkApplyOneOf50000 adds or withdraws one of 50,000 entries.
func BenchmarkApplyOneOf50000(b *testing.B) {
	all, less := manyGrants(50_000)
	benchmarkApply(b, func(i int) overlay.FirewallConfig {
		if i%2 == 0 {
			return less
		}
		return all
	})
}

// BenchmarkGuardIdle is what a look of the guard costs when nothing changed.
func BenchmarkGuardIdle(b *testing.B) {
	all, _ := manyGrants(50_000)
	w := newWorld(b)
	w.fence(b)
	w.here.must(b, func() error {
		if err := w.firewall.Apply(context.Background(), all); err != nil {
			return err
		}
		if err := w.firewall.Check(context.Background()); err != nil {
			return err
		}
		for b.Loop() {
			if drift, err := w.firewall.guardOnce(context.Background(), false); drift != nil || err != nil {
				return fmt.Errorf("%w, %w", drift, err)
			}
		}
		return nil
	})
}

// BenchmarkLoopback sends packets over the loopback interface: of an agent to itself, the last of some, to another, which
// is allowed, and of nothing that has to do with the overlay.
func BenchmarkLoopback(b *testing.B) {
	for _, c := range []struct {
		name     string
		agents   int
		src, dst string
	}{
		{"fence-other", 0, "127.0.0.1", "127.0.0.1"}, {"other", 64, "127.0.0.1", "127.0.0.1"},
		{"self-of-1", 1, "10.201.2.0", "10.201.2.0"}, {"self-of-64", 64, "10.201.2.63", "10.201.2.63"}, {"pair-of-64", 64, "10.201.2.62", "10.201.2.63"},
	} {
		b.Run(c.name, func(b *testing.B) {
			w := newWorld(b)
			w.fence(b)
			cfg := overlay.FirewallConfig{Allow: between(netip.MustParseAddr(c.src), netip.MustParseAddr(c.dst), protoUDP, 9, 9)}
			for i := range c.agents {
				a := netip.AddrFrom4([4]byte{10, 201, 2, byte(i)})
				cfg.Local = append(cfg.Local, a)
				w.here.sh(b, "ip addr add "+single(a).String()+" dev bulkhead0")
			}
			var out net.Conn
			w.here.must(b, func() (err error) {
				if err := w.firewall.Apply(b.Context(), cfg); err != nil {
					return err
				}
				in, err := net.ListenPacket("udp", c.dst+":9")
				if err != nil {
					return err
				}
				b.Cleanup(func() { in.Close() })
				out, err = net.DialUDP("udp", &net.UDPAddr{IP: net.ParseIP(c.src)}, in.LocalAddr().(*net.UDPAddr))
				return err
			})
			defer out.Close()
			for b.Loop() {
				if _, err := out.Write([]byte("packet")); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
