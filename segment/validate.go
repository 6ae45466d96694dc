package segment

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Bounds of one policy: beyond them it is a mistake or an attack.
const (
	maxLevels   = 32
	maxSegments = 10_000
	maxRules    = 20_000
	maxTests    = 10_000
	maxAllow    = 256
	maxValues   = 256  // of one condition
	maxText     = 1024 // bytes
)

const (
	timeFix = "write it like 2027-01-31T00:00:00Z"
	oneFix  = "leave one of them out"
)

// Validate returns a *PolicyError with all faults, or nil. Its problems have no line and column; those of Parse do.
func (p *Policy) Validate() error {
	c := &checker{policy: p, scale: p.Scale(), segments: make(map[string]*Segment, len(p.Segments))}
	c.bound("sensitivity", len(p.Sensitivity), maxLevels)
	c.bound("segments", len(p.Segments), maxSegments)
	c.bound("rules", len(p.Rules), maxRules)
	c.bound("tests", len(p.Tests), maxTests)
	if len(c.problems) == 0 {
		c.checkScale()
		c.checkSegments()
		c.checkRules()
		c.checkTests()
	}
	if len(c.problems) > 0 {
		return refuse(c.problems...)
	}
	return nil
}

// Scale is the order of sensitivities in force, lowest first.
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
	names    []string // of segments, sorted
	problems []Problem
}

func (c *checker) fault(field, fix, format string, args ...any) {
	c.problems = append(c.problems, Problem{Field: field, Fix: fix, Message: fmt.Sprintf(format, args...)})
}

func (c *checker) bound(field string, have, most int) {
	if have > most {
		c.fault(field, "leave out what is not used", "has %d entries, more than %d", have, most)
	}
}

func (c *checker) checkScale() {
	seen := make(map[string]bool)
	for i, level := range c.policy.Sensitivity {
		c.checkName(fmt.Sprintf("sensitivity[%d]", i), level, "internal", seen)
	}
}

// checkName wants a valid name that was not seen before.
func (c *checker) checkName(field, name, example string, seen map[string]bool) {
	if name == "" {
		c.fault(field, "name it like "+example, "is missing")
	} else if err := ValidName(name); err != nil {
		c.fault(field, "name it like "+example, "%v", err)
	} else if seen[name] {
		c.fault(field, oneFix+", or rename it", "%q is there twice", name)
	}
	seen[name] = true
}

func (c *checker) checkSegments() {
	seen := make(map[string]bool)
	for i := range c.policy.Segments {
		s := &c.policy.Segments[i]
		field := fmt.Sprintf("segments[%d]", i)
		c.checkName(field+".name", s.Name, "vector-store", seen)
		c.segments[s.Name] = s
		c.checkText(field+".description", s.Description)
		if len(s.Match) == 0 {
			c.fault(field+".match", "say which labels its agents have, like {function: storage}", "is missing")
		}
		c.checkGuard(field+".egress", s.Egress)
		c.bound(field+".match", len(s.Match), maxLabels)
		for _, key := range s.Match.keys() {
			c.checkCondition(join(field+".match", key), key, s.Match[key])
		}
	}
	c.names = slices.Sorted(maps.Keys(c.segments))
}

func (c *checker) checkCondition(field, key string, cond Condition) {
	if err := ValidName(key); err != nil {
		c.fault(field, "name a label key, like function", "label key: %v", err)
	}
	c.bound(field, len(cond.Values), maxValues)
	if len(cond.Values) == 0 {
		c.fault(field, conditionFix, "has no value")
	}
	for i, v := range cond.Values {
		if err := validValue(v); err != nil {
			c.fault(field, conditionFix, "%v", err)
		} else if key == LabelSensitivity && !slices.Contains(c.scale, v) {
			c.fault(field, "use one of "+strings.Join(c.scale, ", "), "there is no sensitivity %q", v)
		} else if slices.Index(cond.Values, v) != i {
			c.fault(field, oneFix, "%q is there twice", v)
		}
	}
	switch {
	case cond.Op == "":
	case !slices.Contains(operators, cond.Op) || len(cond.Values) > 1:
		c.fault(field, conditionFix, "%.10q is no comparison with one value", cond.Op)
	case key != LabelSensitivity:
		c.fault(field, "name the values", "only sensitivity has an order to compare by %q", cond.Op)
	}
}

