package lab

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"github.com/bulkhead-mesh/bulkhead/control/api"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

const (
	spoofPort  = 5001 // approved from both planners
	spoofTimes = 10   // packets of each kind
)

// spoofEar hears UDP on a host, and from whom.
type spoofEar struct {
	done sync.WaitGroup
	mu   sync.Mutex
	from map[netip.Addr]int
}

func listenFor(t *testing.T, h *Host, at []netip.Addr) *spoofEar {
	t.Helper()
	ear := &spoofEar{from: map[netip.Addr]int{}}
	t.Cleanup(ear.done.Wait)
	must(t, h.Do(func() error {
		for _, addr := range at {
			conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, spoofPort)))
			if err != nil {
				return err
			}
			t.Cleanup(func() { _ = conn.Close() })
			ear.done.Go(func() { ear.hear(conn) })
		}
		return nil
	}))
	return ear
}

func (e *spoofEar) hear(conn *net.UDPConn) {
	buf := make([]byte, 2048)
	for {
		_, from, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		e.mu.Lock()
		e.from[from.Addr().Unmap()]++
		e.mu.Unlock()
	}
}

func (e *spoofEar) heard(from netip.Addr) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.from[from]
}

// until has send repeated until a packet more is heard from an address: what was sent before has then been judged.
func (e *spoofEar) until(t *testing.T, from netip.Addr, send func() error) {
	t.Helper()
	before := e.heard(from)
	must(t, Eventually(t.Context(), patient, func() error {
		if e.heard(from) > before {
			return nil
		}
		if err := send(); err != nil {
			return err
		}
		return fmt.Errorf("nothing is heard from %s", from)
	}))
}

// TestSpoofing has root on an approved host forge packets below its own firewall. The planners are both approved,
// so that to the victim's firewall the one is as good as the other.
func TestSpoofing(t *testing.T) {
	m := newTestMesh(t, fiveHosts[:4]...)
	agents := agentsOf(t, m)
	attacker, other, victim := m.node("h2"), m.node("h3"), m.node("h4")
	target := agents["store1"].Addresses
	ear := listenFor(t, victim.Host, append(slices.Clone(target), victim.Addresses()...))
	must(t, m.Apply(t.Context(), matrixPolicy))

	for i, family := range []string{"IPv4", "IPv6"} {
		own, to := agents["plan1"].Addresses[i], netip.AddrPortFrom(target[i], spoofPort)
		loopback := []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}[i]
		t.Run("through the tunnel, "+family, func(t *testing.T) {
			throughTunnel(t, m, ear, own, to, map[string]netip.Addr{
				"another approved agent":          agents["plan2"].Addresses[i],
				"the victim itself":               target[i],
				"the attacker's underlay address": attacker.Addresses()[i],
				"another host's underlay address": other.Addresses()[i],
				"loopback":                        loopback,
			})
		})
		t.Run("in clear, "+family, func(t *testing.T) { inClear(t, m, ear, agents, i) })
	}
}

// throughTunnel sends packets with forged sources to the victim by way of the attacker's own tunnel.
func throughTunnel(t *testing.T, m *Mesh, ear *spoofEar, own netip.Addr, to netip.AddrPort, forged map[string]netip.Addr) {
	attacker, victim := m.node("h2"), m.node("h4")
	honest := func() error {
		return attacker.Inject(overlayDevice, nil, ForgeUDP(netip.AddrPortFrom(own, 4000), to, []byte("honest")))
	}
	ear.until(t, own, honest) // packets sent in this way do arrive
	sniffer, err := victim.Sniff(overlayDevice)
	must(t, err)
	before := rxFrom(t, victim, attacker.Name)
	var sent uint64
	for what, src := range forged {
		heard := ear.heard(src)
		for range spoofTimes {
			packet := ForgeUDP(netip.AddrPortFrom(src, 4000), to, []byte("forged"))
			sent += uint64(len(packet))
			must(t, attacker.Inject(overlayDevice, nil, packet))
		}
		ear.until(t, own, honest)
		if n := ear.heard(src) - heard; n > 0 {
			t.Errorf("%d packets were heard from %s, %s", n, src, what)
		}
	}
	packets, err := sniffer.Close()
	must(t, err)
	if i := slices.IndexFunc(packets, func(p Packet) bool { return p.Dst == to.Addr() && p.Src != own }); i >= 0 {
		t.Errorf("WireGuard let through %s", packets[i])
	}
	if got := rxFrom(t, victim, attacker.Name) - before; got < sent {
		t.Errorf("the victim's WireGuard received %d bytes, want the %d that were forged", got, sent)
	}
}

func rxFrom(t *testing.T, n *Node, host string) uint64 {
	t.Helper()
	s, err := n.Status(t.Context())
	must(t, err)
	i := slices.IndexFunc(s.Peers, func(p api.Peer) bool { return p.Name == host })
	if i < 0 {
		t.Fatalf("%s has no peer %s", n.Name, host)
	}
	return s.Peers[i].RxBytes
}

// inClear sends packets with overlay addresses to the victim over the cable.
func inClear(t *testing.T, m *Mesh, ear *spoofEar, agents map[string]segment.Agent, family int) {
	attacker, victim := m.node("h2"), m.node("h4")
	device := attacker.Links()[0].Interface
	mac, err := victim.HardwareAddr(victim.Links()[0].Interface)
	must(t, err)
	send := func(src, dst netip.Addr) error {
		return attacker.Inject(device, mac, ForgeUDP(netip.AddrPortFrom(src, 4000), netip.AddrPortFrom(dst, spoofPort), []byte("clear")))
	}
	plain := attacker.Addresses()[family]
	ear.until(t, plain, func() error { return send(plain, victim.Addresses()[family]) }) // packets sent in this way do arrive

	target := agents["store1"].Addresses[family]
	for what, pair := range map[string][2]netip.Addr{
		"from an approved agent to an agent":             {agents["plan1"].Addresses[family], target},
		"from another approved agent to an agent":        {agents["plan2"].Addresses[family], target},
		"from an underlay address to an agent":           {plain, target},
		"from an approved agent to the underlay address": {agents["plan1"].Addresses[family], victim.Addresses()[family]},
		"from the victim's own agent to the same":        {target, target},
		"from any overlay address to an agent":           {agents["store1"].Addresses[family].Prev(), target},
	} {
		before, heard := spoofDrops(t, victim), ear.heard(pair[0])
		for range spoofTimes {
			must(t, send(pair[0], pair[1]))
		}
		if err := Eventually(t.Context(), patient, func() error {
			if n := spoofDrops(t, victim) - before; n < spoofTimes {
				return fmt.Errorf("%s: the victim counts %d drops, want %d", what, n, spoofTimes)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
		if n := ear.heard(pair[0]) - heard; n > 0 {
			t.Errorf("%s: %d packets were heard", what, n)
		}
	}
}

func spoofDrops(t *testing.T, n *Node) uint64 {
	t.Helper()
	s, err := n.Status(t.Context())
	must(t, err)
	return s.Drops["spoofed-source"]
}
