package segment

import (
	"cmp"
	"slices"
)

func comparePorts(a, b Ports) int {
	return cmp.Or(cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.First, b.First), cmp.Compare(a.Last, b.Last))
}

// union sorts ranges and joins those that touch: the fewest ranges of the same ports.
func union(ports []Ports) []Ports {
	out := []Ports{}
	for _, p := range slices.SortedFunc(slices.Values(ports), comparePorts) {
		if n := len(out); n > 0 && out[n-1].Proto == p.Proto && int(p.First) <= int(out[n-1].Last)+1 {
			out[n-1].Last = max(out[n-1].Last, p.Last)
		} else {
			out = append(out, p)
		}
	}
	return out
}

// subtract is a without b, both of union's form.
func subtract(a, b []Ports) []Ports {
	out := []Ports{}
	for _, p := range a {
		first, last := int(p.First), int(p.Last) // not uint16: first may pass 65535
		for _, q := range b {
			if q.Proto != p.Proto || int(q.Last) < first || int(q.First) > last {
				continue
			}
			if int(q.First) > first {
				out = append(out, Ports{p.Proto, uint16(first), q.First - 1})
			}
			first = int(q.Last) + 1
		}
		if first <= last {
			out = append(out, Ports{p.Proto, uint16(first), p.Last})
		}
	}
	return out
}