func (c *checker) checkRules() {
	seen := make(map[string]bool)
	for i := range c.policy.Rules {
		r := &c.policy.Rules[i]
		field := fmt.Sprintf("rules[%d]", i)
		c.checkName(field+".name", r.Name, "research-reads-vectors", seen)
		from, to := c.segmentOf(field+".from", r.From), c.segmentOf(field+".to", r.To)
		c.checkAllow(field+".allow", r.Allow)
		c.checkText(field+".crosses", r.Crosses)
		if from != nil && to != nil {
			c.checkCrossing(field+".crosses", r, from, to)
		}
		if r.Until != nil && (r.Until.IsZero() || r.Until.UTC().Year() < 1 || r.Until.UTC().Year() > 9999) {
			c.fault(field+".until", timeFix, "is no time between the years 1 and 9999")
		}
	}
}

func (c *checker) segmentOf(field, name string) *Segment {
	if s := c.segments[name]; s != nil && name != "" {
		return s
	}
	if name == "" {
		c.fault(field, "name a segment", "is missing")
		return nil
	}
	fix := "declare it under segments"
	if near := nearestName(name, c.names); near != "" {
		fix += "; did you mean " + near + "?"
	}
	c.fault(field, fix, "there is no segment %.63q", name)
	return nil
}

func (c *checker) checkAllow(field string, allow []Ports) {
	c.bound(field, len(allow), maxAllow)
	if len(allow) == 0 {
		c.fault(field, "name ports, like [tcp/443]", "allows nothing")
	}
	for i, p := range allow {
		if again, ok := parsePorts(p.String()); !ok || again != p {
			c.fault(fmt.Sprintf("%s[%d]", field, i), portFix, "%q is no port", p)
		}
	}
}

// checkCrossing demands a reason where the two ends of a connection, which carries data both ways, can differ
// in sensitivity.
func (c *checker) checkCrossing(field string, r *Rule, from, to *Segment) {
	if strings.TrimSpace(r.Crosses) != "" || len(from.Match) == 0 || len(to.Match) == 0 {
		return
	}
	for _, a := range from.Match.levels(c.scale) {
		for _, b := range to.Match.levels(c.scale) {
			if a != b {
				c.fault(field, `say why data may pass, like "the store filters what internal agents may read"`,
					"is missing: an agent of %s can be %s while one of %s is %s", r.From, a, r.To, b)
				return
			}
		}
	}
}

func (c *checker) checkTests() {
	for i, t := range c.policy.Tests {
		field := fmt.Sprintf("tests[%d]", i)
		c.checkAgent(field+".from", t.From)
		c.checkAgent(field+".to", t.To)
		if again, err := ParsePort(t.Port.String()); err != nil || again != t.Port {
			c.fault(field+".port", "name a port, like tcp/443", "is missing")
		}
		if t.Expect != "allow" && t.Expect != "deny" {
			c.fault(field+".expect", "write allow or deny", "%.20q is no verdict", t.Expect)
		}
	}
}

func (c *checker) checkAgent(field, text string) {
	name, ok := strings.CutPrefix(text, "agent/")
	if !ok || ValidName(name) != nil {
		c.fault(field, "name an agent, like agent/scout", "%.70q is no agent", text)
	}
}

// checkText wants text that a terminal and an audit line can show as it is.
func (c *checker) checkText(field, text string) {
	odd := func(r rune) bool { return r != '\n' && !unicode.IsGraphic(r) }
	if len(text) > maxText {
		c.fault(field, "shorten it", "has %d bytes, more than %d", len(text), maxText)
	} else if !utf8.ValidString(text) || strings.ContainsFunc(text, odd) {
		c.fault(field, "write visible characters, spaces and line ends", "has invisible characters")
	}
}

// nearestName is the name that shares the longest beginning, if it is long enough for a slip.
func nearestName(name string, among []string) string {
	best, longest := "", 2
	for _, candidate := range among {
		n := 0
		for n < min(len(candidate), len(name)) && candidate[n] == name[n] {
			n++
		}
		if n > longest {
			best, longest = candidate, n
		}
	}
	return best
}
