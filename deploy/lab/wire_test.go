package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-mesh/bulkhead/daemon"
	"github.com/bulkhead-mesh/bulkhead/overlay"
	"github.com/bulkhead-mesh/bulkhead/overlay/tunnel"
	"github.com/bulkhead-mesh/bulkhead/platform"
	"github.com/bulkhead-mesh/bulkhead/platform/kv"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

const (
	overlayPort   = 51900
	controlPort   = 7443
	overlayDevice = "bulkhead0"
)

// wireRules say what may be on the underlay.
type wireRules struct {
	overlay []netip.Prefix // never in an outer header
	control *Host
}

// wireRulesOf takes the overlay's ranges from an agent's addresses.
func wireRulesOf(m *Mesh, agents map[string]segment.Agent) wireRules {
	rules := wireRules{control: m.Hosts[0].Host}
	for _, a := range agents {
		for i, bits := range []int{16, 48} { // IPv4, then IPv6
			rules.overlay = append(rules.overlay, netip.PrefixFrom(a.Addresses[i], bits).Masked())
		}
	}
	return rules
}

// fault says why a packet may not be there; it is empty for one that may.
func (r wireRules) fault(p Packet) string {
	if bytes.Contains(p.Raw, []byte(probeWord)) {
		return "an agent's words in clear"
	}
	for _, prefix := range r.overlay {
		if prefix.Contains(p.Src) || prefix.Contains(p.Dst) {
			return "an overlay address in clear"
		}
	}
	switch {
	case p.EtherType == unix.ETH_P_ARP, isNeighbourDiscovery(p):
		return ""
	case p.Proto == unix.IPPROTO_TCP && (r.control.has(p.Src) && p.SrcPort == controlPort || r.control.has(p.Dst) && p.DstPort == controlPort):
		return ""
	case p.Proto == unix.IPPROTO_UDP && p.SrcPort == overlayPort && p.DstPort == overlayPort:
		if p.WireGuard() == 0 && !isQUIC(p) {
			return "neither WireGuard nor QUIC on the overlay's port"
		}
		return ""
	}
	return "foreign"
}

func isQUIC(p Packet) bool { return len(p.Payload) > 0 && p.Payload[0] >= 0x40 }

// isNeighbourDiscovery includes the reports by which hosts subscribe to it, behind a hop-by-hop header.
func isNeighbourDiscovery(p Packet) bool {
	if p.EtherType != unix.ETH_P_IPV6 || len(p.Payload) < 9 {
		return false
	}
	switch p.Proto {
	case unix.IPPROTO_ICMPV6:
		return p.Payload[0] >= 133 && p.Payload[0] <= 137
	case unix.IPPROTO_HOPOPTS:
		return p.Payload[0] == unix.IPPROTO_ICMPV6 && p.Payload[8] == 143
	}
	return false
}

func startSniff(t *testing.T, h *Host) *Sniffer {
	t.Helper()
	s, err := h.Links()[0].Sniff()
	must(t, err)
	return s
}

// TestSnifferSeesCleartext keeps TestWire from passing for want of eyes.
func TestSnifferSeesCleartext(t *testing.T) {
	hosts := lan(t, 2)
	server, err := hosts[1].Serve(hosts[1].Addresses(), 5001)
	must(t, err)
	t.Cleanup(server.Close)
	rules := wireRules{control: hosts[0]}
	for _, port := range []segment.Port{{Proto: segment.TCP, Number: 5001}, {Proto: segment.UDP, Number: 5001}, {Proto: segment.ICMP}} {
		for i, src := range hosts[0].Addresses() {
			s := startSniff(t, hosts[0])
			if !hosts[0].Reaches(t.Context(), src, hosts[1].Addresses()[i], port) {
				t.Errorf("%s from %s does not arrive", port, src)
			}
			packets, err := s.Close()
			must(t, err)
			found := 0
			for _, p := range packets {
				if rules.fault(p) == "an agent's words in clear" {
					found++
				}
			}
			if found != 2 { // there and back
				t.Errorf("%s from %s: found in %d packets of %v", port, src, found, packets)
			}
		}
	}
}

