package segment

import (
	"fmt"
	"slices"
	"strings"
)

// Bounds of one policy: beyond them it is a mistake or an attack.
const (
	maxLevels   = 32
	maxSegments = 10_000
	maxRules    = 50_000
	maxTests    = 50_000
	maxAllow    = 256
	maxText     = 1024
)

// Problem is one fault of a policy. Line and Column are 0 where there is no text.
type Problem struct {
	Line    int    `json:"line,omitempty"`
	Column  int    `json:"column,omitempty"`
	Field   string `json:"field,omitempty"` // like rules[0].from
	Message string `json:"message"`
	Fix     string `json:"fix,omitempty"`
}

// String is one line: where, what, and how to mend it.
func (p Problem) String() string {
	var b strings.Builder
	if p.Line > 0 {
		fmt.Fprintf(&b, "line %d, column %d: ", p.Line, p.Column)
	}
	if p.Field != "" {
		b.WriteString(p.Field + ": ")
	}
	b.WriteString(p.Message)
	if p.Fix != "" {
		b.WriteString(" (fix: " + p.Fix + ")")
	}
	return b.String()
}

// PolicyError is every fault of a policy.
type PolicyError struct{ Problems []Problem }

// Error has a line for each problem.
func (e *PolicyError) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// Validate returns a *PolicyError with all faults, or nil.
func (p *Policy) Validate() error {
	c := &checker{policy: p, scale: p.Scale(), segments: make(map[string]*Segment)}
	c.checkScale()
	c.checkSegments()
	c.checkRules()
	c.checkTests()
	if len(c.problems) > 0 {
		return &PolicyError{Problems: c.problems}
	}
	return nil
}

// Scale is the order of sensitivities in force.
func (p *Policy) Scale() []string {
	if len(p.Sensitivity) == 0 {
		return DefaultScale
	}
	return p.Sensitivity
}

type checker struct {
	policy   *Policy
	scale    []string
	segments map[string]*Segment
	problems []Problem
}

func (c *checker) fault(field, fix, format string, args ...any) {
	c.problems = append(c.problems, Problem{Field: field, Fix: fix, Message: fmt.Sprintf(format, args...)})
}

func (c *checker) bound(field string, have, most int) {
	if have > most {
		c.fault(field, "", "has %d entries, more than %d", have, most)
	}
}

func (c *checker) checkScale() {
	c.bound("sensitivity", len(c.policy.Sensitivity), maxLevels)
	for i, level := range c.policy.Sensitivity {
		field := fmt.Sprintf("sensitivity[%d]", i)
		if err := ValidName(level); err != nil {
			c.fault(field, "name it like internal", "%v", err)
		} else if slices.Index(c.policy.Sensitivity, level) != i {
			c.fault(field, "leave one of them out", "%q is there twice", level)
		}
	}
}

func (c *checker) checkSegments() {
	c.bound("segments", len(c.policy.Segments), maxSegments)
	for i := range c.policy.Segments {
		s := &c.policy.Segments[i]
		field := fmt.Sprintf("segments[%d]", i)
		if err := ValidName(s.Name); err != nil {
			c.fault(field+".name", "name it like vector-store", "%v", err)
		} else if c.segments[s.Name] != nil {
			c.fault(field+".name", "give each segment a name of its own", "there are two segments %q", s.Name)
		} else {
			c.segments[s.Name] = s
		}
		c.checkText(field+".description", s.Description)
		if len(s.Match) == 0 {
			c.fault(field+".match", "say which labels its agents have, like {function: storage}", "selects nothing")
		}
		for _, key := range s.Match.keys() {
			c.checkCondition(field+".match."+key, key, s.Match[key])
		}
	}
}

func (c *checker) checkCondition(field, key string, cond Condition) {
	if err := ValidName(key); err != nil {
		c.fault(field, "", "label key: %v", err)
	}
	if len(cond.Values) == 0 {
		c.fault(field, "name at least one value", "has no value")
	}
	for i, v := range cond.Values {
		if err := validValue(v); err != nil {
			c.fault(field, "", "%v", err)
		} else if key == LabelSensitivity && !slices.Contains(c.scale, v) {
			c.fault(field, "use one of "+strings.Join(c.scale, ", "), "there is no sensitivity %q", v)
		} else if slices.Index(cond.Values, v) != i {
			c.fault(field, "leave one of them out", "%q is there twice", v)
		}
	}
	if cond.Op != "" && key != LabelSensitivity {
		c.fault(field, "name the values", "only sensitivity has an order to compare by %q", cond.Op)
	}
}

