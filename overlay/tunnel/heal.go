package tunnel

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/device"
)

const (
	healInterval = 5 * time.Second
	// silentTicks without an answer are longer than WireGuard takes to notice and try a new handshake.
	silentTicks = 4
	// A handshake older than this did not come from an initiation that arrived since the last tick.
	answeredWithin = 2 * healInterval
)

// healer looks for peers that WireGuard alone would not find again. It is not safe for concurrent use.
type healer struct {
	tunnel *Tunnel
	seen   map[[32]byte]silence
}

type silence struct {
	rx, tx uint64
	ticks  int // in a row with something sent and nothing received
}

// tick resets the path of each peer that does not answer at the address it was last heard at, so that
// the next handshake is tried at all its addresses; and opens a handshake with each that tries in vain to
// open one, as a host does after its clock was ahead: its initiations look like replays here.
func (h *healer) tick() error {
	t := h.tunnel
	t.mu.Lock()
	defer t.mu.Unlock()
	current, err := t.state()
	if err != nil {
		return err
	}
	knocks := t.bind.knocks.take()
	seen := make(map[[32]byte]silence, len(current))
	for host, key := range t.peers {
		state := current[key]
		if state == nil {
			continue
		}
		s := h.seen[key].next(state)
		if s.ticks >= silentTicks && !strings.HasPrefix(state.endpoint, hostPrefix) {
			t.logger.Info("path lost, trying all addresses", "host", host, "path", state.endpoint)
			t.reset(host)
			s.ticks = 0
		}
		seen[key] = s
		if len(knocks) > 0 && time.Since(state.handshake) > answeredWithin {
			h.answer(host, key, state.endpoint, knocks)
		}
	}
	h.seen = seen
	return nil
}

func (s silence) next(state *peerState) silence {
	n := silence{rx: state.rx, tx: state.tx}
	if state.rx == s.rx && state.tx > s.tx {
		n.ticks = s.ticks + 1
	} else if state.rx == s.rx {
		n.ticks = s.ticks // idle: neither better nor worse
	}
	return n
}

func (h *healer) answer(host string, key [32]byte, endpoint string, knocks []netip.AddrPort) {
	paths := h.tunnel.paths.lookup(host)
	if !slices.ContainsFunc(knocks, func(a netip.AddrPort) bool {
		return a.String() == endpoint || paths != nil && paths.has(canonical(a))
	}) {
		return
	}
	peer := h.tunnel.device.LookupPeer(device.NoisePublicKey(key))
	if peer == nil {
		return
	}
	if err := peer.SendHandshakeInitiation(false); err != nil {
		h.tunnel.logger.Debug("handshake not opened", "host", host, "error", err)
	}
}
