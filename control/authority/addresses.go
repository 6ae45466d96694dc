package authority

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/bulkhead-mesh/bulkhead/overlay"
)

// nextAddresses takes the next free pair of overlay addresses: both have the same number in their range.
// A number comes again only after all others did, and only if no agent has it.
func (t *txn) nextAddresses() ([]netip.Addr, error) {
	size := uint64(1) << (32 - t.a.mesh.Range4.Bits())
	for range size {
		t.Address++
		n := t.Address % size
		if last := n & 0xff; last == 0 || last == 0xff {
			continue // network and broadcast of any /24 that someone may see in the range
		}
		v4 := numbered4(t.a.mesh.Range4, uint32(n))
		if t.a.isResolver(v4) {
			continue
		}
		if t.Address > size {
			if err := t.loadUsed(); err != nil {
				return nil, err
			}
			if t.used[v4] {
				continue
			}
			t.used[v4] = true
		}
		return []netip.Addr{v4, numbered6(t.a.prefix6, n)}, nil
	}
	return nil, &Error{Code: CodeExhausted, Message: "every address of " + t.a.mesh.Range4.String() + " belongs to an agent",
		Fix: "revoke agents that are gone"}
}

// loadUsed reads, once in a transaction, which IPv4 addresses agents have.
func (t *txn) loadUsed() error {
	if t.used != nil {
		return nil
	}
	t.used = map[netip.Addr]bool{}
	return each(t, bucketAgents, func(r *agentRow) error {
		// Those of an agent that was given up may come back with it, and its certificate may still be around.
		if len(r.Addresses) > 0 && r.Revoked == nil && (r.Withdrawn == nil || r.valid(t.now)) {
			t.used[r.Addresses[0]] = true
		}
		return nil
	})
}

// isResolver reports whether each host has the address for its own resolver.
func (a *Authority) isResolver(addr netip.Addr) bool {
	return slices.Contains(overlay.ResolverAddrs(a.Prefixes()), addr)
}

func numbered4(p netip.Prefix, n uint32) netip.Addr {
	b := p.Addr().As4()
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+n)
	return netip.AddrFrom4(b)
}

func numbered6(p netip.Prefix, n uint64) netip.Addr {
	b := p.Addr().As16()
	binary.BigEndian.PutUint64(b[8:], n)
	return netip.AddrFrom16(b)
}
