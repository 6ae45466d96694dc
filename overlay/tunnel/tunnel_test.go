package tunnel

import (
	"bytes"
	"context"
	"encoding/binary"
	"log/slog"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bulkhead-mesh/bulkhead/overlay"
	"go.uber.org/goleak"
	"golang.zx2c4.com/wireguard/tun/tuntest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// node is a tunnel with a TUN made of channels.
type node struct {
	*Tunnel
	name string
	addr netip.Addr
	wire *tuntest.ChannelTUN
	got  chan []byte // what came out of the tunnel
}

func startNode(t *testing.T, name string, number byte) *node {
	t.Helper()
	n := prepareNode(t, name, number)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		n.drain(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("run %s: %v", name, err)
		}
		<-drained
	})
	return n
}

// drain takes over what comes out: a real TUN never makes WireGuard wait.
func (n *node) drain(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case packet := <-n.wire.Inbound:
			select {
			case n.got <- packet:
			default:
			}
		}
	}
}

func prepareNode(t *testing.T, name string, number byte) *node {
	t.Helper()
	key, err := GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	wire := tuntest.NewChannelTUN()
	tunnel, err := newTunnel(wire.TUN(), Options{PrivateKey: key, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return &node{Tunnel: tunnel, name: name, addr: netip.AddrFrom4([4]byte{10, 0, 0, number}), wire: wire, got: make(chan []byte, 64)}
}

func (n *node) underlay() netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), n.Port())
}

func (n *node) peer(endpoints ...netip.AddrPort) overlay.TunnelPeer {
	return overlay.TunnelPeer{Host: n.name, PublicKey: n.own, AllowedIPs: []netip.Addr{n.addr}, Endpoints: endpoints}
}

func (n *node) apply(t *testing.T, peers ...overlay.TunnelPeer) {
	t.Helper()
	if err := n.Apply(t.Context(), overlay.TunnelConfig{Peers: peers}); err != nil {
		t.Fatal(err)
	}
}

// status returns the only peer's.
func (n *node) status(t *testing.T) overlay.PeerStatus {
	t.Helper()
	peers, err := n.Peers(t.Context())
	if err != nil || len(peers) != 1 {
		t.Fatalf("%s has peers %v, %v; want one", n.name, peers, err)
	}
	return peers[0]
}

var pings atomic.Uint32

// arrives says whether a packet from one agent address comes out at the other within the time.
func arrives(from, to *node, within time.Duration) bool {
	packet := tuntest.Ping(to.addr, from.addr)
	binary.BigEndian.PutUint32(packet[len(packet)-4:], pings.Add(1)) // each is told apart from the ones before
	deadline := time.After(within)
	select {
	case from.wire.Outbound <- packet:
	case <-deadline:
		return false
	}
	for {
		select {
		case got := <-to.got:
			if bytes.Equal(got, packet) {
				return true
			}
		case <-deadline:
			return false
		}
	}
}

func mustArrive(t *testing.T, from, to *node) {
	t.Helper()
	if !arrives(from, to, 10*time.Second) {
		t.Fatalf("no packet from %s reaches %s", from.name, to.name)
	}
}

func TestPacketsPassBetweenApprovedPeersOnly(t *testing.T) {
	a, b := startNode(t, "a", 1), startNode(t, "b", 2)
	a.apply(t, b.peer(b.underlay()))
	if arrives(a, b, 300*time.Millisecond) {
		t.Fatal("a packet of a host that is no peer was delivered")
	}
	b.apply(t, a.peer(a.underlay()))
	mustArrive(t, b, a)
	mustArrive(t, a, b)
	if s := a.status(t); s.Path != "direct "+b.underlay().String() || s.LastHandshake.IsZero() || s.RxBytes == 0 || s.TxBytes == 0 {
		t.Errorf("status of b at a is %+v", s)
	}
	b.apply(t)
	if arrives(a, b, 300*time.Millisecond) {
		t.Fatal("a packet of a removed peer was delivered")
	}
}

