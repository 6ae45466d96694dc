package segment

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Reached is an agent that another can get to.
type Reached struct {
	Agent string   `json:"agent"`
	Hops  int      `json:"hops"`  // 1 is directly
	Via   []string `json:"via"`   // agents on a shortest way, in order, without the two ends
	Ports []Ports  `json:"ports"` // that the last hop may open
	Rules []string `json:"rules"` // that say so, sorted
}

// Reach is the blast radius of an agent: all whom it can get to at now, directly or by taking over each agent on
// the way. Nearest first, then by name.
func (p *Policy) Reach(agent string, agents []Agent, now time.Time) ([]Reached, error) {
	g := newGraph(p, agents, now)
	if _, known := g.classOf[agent]; !known {
		return nil, fmt.Errorf("reach: there is no agent %.63q", agent)
	}
	ways := map[string][]string{agent: nil} // the agents on the way, and the agent itself unless it is the first
	expanded := make(map[int]bool)
	reached := []Reached{}
	for frontier := []string{agent}; len(frontier) > 0; {
		var next []string
		for _, at := range frontier {
			class := g.classOf[at]
			if expanded[class] {
				continue // one like it was here before, and reached all whom this one can
			}
			expanded[class] = true
			for _, to := range g.neighbours(class) {
				if _, seen := ways[to]; seen {
					continue
				}
				ways[to] = append(slices.Clone(ways[at]), to)
				rules := g.rules(class, g.classOf[to])
				reached = append(reached, Reached{
					Agent: to, Hops: len(ways[to]), Via: append([]string{}, ways[at]...), Ports: portsOf(rules), Rules: namesOf(rules),
				})
				next = append(next, to)
			}
		}
		frontier = next
	}
	slices.SortFunc(reached, func(a, b Reached) int { return cmp.Or(cmp.Compare(a.Hops, b.Hops), strings.Compare(a.Agent, b.Agent)) })
	return reached, nil
}

// graph is who may open what to whom at one time, by class.
type graph struct {
	policy  *Policy
	now     time.Time
	classes *classifier
	index   *ruleIndex
	classOf map[string]int
	members map[int][]string // agents by class
}

func newGraph(p *Policy, agents []Agent, now time.Time) *graph {
	g := &graph{
		policy: p, now: now, classes: newClassifier(p), index: newRuleIndex(p),
		classOf: make(map[string]int, len(agents)), members: make(map[int][]string),
	}
	for _, a := range agents {
		if _, twice := g.classOf[a.Name]; twice {
			continue
		}
		class := g.classes.class(a.Labels)
		g.classOf[a.Name] = class
		g.members[class] = append(g.members[class], a.Name)
	}
	return g
}

// rules are the active ones from one class to another.
func (g *graph) rules(from, to int) (rules []*Rule) {
	for _, i := range g.index.between(g.classes.segments[from], g.classes.segments[to]) {
		if r := &g.policy.Rules[i]; r.activeAt(g.now) {
			rules = append(rules, r)
		}
	}
	return rules
}

// neighbours are the agents to whom one of class may open anything, sorted; itself may be among them.
func (g *graph) neighbours(class int) []string {
	var names []string
	for _, to := range slices.Sorted(maps.Keys(g.members)) {
		if len(g.rules(class, to)) > 0 {
			names = append(names, g.members[to]...)
		}
	}
	slices.Sort(names)
	return names
}

// portsOf is all that rules allow, as a union.
func portsOf(rules []*Rule) []Ports {
	var ports []Ports
	for _, r := range rules {
		ports = append(ports, r.Allow...)
	}
	return union(ports)
}

func namesOf(rules []*Rule) []string {
	names := make([]string, len(rules))
	for i, r := range rules {
		names[i] = r.Name
	}
	slices.Sort(names)
	return names
}
