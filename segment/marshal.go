package segment

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Marshal is the YAML text that Parse reads as p. A policy that is not valid has none: the error is Validate's.
func (p *Policy) Marshal() ([]byte, error) {
	if err := p.Validate(); err != nil {
		return nil, fmt.Errorf("write policy: %w", err)
	}
	var w writer
	if len(p.Sensitivity) > 0 {
		w.line("sensitivity: %s", flow(p.Sensitivity))
	}
	w.list("segments", len(p.Segments), func(i int) { w.segment(&p.Segments[i]) })
	w.list("rules", len(p.Rules), func(i int) { w.rule(&p.Rules[i]) })
	w.list("tests", len(p.Tests), func(i int) {
		t := p.Tests[i]
		w.line("  - {from: %s, to: %s, port: %s, expect: %s}", t.From, t.To, t.Port, t.Expect)
	})
	return []byte(w.String()), nil
}

// writer writes one field per line, lists of words in brackets, as people do.
type writer struct{ strings.Builder }

func (w *writer) line(format string, args ...any) { fmt.Fprintf(w, format+"\n", args...) }

func (w *writer) list(field string, n int, write func(i int)) {
	if n > 0 {
		w.line("%s:", field)
	}
	for i := range n {
		write(i)
	}
}

func (w *writer) segment(s *Segment) {
	w.line("  - name: %s", quote(s.Name))
	if s.Description != "" {
		w.line("    description: %s", quote(s.Description))
	}
	conditions := make([]string, 0, len(s.Match))
	for _, key := range s.Match.keys() {
		c := s.Match[key]
		text := quote(c.Op + c.Values[0])
		if len(c.Values) > 1 {
			text = flow(c.Values)
		}
		conditions = append(conditions, quote(key)+": "+text)
	}
	w.line("    match: {%s}", strings.Join(conditions, ", "))
	w.guard(s.Egress)
}

func (w *writer) guard(g Guard) {
	if g.Mode != "" {
		w.line("    egress: %s", g.Mode)
	}
	if len(g.Rules) > 0 {
		w.line("    egress:")
	}
	for _, r := range g.Rules {
		w.line("      - {to: %s, allow: [%s]}", strconv.Quote(r.To), joinPorts(r.Allow))
	}
}

func (w *writer) rule(r *Rule) {
	w.line("  - name: %s", quote(r.Name))
	w.line("    from: %s", quote(r.From))
	w.line("    to: %s", quote(r.To))
	w.line("    allow: [%s]", joinPorts(r.Allow))
	if r.Crosses != "" {
		w.line("    crosses: %s", quote(r.Crosses))
	}
	if r.Until != nil {
		w.line("    until: %s", r.Until.UTC().Format(time.RFC3339Nano))
	}
}

func flow(words []string) string {
	quoted := make([]string, len(words))
	for i, word := range words {
		quoted[i] = quote(word)
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}

// quote leaves alone what every YAML reader takes for plain text.
func quote(s string) string {
	switch strings.ToLower(s) {
	case "y", "n", "yes", "no", "on", "off", "true", "false", "null":
		return strconv.Quote(s)
	}
	for i, c := range []byte(s) {
		letter := (c|0x20 >= 'a' && c|0x20 <= 'z')
		inner := i > 0 && (c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.' || c == '/' || c == ' ' && i < len(s)-1)
		if !letter && !inner {
			return strconv.Quote(s)
		}
	}
	return s
}
