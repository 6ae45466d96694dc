package segment

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

const (
	// MaxDocument is the longest policy text, bytes.
	MaxDocument = 4 << 20
	maxDepth    = 16 // of nesting; a policy needs 5
)

// Parse reads a policy, YAML or JSON, and validates it. The error is a *PolicyError whose problems carry line,
// column, field and fix. An empty document denies everything.
func Parse(data []byte) (*Policy, error) {
	if len(data) > MaxDocument {
		return nil, &PolicyError{[]Problem{{Message: fmt.Sprintf("policy has %d bytes, more than %d", len(data), MaxDocument)}}}
	}
	if p := tooDeep(data); p != nil {
		return nil, &PolicyError{[]Problem{*p}}
	}
	root, problem := parseTree(data)
	if problem != nil {
		return nil, &PolicyError{[]Problem{*problem}}
	}
	r := &reader{positions: make(map[string]position)}
	policy := r.policy(root)
	if len(r.problems) > 0 {
		return nil, &PolicyError{r.problems}
	}
	if err := policy.Validate(); err != nil {
		refused := err.(*PolicyError)
		for i := range refused.Problems {
			r.locate(&refused.Problems[i])
		}
		return nil, refused
	}
	return policy, nil
}

// parseTree returns the one document's node; nil for an empty document.
func parseTree(data []byte) (node ast.Node, problem *Problem) {
	defer func() { // the library's parser has panicked on hostile input before
		if recover() != nil {
			node, problem = nil, &Problem{Message: "is not YAML"}
		}
	}()
	file, err := parser.ParseBytes(data, 0)
	if err != nil {
		var syntax *yaml.SyntaxError
		if errors.As(err, &syntax) {
			return nil, &Problem{Line: syntax.Token.Position.Line, Column: syntax.Token.Position.Column, Message: syntax.Message}
		}
		return nil, &Problem{Message: firstLine(err.Error())}
	}
	switch len(file.Docs) {
	case 0:
		return nil, nil
	case 1:
		return file.Docs[0].Body, nil
	default:
		return nil, &Problem{Message: "has more than one document", Fix: "keep one, without ---"}
	}
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

// tooDeep refuses, before the parser recurses into it, text that nests deeper than any policy.
func tooDeep(data []byte) *Problem {
	depth, line := 0, 1
	markers, atToken := 0, true
	for i, c := range data {
		switch c {
		case '\n':
			line++
			markers, atToken = 0, true
			continue
		case '[', '{':
			depth++
		case ']', '}':
			depth = max(depth-1, 0)
		}
		// "- - - x" and "!a !b x" nest on one line.
		if atToken && (c == '!' || c == '&' || ((c == '-' || c == '?' || c == ':') && i+1 < len(data) && (data[i+1] == ' ' || data[i+1] == '\t'))) {
			markers++
		}
		atToken = c == ' ' || c == '\t'
		if depth > maxDepth || markers > maxDepth*maxDepth {
			return &Problem{Line: line, Message: "nests too deeply for a policy"}
		}
	}
	return nil
}

type position struct{ line, column int }

// reader turns the tree into a Policy and remembers where each field stood.
type reader struct {
	positions map[string]position
	problems  []Problem
}

func (r *reader) fault(field string, n ast.Node, fix, format string, args ...any) {
	p := Problem{Field: field, Fix: fix, Message: fmt.Sprintf(format, args...)}
	if t := n.GetToken(); t != nil {
		p.Line, p.Column = t.Position.Line, t.Position.Column
	}
	r.problems = append(r.problems, p)
}

// locate gives a problem the position of its field, or of the nearest one around it.
func (r *reader) locate(p *Problem) {
	for field := p.Field; field != ""; {
		if at, ok := r.positions[field]; ok {
			p.Line, p.Column = at.line, at.column
			return
		}
		cut := strings.LastIndexAny(field, ".[")
		field = field[:max(cut, 0)]
	}
}

func (r *reader) mark(field string, n ast.Node) {
	if t := n.GetToken(); t != nil {
		r.positions[field] = position{t.Position.Line, t.Position.Column}
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
		r.fault(field, n, "write it like {key: value}", "is not a mapping")
		return
	}
	seen := make(map[string]bool, len(members))
	for _, member := range members {
		key, ok := scalar(member.Key)
		path := strings.TrimPrefix(field+"."+key, ".")
		switch {
		case !ok:
			r.fault(field, member.Key, "write plain keys", "has a key that is no plain text")
		case seen[key]:
			r.fault(path, member.Key, "leave one of them out", "is there twice")
		default:
			seen[key] = true
			r.mark(path, member.Key)
			if !take(key, path, member.Value) {
				r.fault(path, member.Key, "use one of "+known, "unknown field")
			}
		}
	}
}

// list calls take for each entry of a sequence.
func (r *reader) list(field string, n ast.Node, take func(i int, path string, entry ast.Node)) {
	if _, null := n.(*ast.NullNode); null {
		return
	}
	s, ok := n.(*ast.SequenceNode)
	if !ok {
		r.fault(field, n, "write it like [a, b]", "is not a list")
		return
	}
	for i, entry := range s.Values {
		path := fmt.Sprintf("%s[%d]", field, i)
		r.mark(path, entry)
		take(i, path, entry)
	}
}

// text reads a scalar.
func (r *reader) text(field string, n ast.Node) string {
	s, ok := scalar(n)
	if !ok {
		r.fault(field, n, "write one value", "is not plain text")
	}
	return s
}

// scalar is the text of a plain, quoted or block scalar; anchors, aliases, tags and merge keys are refused.
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
	r.fields("", n, "sensitivity, segments, rules, tests", func(key, path string, v ast.Node) bool {
		switch key {
		case "sensitivity":
			r.list(path, v, func(_ int, path string, e ast.Node) { p.Sensitivity = append(p.Sensitivity, r.text(path, e)) })
		case "segments":
			r.list(path, v, func(_ int, path string, e ast.Node) { p.Segments = append(p.Segments, r.segment(path, e)) })
		case "rules":
			r.list(path, v, func(_ int, path string, e ast.Node) { p.Rules = append(p.Rules, r.rule(path, e)) })
		case "tests":
			r.list(path, v, func(_ int, path string, e ast.Node) { p.Tests = append(p.Tests, r.test(path, e)) })
		default:
			return false
		}
		return true
	})
	return p
}

