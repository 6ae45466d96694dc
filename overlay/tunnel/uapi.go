package tunnel

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/bulkhead-mesh/bulkhead/overlay"
)

// peerState is a peer as the device reports it.
type peerState struct {
	endpoint   string
	allowed    []netip.Addr // sorted
	handshake  time.Time    // zero if there was none
	rx, tx     uint64       // bytes
	unexpected bool         // has an allowed prefix that is not one address
}

// parseState reads the device's answer to a UAPI get.
func parseState(text string) (map[[32]byte]*peerState, error) {
	peers := map[[32]byte]*peerState{}
	var peer *peerState
	var seconds, nanoseconds int64
	scanner := bufio.NewScanner(strings.NewReader(text))
	for scanner.Scan() {
		name, value, ok := strings.Cut(scanner.Text(), "=")
		if !ok {
			return nil, fmt.Errorf("parse device state: a line without \"=\"") // not quoted: it may hold a key
		}
		if name == "public_key" {
			key, err := parseKey(value)
			if err != nil {
				return nil, err
			}
			peer = &peerState{}
			peers[key] = peer
			continue
		}
		if peer == nil {
			continue // about the device itself
		}
		var err error
		switch name {
		case "endpoint":
			peer.endpoint = value
		case "last_handshake_time_sec":
			seconds, err = strconv.ParseInt(value, 10, 64)
		case "last_handshake_time_nsec":
			nanoseconds, err = strconv.ParseInt(value, 10, 64)
			if seconds != 0 || nanoseconds != 0 {
				peer.handshake = time.Unix(seconds, nanoseconds)
			}
		case "rx_bytes":
			peer.rx, err = strconv.ParseUint(value, 10, 64)
		case "tx_bytes":
			peer.tx, err = strconv.ParseUint(value, 10, 64)
		case "allowed_ip":
			err = peer.allow(value)
		}
		if err != nil {
			return nil, fmt.Errorf("parse device state: %s: %w", name, err)
		}
	}
	if err := scanner.Err(); err != nil {
		return nil, fmt.Errorf("parse device state: %w", err)
	}
	for _, p := range peers {
		slices.SortFunc(p.allowed, netip.Addr.Compare)
	}
	return peers, nil
}

func parseKey(s string) ([32]byte, error) {
	raw, err := hex.DecodeString(s)
	if err != nil || len(raw) != 32 {
		return [32]byte{}, fmt.Errorf("parse device state: public_key is not 32 bytes of hexadecimal")
	}
	return [32]byte(raw), nil
}

func (p *peerState) allow(value string) error {
	prefix, err := netip.ParsePrefix(value)
	if err != nil {
		return err
	}
	if !prefix.IsSingleIP() {
		p.unexpected = true
		return nil
	}
	p.allowed = append(p.allowed, prefix.Addr())
	return nil
}

// diff writes the UAPI set that turns the current peers into the wanted ones, empty if they are
// equal. What is withdrawn comes first: peers to remove, then peers that lose an address, then others.
func diff(current map[[32]byte]*peerState, want []overlay.TunnelPeer) string {
	var text strings.Builder
	wanted := make(map[[32]byte]bool, len(want))
	for i := range want {
		wanted[want[i].PublicKey] = true
	}
	var gone []string
	for key := range current {
		if !wanted[key] {
			gone = append(gone, hex.EncodeToString(key[:]))
		}
	}
	slices.Sort(gone)
	for _, key := range gone {
		fmt.Fprintf(&text, "public_key=%s\nremove=true\n", key)
	}
	var later strings.Builder
	for i := range want {
		peer := &want[i]
		allowed := sortedAddrs(peer.AllowedIPs)
		have, exists := current[peer.PublicKey]
		switch {
		case !exists:
			writePeer(&later, peer, allowed, true)
		case have.unexpected || !subset(have.allowed, allowed):
			writePeer(&text, peer, allowed, false)
		case len(have.allowed) != len(allowed):
			writePeer(&later, peer, allowed, false)
		}
	}
	text.WriteString(later.String())
	return text.String()
}

func writePeer(text *strings.Builder, peer *overlay.TunnelPeer, allowed []netip.Addr, create bool) {
	fmt.Fprintf(text, "public_key=%s\n", hex.EncodeToString(peer.PublicKey[:]))
	if create {
		fmt.Fprintf(text, "endpoint=%s%s\n", hostPrefix, peer.Host)
	} else {
		text.WriteString("update_only=true\n")
	}
	text.WriteString("replace_allowed_ips=true\n")
	for _, a := range allowed {
		fmt.Fprintf(text, "allowed_ip=%s/%d\n", a, a.BitLen())
	}
}

// endpointReset makes WireGuard address the host again instead of where it last heard of it.
func endpointReset(key [32]byte, host string) string {
	return fmt.Sprintf("public_key=%s\nupdate_only=true\nendpoint=%s%s\n", hex.EncodeToString(key[:]), hostPrefix, host)
}

func sortedAddrs(addrs []netip.Addr) []netip.Addr {
	sorted := make([]netip.Addr, len(addrs))
	for i, a := range addrs {
		sorted[i] = a.Unmap()
	}
	slices.SortFunc(sorted, netip.Addr.Compare)
	return slices.Compact(sorted)
}

// subset says whether every element of a is in b; both are sorted.
func subset(a, b []netip.Addr) bool {
	for _, addr := range a {
		if _, found := slices.BinarySearchFunc(b, addr, netip.Addr.Compare); !found {
			return false
		}
	}
	return true
}
