package bind

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
)

// claims are what belongs to agents, as a map of the kernel has it: for generations that are even and odd.
type claims[K comparable] struct {
	m    *ebpf.Map
	held map[K]kernelClaim
}

func readClaims[K comparable](m *ebpf.Map) (claims[K], error) {
	held, err := readMap[K, kernelClaim](m)
	return claims[K]{m, held}, err
}

// in reports whether wanted is what holds in a generation.
func (c *claims[K]) in(generation uint32, wanted map[K]uint32) bool {
	n := 0
	for k, v := range c.held {
		if id := v.Agent[generation&1]; id != 0 {
			if wanted[k] != id {
				return false
			}
			n++
		}
	}
	return n == len(wanted)
}

// prepare has wanted hold in a generation, which is not the one that holds now.
func (c *claims[K]) prepare(generation uint32, wanted map[K]uint32) error {
	for k := range wanted {
		if err := c.set(generation, k, wanted[k]); err != nil {
			return err
		}
	}
	for k := range c.held {
		if err := c.set(generation, k, wanted[k]); err != nil {
			return err
		}
	}
	return nil
}

func (c *claims[K]) set(generation uint32, k K, id uint32) error {
	v := c.held[k]
	if v.Agent[generation&1] == id {
		return nil
	}
	v.Agent[generation&1] = id
	if err := c.m.Put(k, v); err != nil {
		return fmt.Errorf("put into %s: %w", c.m, err)
	}
	c.held[k] = v
	return nil
}

// prune removes what nobody has in a generation.
func (c *claims[K]) prune(generation uint32) error {
	for k, v := range c.held {
		if v.Agent[generation&1] != 0 {
			continue
		}
		if err := c.m.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("remove from %s: %w", c.m, err)
		}
		delete(c.held, k)
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
