package segment

import (
	"maps"
	"slices"
	"time"
)

// maxChanges is how many changes a difference lists in each direction: what no one reads must not fill memory.
const maxChanges = 10_000

// Change is reachability between two agents that one policy gives and another does not.
type Change struct {
	From  string   `json:"from"`
	To    string   `json:"to"`
	Ports []Ports  `json:"ports"`
	Rules []string `json:"rules"` // that give it, sorted
}

// Difference is reachability gained and lost, sorted by the two agents.
type Difference struct {
	Gained   []Change `json:"gained"`
	Lost     []Change `json:"lost"`
	Unlisted int      `json:"unlisted,omitempty"` // changes beyond the first 10,000 of each
}

// Diff compares what agents may open to each other, directly, under two policies at one time.
func Diff(old, new *Policy, agents []Agent, now time.Time) Difference {
	before, after := newGraph(old, agents, now), newGraph(new, agents, now)
	gained, more := after.without(before)
	lost, moreLost := before.without(after)
	return Difference{Gained: gained, Lost: lost, Unlisted: more + moreLost}
}

// without is what g has and other, a graph of the same agents, has not.
func (g *graph) without(other *graph) (changes []Change, unlisted int) {
	kinds := make(map[kind][]string) // agents that are alike in both
	for name, class := range g.classOf {
		k := kind{class, other.classOf[name]}
		kinds[k] = append(kinds[k], name)
	}
	gains := make(map[kind][]gain)
	for from := range kinds {
		gains[from] = g.gains(other, from, kinds)
	}
	changes = []Change{}
	for _, from := range slices.Sorted(maps.Keys(g.classOf)) {
		k := kind{g.classOf[from], other.classOf[from]}
		if len(changes) == maxChanges {
			unlisted += count(gains[k], k)
			continue
		}
		to := make(map[string]gain)
		for _, gain := range gains[k] {
			for _, name := range gain.to {
				to[name] = gain
			}
		}
		delete(to, from)
		for _, name := range slices.Sorted(maps.Keys(to)) {
			if len(changes) == maxChanges {
				unlisted++
				continue
			}
			changes = append(changes, Change{From: from, To: name, Ports: to[name].ports, Rules: to[name].rules})
		}
	}
	return changes, unlisted
}

// kind is an agent's class under each of two policies.
type kind struct{ mine, other int }

// gain is what agents of one kind may open to those of another under one of two policies only.
type gain struct {
	kind  kind
	to    []string
	ports []Ports
	rules []string
}

func (g *graph) gains(other *graph, from kind, kinds map[kind][]string) (gains []gain) {
	for to, names := range kinds {
		has := other.edge(from.other, to.other).ports
		ports := subtract(g.edge(from.mine, to.mine).ports, has)
		if len(ports) == 0 {
			continue
		}
		var rules []string
		for _, r := range g.rules(from.mine, to.mine) {
			if len(subtract(union(r.Allow), has)) > 0 {
				rules = append(rules, r.Name)
			}
		}
		slices.Sort(rules)
		gains = append(gains, gain{kind: to, to: names, ports: ports, rules: rules})
	}
	return gains
}

// count is how many changes an agent of kind k has.
func count(gains []gain, k kind) (n int) {
	for _, gain := range gains {
		n += len(gain.to)
		if gain.kind == k {
			n-- // not with itself
		}
	}
	return n
}
