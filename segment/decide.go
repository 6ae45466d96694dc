package segment

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Verdict says whether a flow may be opened, and by which rule.
type Verdict struct {
	Allow bool
	Rule  string // empty for a deny
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

func (r *Rule) activeAt(now time.Time) bool { return r.Until == nil || now.Before(*r.Until) }

func (r *Rule) contains(port Port) bool {
	return slices.ContainsFunc(r.Allow, func(p Ports) bool { return p.Contains(port) })
}

// Explanation is a verdict with its reason. For a deny it names the rule that comes nearest, and what is missing.
type Explanation struct {
	Verdict      string   `json:"verdict"` // allow or deny
	Rule         string   `json:"rule"`    // that allows; empty for a deny
	Reason       string   `json:"reason"`
	FromSegments []string `json:"fromSegments"`
	ToSegments   []string `json:"toSegments"`
	Nearest      string   `json:"nearest,omitempty"`
	Missing      []string `json:"missing,omitempty"`
}

// Explain is Decide in words.
func (p *Policy) Explain(src, dst Agent, port Port, now time.Time) Explanation {
	e := Explanation{Verdict: "deny", FromSegments: p.SegmentsOf(src), ToSegments: p.SegmentsOf(dst)}
	if v := p.Decide(src, dst, port, now); v.Allow {
		e.Verdict, e.Rule = "allow", v.Rule
		e.Reason = fmt.Sprintf("rule %s allows it", v.Rule)
		return e
	}
	switch {
	case src.Name == dst.Name:
		e.Reason = "an agent's flows to itself never meet policy"
		return e
	case len(e.FromSegments) == 0:
		e.Missing = append(e.Missing, fmt.Sprintf("agent %s is in no segment", src.Name))
	}
	if len(e.ToSegments) == 0 {
		e.Missing = append(e.Missing, fmt.Sprintf("agent %s is in no segment", dst.Name))
	}
	e.Reason = "no rule allows it"
	if e.Missing == nil {
		e.nearest(p, port, now)
	}
	return e
}

// nearest finds the rule with the fewest things missing.
func (e *Explanation) nearest(p *Policy, port Port, now time.Time) {
	for _, r := range p.Rules {
		if missing := e.missing(&r, port, now); e.Missing == nil || len(missing) < len(e.Missing) {
			e.Nearest, e.Missing = r.Name, missing
		}
	}
	if e.Missing == nil {
		e.Missing = []string{"the policy has no rules"}
	}
}

// missing is what keeps rule r from allowing the flow.
func (e *Explanation) missing(r *Rule, port Port, now time.Time) (out []string) {
	from, to := slices.Contains(e.FromSegments, r.From), slices.Contains(e.ToSegments, r.To)
	switch {
	case !from && !to && slices.Contains(e.FromSegments, r.To) && slices.Contains(e.ToSegments, r.From):
		out = append(out, fmt.Sprintf("rule %s goes the other way, from %s to %s", r.Name, r.From, r.To))
	default:
		if !from {
			out = append(out, fmt.Sprintf("the source is in %s, not in %s", strings.Join(e.FromSegments, ", "), r.From))
		}
		if !to {
			out = append(out, fmt.Sprintf("the destination is in %s, not in %s", strings.Join(e.ToSegments, ", "), r.To))
		}
	}
	if !r.contains(port) {
		out = append(out, fmt.Sprintf("port %s is not in rule %s (%s)", port, r.Name, joinPorts(r.Allow)))
	}
	if !r.activeAt(now) {
		out = append(out, fmt.Sprintf("rule %s ended at %s", r.Name, r.Until.Format(time.RFC3339)))
	}
	return out
}

func joinPorts(ports []Ports) string {
	texts := make([]string, len(ports))
	for i, p := range ports {
		texts[i] = p.String()
	}
	return strings.Join(texts, ", ")
}
