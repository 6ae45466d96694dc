package tunnel

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/bulkhead-mesh/bulkhead/overlay"
	"github.com/google/go-cmp/cmp"
)

// peerOf is a sound peer with addresses 10.0.0.N.
func peerOf(host string, key byte, numbers ...byte) overlay.TunnelPeer {
	p := overlay.TunnelPeer{Host: host, PublicKey: [32]byte{key}}
	for _, n := range numbers {
		p.AllowedIPs = append(p.AllowedIPs, netip.AddrFrom4([4]byte{10, 0, 0, n}))
	}
	return p
}

// given is what the device has: who may use which address.
func (n *node) given(t *testing.T) map[string]string {
	t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	state, err := n.state()
	if err != nil {
		t.Fatal(err)
	}
	if len(state) != len(n.peers) {
		t.Errorf("the device has %d peers, the tunnel knows of %d", len(state), len(n.peers))
	}
	given := map[string]string{}
	for host, key := range n.peers {
		var all []string
		for _, a := range state[key].allowed {
			all = append(all, a.String())
		}
		given[host] = strings.Join(all, " ")
	}
	return given
}

// Whatever is wrong with one peer: those that were withdrawn go, new ones come, and the error says what is wrong.
func TestOneBadPeerKeepsNoOtherFromChanging(t *testing.T) {
	n := startNode(t, "n", 1)
	good := map[string]string{"new": "10.0.0.3", "stays": "10.0.0.2"}
	own, nowhere := peerOf("bad", 0, 9), peerOf("bad", 7, 9)
	own.PublicKey = n.own
	nowhere.AllowedIPs = append(nowhere.AllowedIPs, netip.Addr{})
	with := func(more map[string]string) map[string]string {
		all := maps.Clone(good)
		maps.Copy(all, more)
		return all
	}
	for name, tt := range map[string]struct {
		bad   []overlay.TunnelPeer
		want  map[string]string
		fault []string
	}{
		"this host's key": {[]overlay.TunnelPeer{own}, good, []string{"host bad has the WireGuard key of this host"}},
		"one key of two": {[]overlay.TunnelPeer{peerOf("bad", 7, 8), peerOf("twin", 7, 9)}, good,
			[]string{"host bad has the WireGuard key of another", "host twin has the WireGuard key of another"}},
		"one name twice":   {[]overlay.TunnelPeer{peerOf("bad", 7, 8), peerOf("bad", 8, 9)}, good, []string{"host bad is given twice"}},
		"no name":          {[]overlay.TunnelPeer{peerOf("", 7)}, good, []string{`name "" is not valid`}},
		"a name with more": {[]overlay.TunnelPeer{peerOf("bad\nremove=true", 7)}, good, []string{`name "bad\nremove=true" is not valid`}},
		"no address":       {[]overlay.TunnelPeer{nowhere}, good, []string{"host bad: allowed address invalid IP is not valid"}},
		"one address of two": {[]overlay.TunnelPeer{peerOf("bad", 7, 7, 9), peerOf("twin", 8, 8, 9)}, with(map[string]string{"bad": "10.0.0.7", "twin": "10.0.0.8"}),
			[]string{"hosts bad and twin both have address 10.0.0.9"}},
		"one address of three": {[]overlay.TunnelPeer{peerOf("bad", 7, 9), peerOf("third", 9, 9), peerOf("twin", 8, 9)},
			with(map[string]string{"bad": "", "third": "", "twin": ""}), []string{"bad and third both have", "third and twin both have"}},
		"the address of one that is there": {[]overlay.TunnelPeer{peerOf("bad", 7, 2)}, map[string]string{"new": "10.0.0.3", "stays": "", "bad": ""},
			[]string{"hosts bad and stays both have address 10.0.0.2"}},
		"the address of one with a bad name": {[]overlay.TunnelPeer{peerOf("bad", 7, 2, 3), peerOf("bad", 8, 2)}, good, []string{"given twice"}},
	} {
		t.Run(name, func(t *testing.T) {
			n.apply(t, peerOf("gone", 1, 1), peerOf("stays", 2, 2))
			peers := slices.Concat(tt.bad, []overlay.TunnelPeer{peerOf("new", 3, 3), peerOf("stays", 2, 2)})
			before := make([]overlay.TunnelPeer, len(peers))
			for i, p := range peers {
				before[i] = p
				before[i].AllowedIPs = slices.Clone(p.AllowedIPs)
			}
			for range 2 { // the second time nothing is left to change, and just as much is wrong
				err := n.Apply(t.Context(), overlay.TunnelConfig{Peers: peers})
				for _, fault := range tt.fault {
					if err == nil || !strings.Contains(err.Error(), fault) {
						t.Errorf("got error %v, want one with %q", err, fault)
					}
				}
				if diff := cmp.Diff(tt.want, n.given(t)); diff != "" {
					t.Errorf("the device has (-want +got):\n%s", diff)
				}
			}
			if diff := cmp.Diff(before, peers, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
				t.Errorf("the caller's list was changed: %s", diff)
			}
		})
	}
}

// What is wrong does not outlast its cause.
func TestSharedAddressComesBackToItsOwner(t *testing.T) {
	n := startNode(t, "n", 1)
	if err := n.Apply(t.Context(), overlay.TunnelConfig{Peers: []overlay.TunnelPeer{peerOf("a", 1, 1, 2), peerOf("b", 2, 2)}}); err == nil {
		t.Error("two hosts were given one address")
	}
	n.apply(t, peerOf("a", 1, 1, 2))
	if diff := cmp.Diff(map[string]string{"a": "10.0.0.1 10.0.0.2"}, n.given(t)); diff != "" {
		t.Error(diff)
	}
}