func TestApplyIsIdempotentAndMovesAddresses(t *testing.T) {
	n := startNode(t, "n", 1)
	x, y := netip.MustParseAddr("10.0.0.8"), netip.MustParseAddr("fd00::8")
	one := overlay.TunnelPeer{Host: "one", PublicKey: [32]byte{1}, AllowedIPs: []netip.Addr{x}}
	two := overlay.TunnelPeer{Host: "two", PublicKey: [32]byte{2}, AllowedIPs: []netip.Addr{y}}
	n.apply(t, one, two)
	one.AllowedIPs, two.AllowedIPs = two.AllowedIPs, one.AllowedIPs
	two.PublicKey = [32]byte{3}
	want := []overlay.TunnelPeer{one, two}
	n.apply(t, want...)
	state, err := n.state()
	if err != nil {
		t.Fatal(err)
	}
	if text := diff(state, want); text != "" || len(state) != 2 {
		t.Errorf("the device has %d peers and still lacks\n%s", len(state), text)
	}
}

func TestFailedApplyIsMadeGoodByTheNext(t *testing.T) {
	n := startNode(t, "n", 1)
	good := overlay.TunnelPeer{Host: "good", PublicKey: [32]byte{1}}
	n.apply(t, good)
	err := n.Apply(t.Context(), overlay.TunnelConfig{Peers: []overlay.TunnelPeer{{Host: "", PublicKey: [32]byte{2}}}})
	if err == nil {
		t.Fatal("a peer without a name was accepted")
	}
	if peers, err := n.Peers(t.Context()); err != nil || len(peers) != 0 {
		t.Errorf("%v, %v stay because of a refused peer", peers, err)
	}
	n.apply(t, good)
	if s := n.status(t); s.Host != "good" {
		t.Errorf("after a refused state the peer is %q", s.Host)
	}
	n.apply(t)
	if peers, err := n.Peers(t.Context()); err != nil || len(peers) != 0 {
		t.Errorf("peers are %v, %v", peers, err)
	}
}

// An authenticated packet from an address that nobody announced makes replies go there.
func TestRoaming(t *testing.T) {
	a, b := startNode(t, "a", 1), startNode(t, "b", 2)
	nowhere := netip.MustParseAddrPort("127.0.0.1:9")
	a.apply(t, b.peer(nowhere))
	b.apply(t, a.peer(a.underlay()))
	mustArrive(t, b, a)
	mustArrive(t, a, b)
	if s := a.status(t); s.Path != "direct "+b.underlay().String() {
		t.Errorf("path to b is %q", s.Path)
	}
}

// Of several candidates the one that answers is used.
func TestHandshakeFindsTheLivingCandidate(t *testing.T) {
	a, b := startNode(t, "a", 1), startNode(t, "b", 2)
	a.apply(t, b.peer(netip.MustParseAddrPort("127.0.0.1:9"), b.underlay()))
	b.apply(t, a.peer())
	mustArrive(t, a, b)
}

func TestSetPathWinsOverWhatWireGuardHeard(t *testing.T) {
	a, b := startNode(t, "a", 1), startNode(t, "b", 2)
	a.apply(t, b.peer(b.underlay()))
	b.apply(t, a.peer())
	mustArrive(t, a, b)
	elsewhere := netip.MustParseAddrPort("127.0.0.1:9")
	a.SetPath("b", elsewhere)
	if s := a.status(t); s.Path != "direct "+elsewhere.String() {
		t.Errorf("path to b is %q after QUIC has verified %s", s.Path, elsewhere)
	}
	mustArrive(t, b, a) // and an authenticated packet wins again
	if s := a.status(t); s.Path != "direct "+b.underlay().String() {
		t.Errorf("path to b is %q after a packet from %s", s.Path, b.underlay())
	}
	a.SetPath("unknown", elsewhere)
}

