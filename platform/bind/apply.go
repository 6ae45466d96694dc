package bind

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-mesh/bulkhead/overlay"
)

// Apply makes the kernel bind what config says, and nothing else. Who has which address changes for all at one moment: at
// none has a process an address that neither the old nor the new config gives it.
func (b *Binding) Apply(ctx context.Context, config overlay.BindingConfig) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	b.recall(config)
	if err := b.converge(config); err != nil {
		return errors.Join(fmt.Errorf("apply bindings: %w", err), b.adopt()) // from what the kernel has now
	}
	return nil
}

func (b *Binding) converge(config overlay.BindingConfig) error {
	want, err := desire(b.state, config)
	if err != nil {
		return err
	}
	m := &b.objects.kernelMaps
	if err := putOthers(m.Agents, b.state.agents, want.agents); err != nil {
		return err
	}
	for _, c := range config.Agents {
		if err := b.list(want.ids[c.Agent], c); err != nil {
			return err
		}
	}
	if err := b.hold(&want); err != nil {
		return err
	}
	for id, list := range b.egress {
		if _, ok := want.agents[id]; ok {
			continue
		}
		if err := removeGone(m.Egress, list, nil); err != nil {
			return err
		}
		delete(b.egress, id)
	}
	if err := removeGone(m.Agents, b.state.agents, want.agents); err != nil {
		return err
	}
	b.state, b.config = want, config
	return nil
}

// list has an agent's egress list be what its binding says and names taught. What a destination may have in between is
// what it had, or will have.
func (b *Binding) list(id uint32, c overlay.Binding) error {
	if c.Host {
		return nil
	}
	now := time.Now()
	allow := c.Egress
	if l := b.learned[c.Agent]; l != nil {
		allow = append(l.open(now), allow...)
	}
	want, left := b.clock.destinations(id, allow, now)
	if left > 0 {
		b.options.Logger.Warn("an egress list has more ranges of ports for a destination than the kernel keeps; those that end first stay closed", "agent", c.Agent, "left", left, "most", maxPorts)
	}
	m := b.objects.Egress
	if err := errors.Join(putOthers(m, b.egress[id], want), removeGone(m, b.egress[id], want)); err != nil {
		return err
	}
	b.egress[id] = want
	return nil
}

// hold has want hold from one moment on, if it is not what holds.
func (b *Binding) hold(want *state) error {
	g := b.settings.Generation
	if b.owners.in(g, want.owners) && b.cgroups.in(g, want.cgroups) && b.users.in(g, want.users) && b.settings.Phases[g&1] == want.phase {
		return nil
	}
	g++
	if err := errors.Join(b.owners.prepare(g, want.owners), b.cgroups.prepare(g, want.cgroups), b.users.prepare(g, want.users)); err != nil {
		return err
	}
	next := b.settings
	next.Phases[g&1] = want.phase
	if err := b.configure(next); err != nil {
		return err
	}
	next.Generation = g // by itself: programs look while it is written
	if err := b.configure(next); err != nil {
		return err
	}
	return errors.Join(b.owners.prune(g), b.cgroups.prune(g), b.users.prune(g))
}

func (b *Binding) configure(want kernelConfiguration) error {
	if want == b.settings {
		return nil
	}
	if err := b.objects.Settings.Put(uint32(0), want); err != nil {
		return fmt.Errorf("write settings: %w", err)
	}
	b.settings = want
	return nil
}

// adopt reads what the kernel has. Agents get their names by their addresses: Apply tells them.
func (b *Binding) adopt() error {
	m := &b.objects.kernelMaps
	netns, err := netnsCookie()
	if err != nil {
		return err
	}
	settings, err := fixed(b.options, netns)
	if err != nil {
		return err
	}
	if err := m.Settings.Lookup(uint32(0), &b.settings); err != nil {
		return fmt.Errorf("read settings: %w", err)
	}
	settings.Phases, settings.Generation = b.settings.Phases, max(b.settings.Generation, 1) // 0: of sockets that were never judged
	if err := b.configure(settings); err != nil {
		return err
	}
	agents, err := readMap[uint32, kernelAgent](m.Agents)
	if err == nil {
		b.owners, err = readClaims[kernelAddr](m.Owners)
	}
	if err == nil {
		b.cgroups, err = readClaims[uint64](m.Cgroups)
	}
	if err == nil {
		b.users, err = readClaims[uint32](m.Users)
	}
	if err == nil {
		err = b.readEgress()
	}
	if err == nil {
		b.denied, err = readMap[kernelEndpoint, uint8](m.Control)
	}
	if err != nil {
		return err
	}
	b.state = state{agents: agents, owners: make(map[kernelAddr]uint32)}
	for addr, c := range b.owners.held {
		b.state.owners[addr] = c.Agent[settings.Generation&1]
	}
	for id := range agents {
		b.state.next = max(b.state.next, id+1)
	}
	return nil
}

func (b *Binding) readEgress() error {
	held, err := readMap[kernelDestination, kernelPorts](b.objects.Egress)
	if err != nil {
		return err
	}
	b.egress = make(map[uint32]map[kernelDestination]kernelPorts)
	for to, ports := range held {
		if b.egress[to.Agent] == nil {
			b.egress[to.Agent] = make(map[kernelDestination]kernelPorts)
		}
		b.egress[to.Agent][to] = ports
	}
	return nil
}

// netnsCookie is how the kernel numbers this network namespace; its numbers never come again.
func netnsCookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("read network namespace: %w", err)
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("read network namespace: %w", err)
	}
	return cookie, nil
}
