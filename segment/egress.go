package segment

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/goccy/go-yaml/ast"
)

// Guard is what a segment says of the world outside the overlay: nothing, a word, or a list. As text it is host, none, or
// a list of rules.
type Guard struct {
	Mode  string       // "", GuardHost or GuardNone; "" with rules: the list
	Rules []EgressRule // at least one in a list
}

// What a Guard's mode may be.
const (
	GuardHost = "host" // whatever the host may reach
	GuardNone = "none" // nothing
)

// EgressRule opens ports of a destination outside the overlay.
type EgressRule struct {
	To    string  `json:"to"` // a CIDR, a DNS name, or *.suffix
	Allow []Ports `json:"allow"`
}

// Egress is what an agent may reach outside the overlay.
type Egress struct {
	Guarded bool         // nothing but what Rules say; false: whatever its host may
	Rules   []EgressRule // of a guarded agent
}

// EgressChange is a segment whose guard two policies give differently, in words.
type EgressChange struct {
	Segment string `json:"segment"`
	Old     string `json:"old"`
	New     string `json:"new"`
}

const (
	maxEgress = 256
	guardFix  = "write host, none, or a list like [{to: 192.0.2.0/24, allow: [tcp/443]}, {to: api.example.com, allow: [tcp/443]}]"
	toFix     = "write a CIDR like 192.0.2.0/24, a DNS name like api.example.com, or *.example.com"
)

// EgressOf joins what the segments of an agent say: those that say none or give a list guard it, and it may reach what
// any of them lists. What two segments list, as network policies of Kubernetes do, adds up.
func (p *Policy) EgressOf(a Agent) Egress {
	var e Egress
	for i := range p.Segments {
		s := &p.Segments[i]
		if s.Egress.guards() && s.Match.Matches(a.Labels, p.Scale()) {
			e.Guarded = true
			e.Rules = append(e.Rules, s.Egress.Rules...)
		}
	}
	return e
}

func (g Guard) guards() bool { return g.Mode == GuardNone || len(g.Rules) > 0 }

// NamesMatch reports whether a pattern of an EgressRule, a DNS name or *.suffix, names a DNS name.
func NamesMatch(pattern, name string) bool {
	pattern, name = strings.ToLower(pattern), strings.ToLower(strings.TrimSuffix(name, "."))
	if suffix, ok := strings.CutPrefix(pattern, "*"); ok {
		return len(name) > len(suffix) && strings.HasSuffix(name, suffix)
	}
	return pattern == name
}

// String is the guard in words.
func (g Guard) String() string {
	if len(g.Rules) == 0 {
		if g.Mode == "" {
			return GuardHost
		}
		return g.Mode
	}
	parts := make([]string, len(g.Rules))
	for i, r := range g.Rules {
		parts[i] = r.String()
	}
	return strings.Join(parts, "; ")
}

// String is the rule in words.
func (r EgressRule) String() string { return r.To + " " + joinPorts(r.Allow) }

// MarshalJSON is the word, or the list.
func (g Guard) MarshalJSON() ([]byte, error) {
	if len(g.Rules) > 0 {
		return json.Marshal(g.Rules)
	}
	return json.Marshal(g.String())
}

// UnmarshalJSON reads the word, or the list.
func (g *Guard) UnmarshalJSON(b []byte) error {
	var word string
	if json.Unmarshal(b, &word) == nil {
		*g = Guard{Mode: word}
		return nil
	}
	var rules []EgressRule
	if err := json.Unmarshal(b, &rules); err != nil {
		return fmt.Errorf("read egress: %w (fix: %s)", err, guardFix)
	}
	*g = Guard{Rules: rules}
	if len(rules) == 0 {
		g.Mode = "[]" // which is refused
	}
	return nil
}

func (r *reader) guard(field string, n ast.Node) (g Guard) {
	switch n.(type) {
	case *ast.SequenceNode:
	case *ast.MappingNode, *ast.MappingValueNode:
		r.fault(field, n, guardFix, "is no egress")
		return g
	default:
		g.Mode = r.text(field, n)
		return g
	}
	r.list(field, n, func(path string, e ast.Node) {
		var rule EgressRule
		r.fields(path, e, "to or allow", func(key, path string, v ast.Node) bool {
			switch key {
			case "to":
				rule.To = r.text(path, v)
			case "allow":
				r.list(path, v, func(path string, e ast.Node) { rule.Allow = append(rule.Allow, r.ports(path, e)) })
			default:
				return false
			}
			return true
		})
		g.Rules = append(g.Rules, rule)
	})
	if len(g.Rules) == 0 {
		g.Mode = "[]"
	}
	return g
}

func (c *checker) checkGuard(field string, g Guard) {
	if g.Mode != "" && g.Mode != GuardHost && g.Mode != GuardNone || g.Mode != "" && len(g.Rules) > 0 {
		c.fault(field, guardFix, "%.40q is no egress", g.Mode)
	}
	c.bound(field, len(g.Rules), maxEgress)
	for i, r := range g.Rules {
		at := fmt.Sprintf("%s[%d]", field, i)
		if r.To == "" {
			c.fault(at+".to", toFix, "is missing")
		} else if err := checkDestination(r.To); err != nil {
			c.fault(at+".to", toFix, "%v", err)
		}
		c.checkAllow(at+".allow", r.Allow)
	}
}

// checkDestination wants a prefix without host bits, or a DNS name of at least two labels.
func checkDestination(to string) error {
	if strings.ContainsAny(to, "/:") {
		p, err := netip.ParsePrefix(to)
		if err != nil {
			return fmt.Errorf("%.80q is no CIDR", to)
		}
		if p.Addr().Is4In6() {
			return fmt.Errorf("%q is IPv4 written as IPv6", to)
		}
		if p.Masked() != p {
			return fmt.Errorf("%q has bits beyond its length: it is %s", to, p.Masked())
		}
		return nil
	}
	name := strings.TrimPrefix(to, "*.")
	labels := strings.Split(name, ".")
	number := strings.Trim(labels[len(labels)-1], "0123456789") == "" // an address, or a part of one
	if number || len(name) > 253 || len(labels) < 2 || slices.ContainsFunc(labels, func(l string) bool { return ValidName(l) != nil }) {
		return fmt.Errorf("%.80q is neither a CIDR nor a DNS name in lower case", to)
	}
	return nil
}

// diffEgress are the segments whose guard differs.
func diffEgress(old, new *Policy) []EgressChange {
	guards := func(p *Policy) map[string]string {
		out := make(map[string]string, len(p.Segments))
		for _, s := range p.Segments {
			out[s.Name] = s.Egress.String()
		}
		return out
	}
	before, after := guards(old), guards(new)
	var changes []EgressChange
	for _, s := range new.Segments {
		was, there := before[s.Name]
		if !there {
			was = GuardHost
		}
		if was != after[s.Name] {
			changes = append(changes, EgressChange{Segment: s.Name, Old: was, New: after[s.Name]})
		}
	}
	for _, s := range old.Segments {
		if _, there := after[s.Name]; !there && s.Egress.guards() {
			changes = append(changes, EgressChange{Segment: s.Name, Old: before[s.Name], New: GuardHost})
		}
	}
	return changes
}
