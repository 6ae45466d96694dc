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
	Via   []string `json:"via"`   // agents on the shortest way, without the two ends
	Ports []Ports  `json:"ports"` // of the last hop
	Rules []string `json:"rules"` // of the last hop
}

// Reach is the blast radius of an agent: all whom it can get to at now, directly or by taking over each agent on
// the way. Nearest first.
func (p *Policy) Reach(agent string, agents []Agent, now time.Time) ([]Reached, error) {
	g := p.graph(agents, now)
	if _, ok := g.agents[agent]; !ok {
		return nil, fmt.Errorf("there is no agent %q", agent)
	}
	way := map[string][]string{agent: nil}
	reached := []Reached{}
	for frontier := []string{agent}; len(frontier) > 0; {
		var next []string
		for _, at := range frontier {
			for _, to := range g.neighbours(at) {
				if _, seen := way[to]; seen {
					continue
				}
				way[to] = append(slices.Clone(way[at]), to)
				edge := g.edge(at, to)
				reached = append(reached, Reached{
					Agent: to, Hops: len(way[to]), Via: append([]string{}, way[at]...), Ports: edge.Ports, Rules: edge.Rules,
				})
				next = append(next, to)
			}
		}
		frontier = next
	}
	slices.SortStableFunc(reached, func(a, b Reached) int { return cmp.Or(a.Hops-b.Hops, strings.Compare(a.Agent, b.Agent)) })
	return reached, nil
}

// Change is reachability between two agents that one policy gives and another does not.
type Change struct {
	From  string   `json:"from"`
	To    string   `json:"to"`
	Ports []Ports  `json:"ports"`
	Rules []string `json:"rules"`
}

// Difference is reachability gained and lost.
type Difference struct {
	Gained []Change `json:"gained"`
	Lost   []Change `json:"lost"`
}

// Diff compares what agents may open to each other, directly, under two policies.
func Diff(old, new *Policy, agents []Agent, now time.Time) Difference {
	before, after := old.graph(agents, now), new.graph(agents, now)
	return Difference{Gained: after.without(before), Lost: before.without(after)}
}

// graph is who may open what to whom at one time.
type graph struct {
	agents  map[string]Agent
	members map[string][]string // agents by segment, sorted
	in      map[string][]string // segments by agent
	from    map[string][]*Rule  // active rules by source segment
}

func (p *Policy) graph(agents []Agent, now time.Time) *graph {
	g := &graph{agents: make(map[string]Agent, len(agents)), members: make(map[string][]string), in: make(map[string][]string), from: make(map[string][]*Rule)}
	c := NewCompiler(p, "")
	for _, a := range agents {
		g.agents[a.Name] = a
		for _, i := range c.segmentsOf(a) {
			name := p.Segments[i].Name
			g.members[name] = append(g.members[name], a.Name)
			g.in[a.Name] = append(g.in[a.Name], name)
		}
	}
	for name := range g.members {
		slices.Sort(g.members[name])
	}
	for i := range p.Rules {
		if r := &p.Rules[i]; r.activeAt(now) {
			g.from[r.From] = append(g.from[r.From], r)
		}
	}
	return g
}

// neighbours are the agents to whom at may open anything, sorted.
func (g *graph) neighbours(at string) []string {
	set := make(map[string]bool)
	for _, s := range g.in[at] {
		for _, r := range g.from[s] {
			for _, to := range g.members[r.To] {
				if to != at {
					set[to] = true
				}
			}
		}
	}
	return slices.Sorted(maps.Keys(set))
}

// edge is what from may open to to: the fewest ranges, and the rules that say so.
func (g *graph) edge(from, to string) Change {
	change := Change{From: from, To: to, Ports: []Ports{}, Rules: []string{}}
	for _, s := range g.in[from] {
		for _, r := range g.from[s] {
			if slices.Contains(g.in[to], r.To) {
				change.Ports = append(change.Ports, r.Allow...)
				change.Rules = append(change.Rules, r.Name)
			}
		}
	}
	slices.Sort(change.Rules)
	change.Ports = union(change.Ports)
	return change
}

// without is what g has and other has not.
func (g *graph) without(other *graph) []Change {
	changes := []Change{}
	for _, from := range slices.Sorted(maps.Keys(g.agents)) {
		for _, to := range g.neighbours(from) {
			mine := g.edge(from, to)
			if mine.Ports = subtract(mine.Ports, other.edge(from, to).Ports); len(mine.Ports) > 0 {
				changes = append(changes, mine)
			}
		}
	}
	return changes
}

// union sorts ranges and joins those that touch.
func union(ports []Ports) []Ports {
	sorted := slices.SortedFunc(slices.Values(ports), func(a, b Ports) int {
		return cmp.Or(cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.First, b.First), cmp.Compare(a.Last, b.Last))
	})
	out := []Ports{}
	for _, p := range sorted {
		if n := len(out); n > 0 && out[n-1].Proto == p.Proto && int(p.First) <= int(out[n-1].Last)+1 {
			out[n-1].Last = max(out[n-1].Last, p.Last)
		} else {
			out = append(out, p)
		}
	}
	return out
}

// subtract is a without b. Both are unions.
func subtract(a, b []Ports) []Ports {
	out := []Ports{}
	for _, p := range a {
		first, done := int(p.First), false
		for _, q := range b {
			if q.Proto != p.Proto || int(q.Last) < first || q.First > p.Last {
				continue
			}
			if int(q.First) > first {
				out = append(out, Ports{p.Proto, uint16(first), q.First - 1})
			}
			if q.Last >= p.Last {
				done = true
				break
			}
			first = int(q.Last) + 1
		}
		if !done {
			out = append(out, Ports{p.Proto, uint16(first), p.Last})
		}
	}
	return out
}
