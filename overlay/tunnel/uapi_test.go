package tunnel

import (
	"encoding/hex"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-mesh/bulkhead/overlay"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// model is what a device would have after UAPI sets: the owner of each address, by key.
type model struct {
	peers  map[[32]byte]bool
	owners map[netip.Addr][32]byte
}

// set interprets text as the device does and calls step after each line.
func (m *model) set(text string, step func()) {
	var key [32]byte
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		switch name {
		case "public_key":
			raw, _ := hex.DecodeString(value)
			key = [32]byte(raw)
			m.peers[key] = true
		case "remove":
			delete(m.peers, key)
			m.dropOwned(key)
		case "replace_allowed_ips":
			m.dropOwned(key)
		case "allowed_ip":
			m.owners[netip.MustParsePrefix(value).Addr()] = key
		}
		step()
	}
}

func (m *model) dropOwned(key [32]byte) {
	maps.DeleteFunc(m.owners, func(_ netip.Addr, owner [32]byte) bool { return owner == key })
}

func (m *model) state() map[[32]byte]*peerState {
	state := map[[32]byte]*peerState{}
	for key := range m.peers {
		state[key] = &peerState{}
	}
	for addr, key := range m.owners {
		state[key].allowed = append(state[key].allowed, addr)
	}
	for _, p := range state {
		slices.SortFunc(p.allowed, netip.Addr.Compare)
	}
	return state
}

func drawPeers(t *rapid.T, label string) []overlay.TunnelPeer {
	var peers []overlay.TunnelPeer
	owners := map[int]int{}
	for addr := range 6 {
		owners[addr] = rapid.IntRange(-1, 3).Draw(t, label+" owner")
	}
	for host := range 4 {
		if !rapid.Bool().Draw(t, label+" has host") {
			continue
		}
		p := overlay.TunnelPeer{Host: fmt.Sprint("h", host), PublicKey: [32]byte{byte(host + 1), byte(rapid.IntRange(0, 1).Draw(t, "key"))}}
		for addr, owner := range owners {
			if owner == host {
				p.AllowedIPs = append(p.AllowedIPs, netip.AddrFrom4([4]byte{10, 0, 0, byte(addr)}))
			}
		}
		peers = append(peers, p)
	}
	return peers
}

// Whatever the two states: the set leads from one to the other, never gives an address to a peer that
// has it in neither, withdraws before it grants, and is empty the second time.
func TestDiffLeadsToWanted(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		before, want := drawPeers(t, "before"), drawPeers(t, "want")
		m := &model{peers: map[[32]byte]bool{}, owners: map[netip.Addr][32]byte{}}
		m.set(diff(nil, before), func() {})
		old := maps.Clone(m.owners)
		wanted := map[netip.Addr][32]byte{}
		for _, p := range want {
			for _, a := range p.AllowedIPs {
				wanted[a] = p.PublicKey
			}
		}
		text := diff(m.state(), want)
		granted := false
		m.set(text, func() {
			for addr, key := range m.owners {
				if old[addr] != key && wanted[addr] != key {
					t.Fatalf("address %s was with a peer that has it neither before nor after:\n%s", addr, text)
				}
				granted = granted || wanted[addr] == key && old[addr] != key
			}
		})
		if !maps.Equal(m.owners, wanted) {
			t.Fatalf("owners are %v, want %v, by\n%s", m.owners, wanted, text)
		}
		if removal := strings.LastIndex(text, "remove=true"); removal > strings.Index(text+"allowed_ip=", "allowed_ip=") {
			t.Fatalf("an address is granted before a peer is removed:\n%s", text)
		}
		if again := diff(m.state(), want); again != "" {
			t.Fatalf("the second set is not empty:\n%s", again)
		}
	})
}

func TestParseState(t *testing.T) {
	key := [32]byte{7}
	text := "private_key=" + strings.Repeat("ab", 32) + "\nlisten_port=51900\n" +
		"public_key=" + hex.EncodeToString(key[:]) + "\npreshared_key=" + strings.Repeat("00", 32) + "\nprotocol_version=1\n" +
		"endpoint=192.0.2.1:51900\nlast_handshake_time_sec=5\nlast_handshake_time_nsec=6\ntx_bytes=8\nrx_bytes=9\n" +
		"persistent_keepalive_interval=0\nallowed_ip=10.0.0.2/32\nallowed_ip=10.0.0.1/32\nallowed_ip=fd00::1/128\n"
	got, err := parseState(text)
	if err != nil {
		t.Fatal(err)
	}
	want := map[[32]byte]*peerState{key: {
		endpoint: "192.0.2.1:51900", handshake: time.Unix(5, 6), tx: 8, rx: 9,
		allowed: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::1")},
	}}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(peerState{}), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
		t.Error(d)
	}
}

func TestParseStateRefusesWithoutQuoting(t *testing.T) {
	for _, text := range []string{"private_key", "public_key=zz", "public_key=" + strings.Repeat("00", 32) + "\nrx_bytes=-1"} {
		_, err := parseState(text)
		if err == nil {
			t.Errorf("%q was accepted", text)
		} else if strings.Contains(err.Error(), "private") {
			t.Errorf("error shows device lines: %v", err)
		}
	}
}
