package segment

import (
	"maps"
	"slices"
	"strings"
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
	// Guards are the agents who may reach something else outside the overlay than before.
	Guards []GuardChange `json:"guards,omitempty"`
	// Egress are the segments whose agents may reach something else outside the overlay than before.
	Egress []EgressChange `json:"egress,omitempty"`
}

// GuardChange is an agent whose segments, under two policies, guard it differently, in words.
type GuardChange struct {
	Agent string `json:"agent"`
	Old   string `json:"old"`
	New   string `json:"new"`
}

// Diff compares what agents may open to each other, directly, under two policies at one time.
func Diff(old, new *Policy, agents []Agent, now time.Time) Difference {
	c := comparison{before: newGraph(old, agents, now), after: newGraph(new, agents, now), members: make(map[kind][]string)}
	for name := range c.before.classOf {
		k := c.kindOf(name)
		c.members[k] = append(c.members[k], name)
	}
	gains, losses := make(map[kind][]gain), make(map[kind][]gain)
	for from := range c.members {
		for to := range c.members {
			has, had := c.after.rules(from.after, to.after), c.before.rules(from.before, to.before)
			if g := gainOf(to, has, had); g != nil {
				gains[from] = append(gains[from], *g)
			}
			if g := gainOf(to, had, has); g != nil {
				losses[from] = append(losses[from], *g)
			}
		}
	}
	var d Difference
	var gained, lost int
	d.Gained, gained = c.changes(gains)
	d.Lost, lost = c.changes(losses)
	var guarded int
	d.Guards, guarded = c.guards()
	d.Unlisted = gained - len(d.Gained) + lost - len(d.Lost) + guarded - len(d.Guards)
	d.Egress = diffEgress(old, new)
	return d
}

// comparison is the same agents under two policies.
type comparison struct {
	before, after *graph
	members       map[kind][]string
}

// kind is an agent's class under each of the two.
type kind struct{ before, after int }

func (c *comparison) kindOf(agent string) kind {
	return kind{c.before.classOf[agent], c.after.classOf[agent]}
}

// gain is what agents of some kind may open to those of another under one of two policies only.
type gain struct {
	to    kind
	ports []Ports
	rules []string
}

// gainOf is what rules allow that the others do not; nil if that is nothing.
func gainOf(to kind, rules, others []*Rule) *gain {
	if len(rules) == 0 {
		return nil
	}
	has := portsOf(others)
	ports := subtract(portsOf(rules), has)
	if len(ports) == 0 {
		return nil
	}
	g := &gain{to: to, ports: ports}
	for _, r := range rules {
		if len(subtract(union(r.Allow), has)) > 0 {
			g.rules = append(g.rules, r.Name)
		}
	}
	slices.Sort(g.rules)
	return g
}

// changes lists the first gains by agent, sorted, and says how many there are in all.
func (c *comparison) changes(gains map[kind][]gain) (changes []Change, all int) {
	changes = []Change{}
	for _, from := range slices.Sorted(maps.Keys(c.before.classOf)) {
		to := make(map[string]*gain)
		for i, g := range gains[c.kindOf(from)] {
			all += len(c.members[g.to])
			if g.to == c.kindOf(from) {
				all-- // no agent gains anything to itself
			}
			if len(changes) == maxChanges {
				continue
			}
			for _, name := range c.members[g.to] {
				to[name] = &gains[c.kindOf(from)][i]
			}
		}
		delete(to, from)
		for _, name := range slices.Sorted(maps.Keys(to)) {
			if len(changes) < maxChanges {
				changes = append(changes, Change{From: from, To: name, Ports: to[name].ports, Rules: to[name].rules})
			}
		}
	}
	return changes, all
}

// guards lists the first agents that are guarded differently, sorted, and says how many there are in all.
func (c *comparison) guards() (changes []GuardChange, all int) {
	kinds := make(map[kind]GuardChange)
	for k := range c.members {
		kinds[k] = GuardChange{Old: c.before.egress(k.before), New: c.after.egress(k.after)}
	}
	for _, agent := range slices.Sorted(maps.Keys(c.before.classOf)) {
		change := kinds[c.kindOf(agent)]
		if change.Old == change.New {
			continue
		}
		if all++; all <= maxChanges {
			change.Agent = agent
			changes = append(changes, change)
		}
	}
	return changes, all
}

// egress is what agents of a class may reach outside the overlay, in words.
func (g *graph) egress(class int) string {
	guarded := false
	var parts []string
	for _, i := range g.classes.segments[class] {
		guard := g.policy.Segments[i].Egress
		guarded = guarded || guard.guards()
		for _, r := range guard.Rules {
			parts = append(parts, r.String())
		}
	}
	switch {
	case !guarded:
		return GuardHost
	case len(parts) == 0:
		return GuardNone
	}
	slices.Sort(parts)
	return strings.Join(slices.Compact(parts), "; ")
}
