package segment

import (
	"slices"
	"time"
)

// Verdict says whether a flow may be opened, and by which rule.
type Verdict struct {
	Allow bool
	Rule  string // the first that allows it; empty for a deny
}

// Decide says whether src may open port to dst at now: the specification, slow and obviously right.
func (p *Policy) Decide(src, dst Agent, port Port, now time.Time) Verdict {
	if src.Name == dst.Name {
		return Verdict{} // what an agent does with itself never meets policy
	}
	from, to := p.SegmentsOf(src), p.SegmentsOf(dst)
	for _, r := range p.Rules {
		if r.activeAt(now) && slices.Contains(from, r.From) && slices.Contains(to, r.To) && r.contains(port) {
			return Verdict{Allow: true, Rule: r.Name}
		}
	}
	return Verdict{}
}

// SegmentsOf are the names of the segments that a is in, in the policy's order.
func (p *Policy) SegmentsOf(a Agent) []string {
	names := []string{}
	for _, s := range p.Segments {
		if s.Match.Matches(a.Labels, p.Scale()) {
			names = append(names, s.Name)
		}
	}
	return names
}

// activeAt reports whether the rule has not ended: it counts while now is before Until.
func (r *Rule) activeAt(now time.Time) bool { return r.Until == nil || now.Before(*r.Until) }

func (r *Rule) contains(port Port) bool {
	return slices.ContainsFunc(r.Allow, func(p Ports) bool { return p.Contains(port) })
}