// TestWire demands that agents' packets cross the underlay as WireGuard alone, and only between approved hosts.
func TestWire(t *testing.T) {
	m := newTestMesh(t, Spec{}, fiveHosts[1], fiveHosts[3], fiveHosts[4])
	agents := agentsOf(t, m)
	serveAgents(t, m, agents, 5001, 5002)
	policy, err := segment.Parse([]byte(matrixPolicy))
	must(t, err)
	sniffers := map[*Node]*Sniffer{}
	for _, n := range m.Hosts[1:] {
		sniffers[n] = startSniff(t, n.Host)
	}
	must(t, m.Apply(t.Context(), matrixPolicy))
	inside, err := m.node("h2").Sniff(overlayDevice)
	must(t, err)
	checkMatrix(t, m, policy, agents, []segment.Port{
		{Proto: segment.TCP, Number: 5001}, {Proto: segment.TCP, Number: 5002}, {Proto: segment.UDP, Number: 5001}, {Proto: segment.ICMP},
	})
	spoken, err := inside.Close()
	must(t, err)
	if !anyPacket(spoken, func(p Packet) bool { return bytes.Contains(p.Raw, []byte(probeWord)) }) {
		t.Error("the probes' words were not spoken inside the overlay: this test sees nothing")
	}
	seen := map[*Node][]Packet{}
	for n, s := range sniffers {
		seen[n], err = s.Close()
		must(t, err)
		checkWire(t, wireRulesOf(m, agents), n, seen[n])
	}
	t.Run("only approved hosts speak WireGuard", func(t *testing.T) { checkPairs(t, m, policy, agents, seen) })
	t.Run("an unapproved host gets no handshake", func(t *testing.T) { checkThief(t, m, agents) })
}

func anyPacket(packets []Packet, is func(Packet) bool) bool {
	for _, p := range packets {
		if is(p) {
			return true
		}
	}
	return false
}

// checkWire demands of one host's cable that nothing is on it which may not be, and that the test saw what must be.
func checkWire(t *testing.T, rules wireRules, n *Node, packets []Packet) {
	t.Helper()
	for _, p := range packets {
		if fault := rules.fault(p); fault != "" {
			t.Errorf("on the cable of %s: %s: %s", n.Name, fault, p)
		}
	}
	for what, is := range map[string]func(Packet) bool{
		"handshake": func(p Packet) bool { return p.WireGuard() == 1 },
		"answer":    func(p Packet) bool { return p.WireGuard() == 2 },
		"data":      func(p Packet) bool { return p.WireGuard() == 4 },
		"QUIC":      isQUIC,
	} {
		if !anyPacket(packets, is) {
			t.Errorf("on the cable of %s: no %s among %d packets", n.Name, what, len(packets))
		}
	}
}

// checkPairs demands WireGuard between two hosts if the policy has a rule for their agents, in either direction.
func checkPairs(t *testing.T, m *Mesh, policy *segment.Policy, agents map[string]segment.Agent, seen map[*Node][]Packet) {
	port := segment.Port{Proto: segment.TCP, Number: 5001}
	for n, packets := range seen {
		status, err := n.Status(t.Context())
		must(t, err)
		peers := map[string]bool{}
		for _, p := range status.Peers {
			peers[p.Name] = true
		}
		for _, other := range m.Hosts {
			if other == n {
				continue
			}
			a, b := agents[n.Agent], agents[other.Agent] // the control host has none, which no segment matches
			want := policy.Decide(a, b, port, time.Now()).Allow || policy.Decide(b, a, port, time.Now()).Allow
			spoke := anyPacket(packets, func(p Packet) bool { return p.Between(n.Host, other.Host) && p.WireGuard() != 0 })
			if spoke != want || peers[other.Name] != want {
				t.Errorf("%s and %s: WireGuard %v, peers %v, policy %v", n.Name, other.Name, spoke, peers[other.Name], want)
			}
		}
	}
}

