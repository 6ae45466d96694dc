package overlay

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/bulkhead-mesh/bulkhead/segment"
)

// egressAllows are the destinations that rules name by address. Those named by DNS name open when they are resolved.
func egressAllows(rules []segment.EgressRule) []EgressAllow {
	var out []EgressAllow
	for _, r := range rules {
		prefix, err := netip.ParsePrefix(r.To)
		if err != nil {
			continue // a name
		}
		out = append(out, EgressTo(prefix, r.Allow)...)
	}
	slices.SortFunc(out, func(a, b EgressAllow) int {
		return cmp.Or(a.Prefix.Compare(b.Prefix), cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.First, b.First), cmp.Compare(a.Last, b.Last))
	})
	return slices.Compact(out)
}

// EgressTo opens ports of one destination.
func EgressTo(prefix netip.Prefix, allow []segment.Ports) []EgressAllow {
	var out []EgressAllow
	for _, p := range allow {
		out = append(out, EgressAllow{Prefix: prefix.Masked(), Proto: uint8(p.Proto), First: p.First, Last: p.Last})
	}
	return out
}
