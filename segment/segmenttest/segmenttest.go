// Package segmenttest draws random meshes for property tests: valid policies, agents and flows from a few labels and
// ports, so that what one draws often concerns the other.
package segmenttest

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"pgregory.net/rapid"

	"github.com/bulkhead-mesh/bulkhead/segment"
)

var (
	functions = []string{"plan", "tool", "store"}
	levels    = []string{"public", "internal", "confidential"}
	ports     = []segment.Ports{
		{Proto: segment.TCP, First: 443, Last: 443}, {Proto: segment.TCP, First: 440, Last: 450},
		{Proto: segment.TCP, First: 6000, Last: 6999}, {Proto: segment.UDP, First: 443, Last: 443},
		{Proto: segment.UDP, First: 53, Last: 53}, {Proto: segment.ICMP},
	}
)

// Policy draws a valid policy. Rules may end at one of the times given; with none, no rule ends.
func Policy(t *rapid.T, ends ...time.Time) *segment.Policy {
	p := &segment.Policy{}
	if rapid.Bool().Draw(t, "own scale") {
		p.Sensitivity = rapid.Permutation(levels).Draw(t, "scale")
	}
	for i := range rapid.SampledFrom([]int{2, 5, 4, 3, 1}).Draw(t, "segments") {
		p.Segments = append(p.Segments, segment.Segment{Name: fmt.Sprintf("s%d", i), Description: text(t, "description"), Match: Selector(t), Egress: guard(t)})
	}
	for i := range rapid.SampledFrom([]int{1, 8, 5, 4, 3, 2, 0}).Draw(t, "rules") {
		p.Rules = append(p.Rules, rule(t, fmt.Sprintf("r%d", i), p.Segments, ends))
	}
	addReasons(t, p)
	return p
}

func guard(t *rapid.T) (g segment.Guard) {
	switch rapid.SampledFrom([]string{"", segment.GuardHost, segment.GuardNone, "list"}).Draw(t, "egress") {
	case segment.GuardHost:
		g.Mode = segment.GuardHost
	case segment.GuardNone:
		g.Mode = segment.GuardNone
	case "list":
		for range rapid.IntRange(1, 3).Draw(t, "destinations") {
			g.Rules = append(g.Rules, segment.EgressRule{
				To:    rapid.SampledFrom([]string{"192.0.2.0/24", "2001:db8::/32", "api.example.com", "*.example.org", "0.0.0.0/0"}).Draw(t, "to"),
				Allow: rapid.SliceOfNDistinct(rapid.SampledFrom(ports), 1, 3, rapid.ID).Draw(t, "egress ports"),
			})
		}
	}
	return g
}

func rule(t *rapid.T, name string, segments []segment.Segment, ends []time.Time) segment.Rule {
	pick := func(label string) string { return rapid.SampledFrom(segments).Draw(t, label).Name }
	r := segment.Rule{
		Name: name, From: pick("from"), To: pick("to"),
		Allow: rapid.SliceOfNDistinct(rapid.SampledFrom(ports), 2, 5, rapid.ID).Draw(t, "allow"),
	}
	if len(ends) > 0 && rapid.IntRange(0, 2).Draw(t, "rule ends") == 2 {
		end := rapid.SampledFrom(ends).Draw(t, "until").UTC()
		r.Until = &end
	}
	return r
}

// addReasons gives the rules that cross sensitivities their reason, and nothing else should be wrong.
func addReasons(t *rapid.T, p *segment.Policy) {
	refusal, refused := errors.AsType[*segment.PolicyError](p.Validate())
	if !refused {
		return
	}
	for _, problem := range refusal.Problems {
		var i int
		if _, err := fmt.Sscanf(problem.Field, "rules[%d].crosses", &i); err != nil {
			t.Fatalf("drew an invalid policy: %v", refusal)
		}
		p.Rules[i].Crosses = "why not " + text(t, "crosses")
	}
}

func text(t *rapid.T, label string) string {
	return rapid.StringOfN(rapid.SampledFrom([]rune("a:#'\"\\\n {[é😀")), 0, 6, -1).Draw(t, label)
}

// Selector draws a selector on function, sensitivity or both.
func Selector(t *rapid.T) segment.Selector {
	s := segment.Selector{}
	which := rapid.SampledFrom([]int{1, 1, 2, 2, 3}).Draw(t, "labels") // both seldom: few agents meet two conditions
	if which&1 != 0 {
		s[segment.LabelFunction] = segment.Condition{Values: rapid.SliceOfNDistinct(rapid.SampledFrom(functions), 1, 2, rapid.ID).Draw(t, "functions")}
	}
	if which&2 != 0 {
		op := rapid.SampledFrom([]string{"", "", "<", "<=", ">", ">="}).Draw(t, "comparison")
		most := 1
		if op == "" {
			most = 2
		}
		s[segment.LabelSensitivity] = segment.Condition{Op: op, Values: rapid.SliceOfNDistinct(rapid.SampledFrom(levels), 1, most, rapid.ID).Draw(t, "levels")}
	}
	return s
}

// Labels draws the labels of an agent; sensitivity is missing now and then.
func Labels(t *rapid.T) segment.Labels {
	labels := segment.Labels{segment.LabelFunction: rapid.SampledFrom(functions).Draw(t, "function")}
	if level := rapid.SampledFrom([]string{"public", "internal", "confidential", "internal", ""}).Draw(t, "sensitivity"); level != "" {
		labels[segment.LabelSensitivity] = level
	}
	return labels
}

// Agents draws 1 to most agents for each host, named a0, a1 and so on, with addresses 10.201.0.1, fd00::1 and so on.
func Agents(t *rapid.T, hosts []string, most int) []segment.Agent {
	var agents []segment.Agent
	for _, host := range hosts {
		for range rapid.IntRange(1, most).Draw(t, "agents of "+host) {
			n := len(agents)
			agents = append(agents, segment.Agent{
				Name: fmt.Sprintf("a%d", n), Host: host, Labels: Labels(t),
				Addresses: []netip.Addr{
					netip.AddrFrom4([4]byte{10, 201, byte((n + 1) >> 8), byte(n + 1)}),
					netip.AddrFrom16([16]byte{0: 0xfd, 14: byte((n + 1) >> 8), 15: byte(n + 1)}),
				},
			})
		}
	}
	return agents
}

// Port draws a port that the rules of Policy often allow.
func Port(t *rapid.T) segment.Port {
	return rapid.SampledFrom([]segment.Port{
		{Proto: segment.TCP, Number: 443}, {Proto: segment.TCP, Number: 450}, {Proto: segment.ICMP}, {Proto: segment.UDP, Number: 53},
		{Proto: segment.TCP, Number: 6500}, {Proto: segment.UDP, Number: 443}, {Proto: segment.TCP, Number: 451},
	}).Draw(t, "port")
}
