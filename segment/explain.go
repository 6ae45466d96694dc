package segment

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Explanation is a verdict with its reason. For a deny it names the rule that comes nearest, and what is missing.
type Explanation struct {
	Verdict      string   `json:"verdict"` // allow or deny
	Rule         string   `json:"rule"`    // that allows; empty for a deny
	Reason       string   `json:"reason"`
	FromSegments []string `json:"fromSegments"`
	ToSegments   []string `json:"toSegments"`
	Nearest      string   `json:"nearest,omitempty"`
	Missing      []string `json:"missing,omitempty"` // all that keeps Nearest from allowing it
}

// Explain is Decide in words.
func (p *Policy) Explain(src, dst Agent, port Port, now time.Time) Explanation {
	x := explainer{src: src, dst: dst, port: port, now: now, from: p.SegmentsOf(src), to: p.SegmentsOf(dst)}
	e := Explanation{Verdict: "deny", FromSegments: x.from, ToSegments: x.to}
	if v := p.Decide(src, dst, port, now); v.Allow {
		e.Verdict, e.Rule = "allow", v.Rule
		e.Reason = fmt.Sprintf("rule %s allows it", v.Rule)
		return e
	}
	if src.Name == dst.Name {
		e.Reason = "source and destination are the same agent: no policy is about what it does with itself"
		return e
	}
	if e.Missing = x.homeless(); e.Missing == nil {
		e.Nearest, e.Missing = x.nearest(p.Rules)
	}
	e.Reason = "no rule allows it: " + strings.Join(e.Missing, "; ")
	return e
}

// explainer holds a denied flow against the rules.
type explainer struct {
	src, dst Agent
	port     Port
	now      time.Time
	from, to []string // segments of src and dst
}

// homeless says which ends are in no segment, so that no rule can be about them.
func (x *explainer) homeless() (missing []string) {
	if len(x.from) == 0 {
		missing = append(missing, fmt.Sprintf("agent %s is in no segment", x.src.Name))
	}
	if len(x.to) == 0 {
		missing = append(missing, fmt.Sprintf("agent %s is in no segment", x.dst.Name))
	}
	return missing
}

// nearest is the rule with the least distance, the first of equals.
func (x *explainer) nearest(rules []Rule) (rule string, missing []string) {
	missing = []string{"the policy has no rules"}
	best := -1
	for i := range rules {
		if m, distance := x.missing(&rules[i]); best < 0 || distance < best {
			rule, missing, best = rules[i].Name, m, distance
		}
	}
	return rule, missing
}

// missing is what keeps rule r from allowing the flow, and how far that is: a rule that ended is nearer than
// one for another port, and that nearer than one for other agents.
func (x *explainer) missing(r *Rule) (missing []string, distance int) {
	lack := func(far int, format string, args ...any) {
		missing = append(missing, fmt.Sprintf(format, args...))
		distance += far
	}
	from, to := slices.Contains(x.from, r.From), slices.Contains(x.to, r.To)
	if slices.Contains(x.from, r.To) && slices.Contains(x.to, r.From) && !(from && to) {
		lack(5, "rule %s goes the other way, from %s to %s", r.Name, r.From, r.To)
	} else {
		if !from {
			lack(4, "agent %s is in %s, not in %s", x.src.Name, strings.Join(x.from, ", "), r.From)
		}
		if !to {
			lack(4, "agent %s is in %s, not in %s", x.dst.Name, strings.Join(x.to, ", "), r.To)
		}
	}
	if !r.contains(x.port) {
		lack(2, "port %s is not in rule %s (%s)", x.port, r.Name, joinPorts(r.Allow))
	}
	if !r.activeAt(x.now) {
		lack(1, "rule %s ended at %s", r.Name, r.Until.UTC().Format(time.RFC3339))
	}
	return missing, distance
}

func joinPorts(ports []Ports) string {
	texts := make([]string, len(ports))
	for i, p := range ports {
		texts[i] = p.String()
	}
	return strings.Join(texts, ", ")
}
