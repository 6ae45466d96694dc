package segment

import (
	"cmp"
	"slices"
	"strings"
	"time"
)

// Allows reports whether the compiled rules let src open port to dst at now. One of the two must be an agent of
// the ruleset's host: of other flows a host knows nothing, and the answer is no.
func (r *Ruleset) Allows(src, dst string, port Port, now time.Time) bool {
	if p := r.pair(dst, src); p != nil && granted(p.In, port, now) {
		return true
	}
	p := r.pair(src, dst)
	return p != nil && granted(p.Out, port, now)
}

// pair is nil if the two may open nothing to each other.
func (r *Ruleset) pair(local, remote string) *Pair {
	i, found := slices.BinarySearchFunc(r.Pairs, local, func(p *Pair, local string) int {
		return cmp.Or(strings.Compare(p.Local.Name, local), strings.Compare(p.Remote.Name, remote))
	})
	if !found {
		return nil
	}
	return r.Pairs[i]
}

func granted(grants []Grant, port Port, now time.Time) bool {
	return slices.ContainsFunc(grants, func(g Grant) bool {
		return g.Ports.Contains(port) && (g.Until.IsZero() || now.Before(g.Until))
	})
}