func (c *checker) checkRules() {
	c.bound("rules", len(c.policy.Rules), maxRules)
	seen := make(map[string]bool)
	for i := range c.policy.Rules {
		r := &c.policy.Rules[i]
		field := fmt.Sprintf("rules[%d]", i)
		if err := ValidName(r.Name); err != nil {
			c.fault(field+".name", "name it like research-reads-vectors", "%v", err)
		} else if seen[r.Name] {
			c.fault(field+".name", "give each rule a name of its own", "there are two rules %q", r.Name)
		}
		seen[r.Name] = true
		from, to := c.segmentOf(field+".from", r.From), c.segmentOf(field+".to", r.To)
		c.checkAllow(field+".allow", r.Allow)
		c.checkText(field+".crosses", r.Crosses)
		if from != nil && to != nil {
			c.checkCrossing(field, r, from, to)
		}
	}
}

func (c *checker) segmentOf(field, name string) *Segment {
	if s := c.segments[name]; s != nil {
		return s
	}
	fix := "declare it under segments"
	if near := nearest(name, c.segments); near != "" {
		fix = "did you mean " + near + "?"
	}
	if name == "" {
		c.fault(field, "name a segment", "is missing")
	} else {
		c.fault(field, fix, "there is no segment %q", name)
	}
	return nil
}

func (c *checker) checkAllow(field string, allow []Ports) {
	c.bound(field, len(allow), maxAllow)
	if len(allow) == 0 {
		c.fault(field, "name ports, like [tcp/443]", "allows nothing")
	}
	for i, p := range allow {
		if again, err := ParsePorts(p.String()); err != nil || again != p {
			c.fault(fmt.Sprintf("%s[%d]", field, i), "write it like tcp/443, tcp/6333-6334, udp/53 or icmp", "%q is no port", p)
		}
	}
}

// checkCrossing demands a reason where the two ends of a connection, which carries data both ways, can differ
// in sensitivity.
func (c *checker) checkCrossing(field string, r *Rule, from, to *Segment) {
	for _, a := range from.Match.levels(c.scale) {
		for _, b := range to.Match.levels(c.scale) {
			if a == b {
				continue
			}
			if strings.TrimSpace(r.Crosses) == "" {
				c.fault(field+".crosses", `say why data may pass, like crosses: "the store filters what internal agents may read"`,
					"agents of %s (%s) and %s (%s) can differ in sensitivity", r.From, c.level(a), r.To, c.level(b))
			}
			return
		}
	}
}

func (c *checker) level(i int) string {
	if i < 0 {
		return "none"
	}
	return c.scale[i]
}

func (c *checker) checkTests() {
	c.bound("tests", len(c.policy.Tests), maxTests)
	for i, t := range c.policy.Tests {
		field := fmt.Sprintf("tests[%d]", i)
		for _, end := range []struct{ key, name string }{{".from", t.From}, {".to", t.To}} {
			name, ok := strings.CutPrefix(end.name, "agent/")
			if !ok || ValidName(name) != nil {
				c.fault(field+end.key, "name an agent, like agent/scout", "%q is no agent", end.name)
			}
		}
		if t.Port == (Port{}) {
			c.fault(field+".port", "name a port, like tcp/443", "is missing")
		}
		if t.Expect != "allow" && t.Expect != "deny" {
			c.fault(field+".expect", "write allow or deny", "%q is no verdict", t.Expect)
		}
	}
}

func (c *checker) checkText(field, text string) {
	if len(text) > maxText {
		c.fault(field, "shorten it", "has %d bytes, more than %d", len(text), maxText)
	}
}

// nearest is the key that shares the longest beginning with name, if they share enough to be a slip.
func nearest(name string, among map[string]*Segment) string {
	best, bestLen := "", 2
	for candidate := range among {
		n := 0
		for n < len(candidate) && n < len(name) && candidate[n] == name[n] {
			n++
		}
		if n > bestLen || (n == bestLen && best != "" && candidate < best) {
			best, bestLen = candidate, n
		}
	}
	return best
}
