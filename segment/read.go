package segment

import (
	"fmt"
	"strings"
	"time"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"
)

// reader turns a document's tree into a Policy, and remembers where each field stood. Every value is read by its
// text, so that a name like 007 or true stays what was written.
type reader struct {
	places   map[string]token.Position
	problems []Problem
}

func (r *reader) fault(field string, n ast.Node, fix, format string, args ...any) {
	p := Problem{Field: field, Message: fmt.Sprintf(format, args...), Fix: fix}
	p.Line, p.Column = place(n)
	if field == "" {
		p.Field = "document"
	}
	r.problems = append(r.problems, p)
}

// place is where a node begins; a block mapping begins at its first key.
func place(n ast.Node) (line, column int) {
	switch m := n.(type) {
	case *ast.MappingNode:
		if !m.IsFlowStyle && len(m.Values) > 0 {
			n = m.Values[0].Key
		}
	case *ast.MappingValueNode:
		n = m.Key
	}
	if t := n.GetToken(); t != nil && t.Position != nil {
		return max(t.Position.Line, 1), max(t.Position.Column, 1)
	}
	return 1, 1
}

func (r *reader) mark(field string, n ast.Node) {
	line, column := place(n)
	r.places[field] = token.Position{Line: line, Column: column}
}

// locate gives a problem the position of its field, or of the nearest one around it.
func (r *reader) locate(p *Problem) {
	p.Line, p.Column = 1, 1
	for field := p.Field; field != ""; field = field[:max(strings.LastIndexAny(field, ".["), 0)] {
		if at, ok := r.places[field]; ok {
			p.Line, p.Column = at.Line, at.Column
			return
		}
	}
}

// fields calls take for each member of a mapping. Members that take does not know, or that are there twice,
// are problems.
func (r *reader) fields(field string, n ast.Node, known string, take func(key, path string, value ast.Node) bool) {
	var members []*ast.MappingValueNode
	switch m := n.(type) {
	case *ast.MappingNode:
		members = m.Values
	case *ast.MappingValueNode:
		members = []*ast.MappingValueNode{m}
	default:
		r.fault(field, n, "write it like key: value", "is no mapping")
		return
	}
	seen := make(map[string]bool, len(members))
	for _, member := range members {
		key, ok := scalar(member.Key)
		path := join(field, key)
		switch {
		case !ok || key == "":
			r.fault(field, member.Key, "write it like key: value", "has a key that is no plain text")
		case seen[key]:
			r.fault(path, member.Key, "leave one of them out", "is there twice")
		default:
			seen[key] = true
			r.mark(path, member.Value)
			if _, null := member.Value.(*ast.NullNode); null {
				r.mark(path, member.Key)
			}
			if !take(key, path, member.Value) {
				r.fault(path, member.Key, "use "+known, "unknown field")
			}
		}
	}
}

// join makes the path of a member; what can be no field of ours is quoted and cut.
func join(field, key string) string {
	if ValidName(key) != nil {
		key = fmt.Sprintf("%.40q", key)
	}
	return strings.TrimPrefix(field+"."+key, ".")
}

// list calls take for each entry of a sequence.
func (r *reader) list(field string, n ast.Node, take func(path string, entry ast.Node)) {
	if _, null := n.(*ast.NullNode); null {
		return
	}
	s, ok := n.(*ast.SequenceNode)
	if !ok {
		r.fault(field, n, "write it like [a, b], or one line for each with - before it", "is no list")
		return
	}
	for i, entry := range s.Values {
		path := fmt.Sprintf("%s[%d]", field, i)
		r.mark(path, entry)
		take(path, entry)
	}
}

// text reads a scalar.
func (r *reader) text(field string, n ast.Node) string {
	s, _ := r.readText(field, n)
	return s
}

func (r *reader) readText(field string, n ast.Node) (string, bool) {
	s, ok := scalar(n)
	if _, null := n.(*ast.NullNode); null {
		r.fault(field, n, "write a value, or leave the field out", "is empty")
	} else if !ok {
		r.fault(field, n, "write one value, in quotes if it has special characters", "is no plain text")
	}
	return s, ok
}

