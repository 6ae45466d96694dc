package bind

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/bulkhead-mesh/bulkhead/overlay"
)

const (
	guarded = 1 // of kernelAgent.Flags

	maxSlots    = 64 // agents of one host, each with a mark
	markMask    = 0xff000000
	markBase    = 0x80
	maxPorts    = 16 // ranges of one destination
	prefixExtra = 32 // bits of the agent in front of an address
)

// state is the content of the maps.
type state struct {
	ids      map[string]uint32 // by agent
	next     uint32            // above all ids that there were
	settings kernelConfiguration
	agents   map[uint32]kernelAgent
	owners   map[kernelAddr]uint32
	cgroups  map[uint64]uint32
	users    map[uint32]uint32
	egress   map[kernelDestination]kernelPorts
	denied   []netip.AddrPort
}

func addrOf(a netip.Addr) kernelAddr {
	b := a.As16()
	var k kernelAddr
	for i := range k.W {
		k.W[i] = binary.NativeEndian.Uint32(b[4*i:])
	}
	return k
}

func addrFrom(k kernelAddr) netip.Addr {
	var b [16]byte
	for i, w := range k.W {
		binary.NativeEndian.PutUint32(b[4*i:], w)
	}
	return netip.AddrFrom16(b).Unmap()
}

// network is a prefix as address and mask.
func network(p netip.Prefix) (net, mask kernelAddr) {
	var b [16]byte
	for i := range mappedBits(p) {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return addrOf(p.Masked().Addr()), addrOf(netip.AddrFrom16(b))
}

func mappedBits(p netip.Prefix) int {
	if p.Addr().Is4() {
		return p.Bits() + 96
	}
	return p.Bits()
}

// nowhere is a range that no address is in: its mask hides what tells an address from it.
var nowhere = kernelAddr{W: [4]uint32{^uint32(0), ^uint32(0), ^uint32(0), ^uint32(0)}}

// fixed are the settings that do not change while a binding lives.
func fixed(o Options, netns uint64) (kernelConfiguration, error) {
	c := kernelConfiguration{Netns: netns, Net4: nowhere, Net6: nowhere, Resolver4: nowhere, Resolver6: nowhere}
	for _, p := range o.Prefixes {
		if p.Addr().Is4() {
			c.Net4, c.Mask4 = network(p)
		} else {
			c.Net6, c.Mask6 = network(p)
		}
	}
	for _, a := range o.Resolvers {
		if a.Is4() {
			c.Resolver4 = addrOf(a)
		} else {
			c.Resolver6 = addrOf(a)
		}
	}
	if len(o.OwnPorts) > len(c.OwnPorts) {
		return c, fmt.Errorf("%d own ports, at most %d", len(o.OwnPorts), len(c.OwnPorts))
	}
	copy(c.OwnPorts[:], o.OwnPorts)
	return c, nil
}

var errTooManyAgents = errors.New("more agents than marks")

// desire is the state that config asks for, and learned adds to, from the one before, whose ids and marks stay.
func desire(old state, config overlay.BindingConfig, learned map[string]*lessons, now time.Time) (state, error) {
	s := state{
		ids: make(map[string]uint32), next: max(old.next, 1), settings: old.settings, denied: old.denied,
		agents: make(map[uint32]kernelAgent), owners: make(map[kernelAddr]uint32), cgroups: make(map[uint64]uint32),
		users: make(map[uint32]uint32), egress: make(map[kernelDestination]kernelPorts),
	}
	s.settings.Host, s.settings.Busy, s.settings.Guards, s.settings.ByUser = 0, 0, 0, 0
	for _, b := range config.Agents {
		id := old.idOf(b)
		if id == 0 {
			id, s.next = s.next, s.next+1
		}
		s.ids[b.Agent] = id
	}
	for _, b := range config.Agents {
		if err := s.add(old, b); err != nil {
			return s, fmt.Errorf("bind agent %s: %w", b.Agent, err)
		}
		if b.Host {
			continue
		}
		allow := b.Egress
		if l := learned[b.Agent]; l != nil && b.Guarded {
			allow = slices.Concat(allow, l.open(now))
		}
		maps.Copy(s.egress, destinations(s.ids[b.Agent], allow, now))
	}
	return s, nil
}

// idOf is the agent's id, if it has one: of an adopted state, which has no names, that of its address.
func (s *state) idOf(b overlay.Binding) uint32 {
	if id, ok := s.ids[b.Agent]; ok || len(s.ids) > 0 {
		return id
	}
	for _, a := range b.Addresses {
		if id, ok := s.owners[addrOf(a)]; ok {
			return id
		}
	}
	return 0
}

func (s *state) add(old state, b overlay.Binding) error {
	id := s.ids[b.Agent]
	agent := kernelAgent{Mark: old.agents[id].Mark}
	for _, a := range b.Addresses {
		if a.Is4() {
			agent.Ip4 = addrOf(a)
		} else {
			agent.Ip6 = addrOf(a)
		}
		s.owners[addrOf(a)] = id
	}
	if agent.Mark == 0 {
		slot, err := s.freeSlot(old)
		if err != nil {
			return err
		}
		agent.Mark = uint32(markBase|slot) << 24
	}
	if b.Host {
		s.settings.Host = id
	} else {
		s.settings.Busy = 1
		if b.Guarded {
			agent.Flags |= guarded
			s.settings.Guards = 1
		}
		for _, g := range b.Cgroups {
			s.cgroups[g] = id
		}
		for _, u := range b.UIDs {
			s.users[u], s.settings.ByUser = id, 1
		}
	}
	s.agents[id] = agent
	return nil
}

// freeSlot is a mark that nobody has, not even an agent that goes now.
func (s *state) freeSlot(old state) (int, error) {
	taken := make(map[uint32]bool)
	for _, agents := range []map[uint32]kernelAgent{old.agents, s.agents} {
		for _, a := range agents {
			taken[a.Mark>>24&^markBase] = true
		}
	}
	for slot := range maxSlots {
		if !taken[uint32(slot)] {
			return slot, nil
		}
	}
	return 0, errTooManyAgents
}

// alone are destinations that a broader rule does not open: the link's own, and clouds' metadata.
var alone = []netip.Prefix{netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("fd00:ec2::254/128")}

// destinations are an agent's egress list as a trie has it, which finds the longest prefix alone: each prefix has the
// ports of all that cover it.
func destinations(agent uint32, allow []overlay.EgressAllow, now time.Time) map[kernelDestination]kernelPorts {
	open := make(map[netip.Prefix][]overlay.EgressAllow)
	for _, p := range alone {
		open[p] = nil
	}
	for _, a := range allow {
		open[a.Prefix] = append(open[a.Prefix], a)
	}
	var broad []netip.Prefix // few: names are opened address by address
	for p := range open {
		if !p.IsSingleIP() {
			broad = append(broad, p)
		}
	}
	out := make(map[kernelDestination]kernelPorts, len(open))
	for p, own := range open {
		ranges := slices.Clone(own)
		for _, q := range broad {
			if q != p && covers(q, p) {
				ranges = append(ranges, open[q]...)
			}
		}
		key := kernelDestination{Prefixlen: uint32(mappedBits(p) + prefixExtra), Agent: agent, Addr: addrOf(p.Addr())}
		out[key] = portsOf(ranges, now)
	}
	return out
}

// covers reports whether what q opens is open in p, too.
func covers(q, p netip.Prefix) bool {
	if q.Addr().Is4() != p.Addr().Is4() || q.Bits() > p.Bits() || !q.Contains(p.Addr()) {
		return false
	}
	for _, a := range alone {
		if within(a, p) && !within(a, q) {
			return false
		}
	}
	return true
}

func within(outer, inner netip.Prefix) bool {
	return outer.Addr().Is4() == inner.Addr().Is4() && outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
}

// portsOf joins ranges, those that last longest first: what does not fit is not open.
func portsOf(allow []overlay.EgressAllow, now time.Time) kernelPorts {
	slices.SortFunc(allow, func(a, b overlay.EgressAllow) int {
		return cmp.Or(-compareUntil(a.Until, b.Until), cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.First, b.First), cmp.Compare(a.Last, b.Last))
	})
	var p kernelPorts
	n := 0
	for _, a := range allow {
		r := kernelPortRange{First: a.First, Last: a.Last, Proto: a.Proto}
		if !a.Until.IsZero() {
			if !now.Before(a.Until) {
				continue
			}
			r.Until = monotonic(a.Until, now)
		}
		again := slices.ContainsFunc(p.Range[:n], func(q kernelPortRange) bool {
			return q.Proto == r.Proto && q.First <= r.First && r.Last <= q.Last
		})
		if again || n == maxPorts {
			continue
		}
		p.Range[n] = r
		n++
	}
	return p
}

// compareUntil orders ends; zero is never and so last.
func compareUntil(a, b time.Time) int {
	switch {
	case a.IsZero() && b.IsZero():
		return 0
	case a.IsZero():
		return 1
	case b.IsZero():
		return -1
	}
	return a.Compare(b)
}