// checkThief has root on vault1's host ask other hosts for a handshake with the host's real key. The host of
// store1, an approved one, answers; the host of plan1 does not.
func checkThief(t *testing.T, m *Mesh, agents map[string]segment.Agent) {
	thief, approved, victim := m.node("h4"), m.node("h3"), m.node("h2")
	ctx, cancel := context.WithTimeout(t.Context(), patient)
	defer cancel()
	must(t, thief.Daemon.Stop(ctx))
	peer := func(n *Node) overlay.TunnelPeer {
		public, err := tunnel.PublicKey(wireKey(t, n))
		must(t, err)
		return overlay.TunnelPeer{
			Host: n.Name, PublicKey: public, AllowedIPs: agents[n.Agent].Addresses,
			Endpoints: []netip.AddrPort{netip.AddrPortFrom(n.Addresses()[0], overlayPort)},
		}
	}
	device := thieve(t, thief)
	s := startSniff(t, thief.Host)
	must(t, device.Apply(ctx, overlay.TunnelConfig{Peers: []overlay.TunnelPeer{peer(victim), peer(approved)}}))
	from := netip.AddrPortFrom(agents[thief.Agent].Addresses[0], 5001)
	for _, n := range []*Node{victim, approved} {
		must(t, thief.Inject(overlayDevice, nil, ForgeUDP(from, netip.AddrPortFrom(agents[n.Agent].Addresses[0], 5001), []byte(probeWord))))
	}
	count := func(packets []Packet, n *Node, kind byte) (found int) {
		for _, p := range packets {
			if p.Between(thief.Host, n.Host) && p.WireGuard() == kind {
				found++
			}
		}
		return found
	}
	// WireGuard asks again after five seconds without an answer.
	must(t, Eventually(ctx, patient, func() error {
		packets := s.Packets()
		if n := count(packets, approved, 2); n == 0 {
			return fmt.Errorf("the approved host has not answered")
		}
		if n := count(packets, victim, 1); n < 2 && count(packets, victim, 2) == 0 {
			return fmt.Errorf("the victim was asked %d times", n)
		}
		return nil
	}))
	packets, err := s.Close()
	must(t, err)
	if answers, data := count(packets, victim, 2), count(packets, victim, 4); answers+data > 0 {
		t.Errorf("an unapproved host got %d answers and %d data packets", answers, data)
	}
}

// wireKey reads a host's private WireGuard key out of a copy of its store: the store itself has one user at a time.
func wireKey(t *testing.T, n *Node) [32]byte {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(n.StateDir(), "host.db"))
	must(t, err)
	path := filepath.Join(t.TempDir(), "host.db")
	must(t, os.WriteFile(path, content, 0o600))
	store, err := kv.Open(path, time.Second)
	must(t, err)
	defer store.Close()
	var c daemon.Credentials
	must(t, store.View(func(tx overlay.Tx) error { return json.Unmarshal(tx.Get("self", "credentials"), &c) }))
	return c.WireGuard
}

// thieve runs a tunnel of our own in place of the host's daemon, with its key and port.
func thieve(t *testing.T, n *Node) *tunnel.Tunnel {
	t.Helper()
	key := wireKey(t, n)
	var device *tunnel.Tunnel
	must(t, n.Do(func() error {
		tun, err := platform.OpenTUN(overlayDevice)
		if err != nil {
			return err
		}
		device, err = tunnel.New(tunnel.Options{TUN: tun, MTU: 1420, Port: overlayPort, PrivateKey: key, Logger: slog.New(slog.DiscardHandler)})
		return err
	}))
	t.Cleanup(device.Close)
	out, err := n.Host.Run(t.Context(), "ip", "link", "set", overlayDevice, "up")
	must(t, err)
	must(t, out.Err())
	return device
}
