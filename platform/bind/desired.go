package bind

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/bulkhead-mesh/bulkhead/overlay"
)

const (
	guarded = 1 // of kernelAgent.Flags

	maxSlots = 64 // agents of one host, each with a mark
	markMask = 0xff000000
	markBase = 0x80
)

// state is whose is what: the content of the maps, without what they held before.
type state struct {
	ids     map[string]uint32 // by agent
	next    uint32            // above all ids that there were
	phase   kernelPhase
	agents  map[uint32]kernelAgent
	owners  map[kernelAddr]uint32
	cgroups map[uint64]uint32
	users   map[uint32]uint32
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

// desire is the state that config asks for, from the one before. What an agent is does not change under its id: with
// other addresses, or guarded, it gets another, which holds with all else.
func desire(old state, config overlay.BindingConfig) (state, error) {
	s := state{
		ids: make(map[string]uint32), next: max(old.next, 1), agents: make(map[uint32]kernelAgent),
		owners: make(map[kernelAddr]uint32), cgroups: make(map[uint64]uint32), users: make(map[uint32]uint32),
	}
	kept := make(map[uint32]bool) // marks
	for _, b := range config.Agents {
		kept[old.agents[old.idOf(b)].Mark] = true
	}
	for _, b := range config.Agents {
		agent := describe(b)
		id := old.idOf(b)
		if agent.Mark = old.agents[id].Mark; agent.Mark == 0 {
			var err error
			if agent.Mark, err = freeMark(kept, old); err != nil {
				return s, fmt.Errorf("bind agent %s: %w", b.Agent, err)
			}
			kept[agent.Mark] = true
		}
		if id == 0 || old.agents[id] != agent {
			id, s.next = s.next, s.next+1
		}
		s.ids[b.Agent], s.agents[id] = id, agent
		s.claim(b, id)
	}
	return s, nil
}

// describe is an agent without its mark.
func describe(b overlay.Binding) kernelAgent {
	var agent kernelAgent
	for _, a := range b.Addresses {
		if a.Is4() {
			agent.Ip4 = addrOf(a)
		} else {
			agent.Ip6 = addrOf(a)
		}
	}
	if b.Guarded && !b.Host {
		agent.Flags |= guarded
	}
	return agent
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

func (s *state) claim(b overlay.Binding, id uint32) {
	for _, a := range b.Addresses {
		s.owners[addrOf(a)] = id
	}
	if b.Host {
		s.phase.Host = id
		return
	}
	s.phase.Busy = 1
	if b.Guarded {
		s.phase.Guards = 1
	}
	for _, g := range b.Cgroups {
		s.cgroups[g] = id
	}
	for _, u := range b.UIDs {
		s.users[u], s.phase.Users = id, 1
	}
}

// freeMark is a mark that nobody keeps; better one that nobody had.
func freeMark(kept map[uint32]bool, old state) (uint32, error) {
	had := make(map[uint32]bool)
	for _, a := range old.agents {
		had[a.Mark] = true
	}
	var free uint32
	for slot := range uint32(maxSlots) {
		mark := (markBase | slot) << 24
		if kept[mark] {
			continue
		}
		if free = mark; !had[mark] {
			break
		}
	}
	if free == 0 {
		return 0, errTooManyAgents
	}
	return free, nil
}