// scalar is the text of a plain, quoted or block scalar.
func scalar(n ast.Node) (string, bool) {
	switch n := n.(type) {
	case *ast.StringNode:
		return n.Value, true
	case *ast.LiteralNode:
		return n.Value.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode:
		return n.GetToken().Value, true
	default:
		return "", false
	}
}

func (r *reader) policy(n ast.Node) *Policy {
	p := &Policy{}
	if n == nil {
		return p
	}
	if _, null := n.(*ast.NullNode); null {
		return p
	}
	r.fields("", n, "sensitivity, segments, rules or tests", func(key, path string, v ast.Node) bool {
		switch key {
		case "sensitivity":
			r.list(path, v, func(path string, e ast.Node) { p.Sensitivity = append(p.Sensitivity, r.text(path, e)) })
		case "segments":
			r.list(path, v, func(path string, e ast.Node) { p.Segments = append(p.Segments, r.segment(path, e)) })
		case "rules":
			r.list(path, v, func(path string, e ast.Node) { p.Rules = append(p.Rules, r.rule(path, e)) })
		case "tests":
			r.list(path, v, func(path string, e ast.Node) { p.Tests = append(p.Tests, r.test(path, e)) })
		default:
			return false
		}
		return true
	})
	return p
}

func (r *reader) segment(field string, n ast.Node) (s Segment) {
	r.fields(field, n, "name, description, match or egress", func(key, path string, v ast.Node) bool {
		switch key {
		case "name":
			s.Name = r.text(path, v)
		case "description":
			s.Description = r.text(path, v)
		case "match":
			s.Match = Selector{}
			r.fields(path, v, "", func(key, path string, v ast.Node) bool {
				s.Match[key] = r.condition(path, v)
				return true
			})
		case "egress":
			s.Egress = r.guard(path, v)
		default:
			return false
		}
		return true
	})
	return s
}

const conditionFix = `write a value, a list of values, or a bound in quotes like "<=confidential"`

func (r *reader) condition(field string, n ast.Node) (c Condition) {
	if _, many := n.(*ast.SequenceNode); many {
		r.list(field, n, func(path string, e ast.Node) { c.Values = append(c.Values, r.text(path, e)) })
		return c
	}
	text, ok := scalar(n)
	if _, block := n.(*ast.LiteralNode); !ok || block {
		r.fault(field, n, conditionFix, "is no condition")
		return c
	}
	c, err := ParseCondition(text)
	if err != nil {
		r.fault(field, n, conditionFix, "%v", err)
	}
	return c
}

func (r *reader) rule(field string, n ast.Node) (rule Rule) {
	r.fields(field, n, "name, from, to, allow, crosses or until", func(key, path string, v ast.Node) bool {
		switch key {
		case "name":
			rule.Name = r.text(path, v)
		case "from":
			rule.From = r.text(path, v)
		case "to":
			rule.To = r.text(path, v)
		case "crosses":
			rule.Crosses = r.text(path, v)
		case "allow":
			r.list(path, v, func(path string, e ast.Node) { rule.Allow = append(rule.Allow, r.ports(path, e)) })
		case "until":
			rule.Until = r.time(path, v)
		default:
			return false
		}
		return true
	})
	return rule
}

func (r *reader) ports(field string, n ast.Node) Ports {
	text, readable := r.readText(field, n)
	p, ok := parsePorts(text)
	if readable && !ok {
		r.fault(field, n, portFix, "%.40q is no port", text)
	}
	return p
}

func (r *reader) time(field string, n ast.Node) *time.Time {
	text, readable := r.readText(field, n)
	t, err := time.Parse(time.RFC3339, text)
	if readable && err != nil {
		r.fault(field, n, timeFix, "%.40q is no time", text)
	}
	t = t.UTC()
	return &t
}

func (r *reader) test(field string, n ast.Node) (t Test) {
	r.fields(field, n, "from, to, port or expect", func(key, path string, v ast.Node) bool {
		switch key {
		case "from":
			t.From = r.text(path, v)
		case "to":
			t.To = r.text(path, v)
		case "port":
			p := r.ports(path, v)
			if p.First != p.Last {
				r.fault(path, v, "name one of them", "%s is a range", p)
			}
			t.Port = Port{Proto: p.Proto, Number: p.First}
		case "expect":
			t.Expect = r.text(path, v)
		default:
			return false
		}
		return true
	})
	return t
}
