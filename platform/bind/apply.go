package bind

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-mesh/bulkhead/overlay"
)

// Apply makes the kernel bind what config says, and nothing else. What is taken from an agent is taken first: at no moment
// has a process an address that neither the old nor the new config gives it.
func (b *Binding) Apply(ctx context.Context, config overlay.BindingConfig) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	for agent := range b.learned {
		if !slices.ContainsFunc(config.Agents, func(c overlay.Binding) bool { return c.Agent == agent && c.Guarded }) {
			delete(b.learned, agent)
		}
	}
	if err := b.converge(config); err != nil {
		return fmt.Errorf("apply bindings: %w", err)
	}
	return nil
}

func (b *Binding) converge(config overlay.BindingConfig) error {
	want, err := desire(b.state, config, b.learned, time.Now())
	if err != nil {
		return err
	}
	if err := b.write(&want); err != nil {
		return errors.Join(err, b.adopt()) // from what the kernel has now
	}
	b.state, b.config = want, config
	return nil
}

// write takes the kernel from b.state to want: withdrawals, then a new generation, by which sockets are judged anew, then
// what is given, and again a new generation.
func (b *Binding) write(want *state) error {
	old, m := b.state, &b.objects.kernelMaps
	identities := !maps.Equal(old.cgroups, want.cgroups) || !maps.Equal(old.users, want.users) || old.settings.Host != want.settings.Host
	want.settings.Generation = old.settings.Generation
	if err := errors.Join(
		removeOthers(m.Cgroups, old.cgroups, want.cgroups), removeOthers(m.Users, old.users, want.users),
		removeOthers(m.Owners, old.owners, want.owners),
	); err != nil {
		return err
	}
	if err := putOthers(m.Agents, old.agents, want.agents); err != nil { // a guard, before the list that opens it
		return err
	}
	if err := errors.Join(putOthers(m.Egress, old.egress, want.egress), removeGone(m.Egress, old.egress, want.egress)); err != nil {
		return err
	}
	if identities {
		want.settings.Generation = old.settings.Generation + 1
	}
	if err := b.configure(want.settings, old.settings); err != nil {
		return err
	}
	if err := errors.Join(
		putOthers(m.Owners, old.owners, want.owners), putOthers(m.Cgroups, old.cgroups, want.cgroups), putOthers(m.Users, old.users, want.users),
	); err != nil {
		return err
	}
	if identities {
		before := want.settings
		want.settings.Generation++
		if err := b.configure(want.settings, before); err != nil {
			return err
		}
	}
	return removeGone(m.Agents, old.agents, want.agents)
}

func (b *Binding) configure(want, old kernelConfiguration) error {
	if want == old {
		return nil
	}
	if err := b.objects.Settings.Put(uint32(0), want); err != nil {
		return fmt.Errorf("write settings: %w", err)
	}
	return nil
}

// removeOthers removes what is not wanted, and what is wanted with another value.
func removeOthers[K, V comparable](m *ebpf.Map, old, want map[K]V) error {
	for k, v := range old {
		if w, ok := want[k]; ok && w == v {
			continue
		}
		if err := m.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("remove from %s: %w", m, err)
		}
	}
	return nil
}

// removeGone removes what is not wanted.
func removeGone[K, V comparable](m *ebpf.Map, old, want map[K]V) error {
	for k := range old {
		if _, ok := want[k]; ok {
			continue
		}
		if err := m.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("remove from %s: %w", m, err)
		}
	}
	return nil
}

// putOthers puts what is new or has another value.
func putOthers[K, V comparable](m *ebpf.Map, old, want map[K]V) error {
	for k, v := range want {
		if o, ok := old[k]; ok && o == v {
			continue
		}
		if err := m.Put(k, v); err != nil {
			return fmt.Errorf("put into %s: %w", m, err)
		}
	}
	return nil
}

// adopt reads what the kernel has. Agents keep their names by their addresses: Apply tells them.
func (b *Binding) adopt() error {
	m := &b.objects.kernelMaps
	netns, err := netnsCookie()
	if err != nil {
		return err
	}
	s := state{ids: make(map[string]uint32)}
	settings, err := fixed(b.options, netns)
	if err != nil {
		return err
	}
	var held kernelConfiguration
	if err := m.Settings.Lookup(uint32(0), &held); err != nil {
		return fmt.Errorf("read settings: %w", err)
	}
	settings.Host, settings.Generation = held.Host, held.Generation
	settings.Busy, settings.Guards, settings.ByUser = held.Busy, held.Guards, held.ByUser
	if settings.Generation == 0 { // that of sockets which were never judged
		settings.Generation = 1
	}
	if err := b.configure(settings, held); err != nil {
		return err
	}
	s.settings = settings
	s.agents, err = readMap[uint32, kernelAgent](m.Agents)
	if err == nil {
		s.owners, err = readMap[kernelAddr, uint32](m.Owners)
	}
	if err == nil {
		s.cgroups, err = readMap[uint64, uint32](m.Cgroups)
	}
	if err == nil {
		s.users, err = readMap[uint32, uint32](m.Users)
	}
	if err == nil {
		s.egress, err = readMap[kernelDestination, kernelPorts](m.Egress)
	}
	if err != nil {
		return err
	}
	for id := range s.agents {
		s.next = max(s.next, id+1)
	}
	s.denied, err = b.readDenied()
	b.state = s
	return err
}

func readMap[K comparable, V any](m *ebpf.Map) (map[K]V, error) {
	out := make(map[K]V)
	var k K
	var v V
	entries := m.Iterate()
	for entries.Next(&k, &v) {
		out[k] = v
	}
	if err := entries.Err(); err != nil {
		return nil, fmt.Errorf("read %s: %w", m, err)
	}
	return out, nil
}

// SetDenied replaces the control APIs of other hosts, which agents may not reach.
func (b *Binding) SetDenied(addrs []netip.AddrPort) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := errors.Join(
		putOthers(b.objects.Control, keys(b.state.denied), keys(addrs)), removeGone(b.objects.Control, keys(b.state.denied), keys(addrs)),
	); err != nil {
		return fmt.Errorf("deny control APIs: %w", err)
	}
	b.state.denied = slices.Clone(addrs)
	return nil
}

func keys(addrs []netip.AddrPort) map[kernelEndpoint]uint8 {
	out := make(map[kernelEndpoint]uint8, len(addrs))
	for _, a := range addrs {
		out[kernelEndpoint{Addr: addrOf(a.Addr()), Port: a.Port()}] = 1
	}
	return out
}

func (b *Binding) readDenied() ([]netip.AddrPort, error) {
	held, err := readMap[kernelEndpoint, uint8](b.objects.Control)
	var out []netip.AddrPort
	for k := range held {
		out = append(out, netip.AddrPortFrom(addrFrom(k.Addr), k.Port))
	}
	return out, err
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