// A peer that went silent where it was last heard is tried at all its addresses again.
func TestHealerResetsSilentPath(t *testing.T) {
	a, b := startNode(t, "a", 1), startNode(t, "b", 2)
	a.apply(t, b.peer(b.underlay()))
	b.apply(t, a.peer())
	mustArrive(t, a, b)
	b.apply(t) // b does not answer any more
	h := healer{tunnel: a.Tunnel}
	for range silentTicks + 1 {
		select {
		case a.wire.Outbound <- tuntest.Ping(b.addr, a.addr):
		case <-time.After(5 * time.Second):
			t.Fatal("the TUN of a is not read")
		}
		until(t, "a has sent something", func() bool {
			state, err := a.state()
			return err == nil && state[b.own].tx > h.seen[b.own].tx
		})
		if err := h.tick(); err != nil {
			t.Fatal(err)
		}
	}
	state, err := a.state()
	if err != nil {
		t.Fatal(err)
	}
	if got := state[b.own].endpoint; got != "host:b" {
		t.Errorf("endpoint is %q, want the host", got)
	}
}

// A host whose clock was ahead cannot open a handshake any more, because its initiations look replayed.
// The other side then opens one.
func TestHealerAnswersRefusedInitiations(t *testing.T) {
	a, b := startNode(t, "a", 1), startNode(t, "b", 2)
	a.apply(t, b.peer(b.underlay()))
	b.apply(t, a.peer(a.underlay()))
	b.bind.knocks.add(a.underlay())
	if err := (&healer{tunnel: b.Tunnel}).tick(); err != nil {
		t.Fatal(err)
	}
	until(t, "b has opened a handshake", func() bool { return !b.status(t).LastHandshake.IsZero() })
}

func TestPacketConnSharesTheSocket(t *testing.T) {
	a, b := startNode(t, "a", 1), startNode(t, "b", 2)
	if _, err := b.PacketConn().WriteTo([]byte{0x40}, mustUDP(a.underlay())); err != nil {
		t.Fatal(err)
	}
	if err := a.PacketConn().SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if n, from, err := a.PacketConn().ReadFrom(make([]byte, 10)); err != nil || n != 1 || !strings.HasSuffix(from.String(), b.underlay().String()) {
		t.Errorf("got %d bytes from %v, %v", n, from, err)
	}
	for name, count := range a.Stats() {
		if count != 0 {
			t.Errorf("%s is %d", name, count)
		}
	}
}

func TestRunSaysWhenTheInterfaceIsGone(t *testing.T) {
	n := prepareNode(t, "n", 1)
	ended := make(chan error, 1)
	go func() { ended <- n.Run(t.Context()) }()
	n.device.Close() // as wireguard-go does when a TUN read fails
	select {
	case err := <-ended:
		if err == nil || !strings.Contains(err.Error(), "TUN") {
			t.Errorf("got %v, want an error that names the TUN", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("Run does not notice")
	}
}

func TestNewRefusesWhatCannotWork(t *testing.T) {
	logger := slog.New(slog.DiscardHandler)
	if _, err := newTunnel(tuntest.NewChannelTUN().TUN(), Options{Logger: logger}); err == nil || !strings.Contains(err.Error(), "private key is missing") {
		t.Errorf("no key: %v", err)
	}
	n := startNode(t, "n", 1)
	key, _ := GenerateKey()
	if _, err := newTunnel(tuntest.NewChannelTUN().TUN(), Options{Port: n.Port(), PrivateKey: key, Logger: logger}); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("port in use: %v", err)
	}
}

// until polls a condition for at most ten seconds.
func until(t *testing.T, what string, condition func() bool) {
	t.Helper()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	deadline := time.After(10 * time.Second)
	for !condition() {
		select {
		case <-ticker.C:
		case <-deadline:
			t.Fatalf("not so after ten seconds: %s", what)
		}
	}
}