func (r *reader) segment(field string, n ast.Node) (s Segment) {
	r.fields(field, n, "name, description, match", func(key, path string, v ast.Node) bool {
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
		default:
			return false
		}
		return true
	})
	return s
}

func (r *reader) condition(field string, n ast.Node) Condition {
	if _, many := n.(*ast.SequenceNode); many {
		var c Condition
		r.list(field, n, func(_ int, path string, e ast.Node) { c.Values = append(c.Values, r.text(path, e)) })
		return c
	}
	text, ok := scalar(n)
	if !ok {
		r.fault(field, n, `write a value, a list of values, or "<=confidential"`, "is no condition")
		return Condition{}
	}
	c, err := ParseCondition(text)
	if err != nil {
		r.fault(field, n, "", "%v", err)
	}
	return c
}

func (r *reader) rule(field string, n ast.Node) (rule Rule) {
	r.fields(field, n, "name, from, to, allow, crosses, until", func(key, path string, v ast.Node) bool {
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
			r.list(path, v, func(_ int, path string, e ast.Node) {
				ports, err := ParsePorts(r.text(path, e))
				if err != nil {
					r.fault(path, e, "", "%v", err)
				}
				rule.Allow = append(rule.Allow, ports)
			})
		case "until":
			until, err := time.Parse(time.RFC3339, r.text(path, v))
			if err != nil {
				r.fault(path, v, "write it like 2027-01-31T00:00:00Z", "is no RFC 3339 time")
			}
			rule.Until = &until
		default:
			return false
		}
		return true
	})
	return rule
}

func (r *reader) test(field string, n ast.Node) (t Test) {
	r.fields(field, n, "from, to, port, expect", func(key, path string, v ast.Node) bool {
		switch key {
		case "from":
			t.From = r.text(path, v)
		case "to":
			t.To = r.text(path, v)
		case "expect":
			t.Expect = r.text(path, v)
		case "port":
			port, err := ParsePort(r.text(path, v))
			if err != nil {
				r.fault(path, v, "", "%v", err)
			}
			t.Port = port
		default:
			return false
		}
		return true
	})
	return t
}

// Marshal is the YAML text that Parse reads as p.
func (p *Policy) Marshal() ([]byte, error) {
	data, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("write policy: %w", err)
	}
	text, err := yaml.JSONToYAML(data)
	if err != nil {
		return nil, fmt.Errorf("write policy: %w", err)
	}
	return text, nil
}
