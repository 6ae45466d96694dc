package segment

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"
)

// Compile makes the ruleset of one host from all agents of the mesh.
func Compile(p *Policy, host string, agents []Agent, now time.Time) *Ruleset {
	return NewCompiler(p, host).Update(agents, nil, now)
}

// Compiler makes the rulesets of one host and policy while agents come and go, at the cost of those that
// changed. It is not safe for concurrent use; its rulesets are.
type Compiler struct {
	policy   *Policy
	host     string
	index    map[labelValue][]int // segments that demand this label
	scan     []int                // segments that demand no single label
	segments map[string]int
	rulesOf  [][]int // rules by from and by to segment
	rulesTo  [][]int

	agents map[string]member
	locals []string // names of this host's agents, sorted
	active []bool   // rules that have not ended
	pairs  []*Pair
}

type labelValue struct{ key, value string }

// member is an agent with the segments it is in.
type member struct {
	Agent
	segments []int
}

// NewCompiler prepares p, which must be valid, for host.
func NewCompiler(p *Policy, host string) *Compiler {
	c := &Compiler{
		policy: p, host: host, index: make(map[labelValue][]int), segments: make(map[string]int, len(p.Segments)),
		rulesOf: make([][]int, len(p.Segments)), rulesTo: make([][]int, len(p.Segments)),
		agents: make(map[string]member), active: make([]bool, len(p.Rules)),
	}
	for i, s := range p.Segments {
		c.segments[s.Name] = i
		if key, ok := c.firstDemand(s.Match); ok {
			c.index[key] = append(c.index[key], i)
		} else {
			c.scan = append(c.scan, i)
		}
	}
	for i, r := range p.Rules {
		from, to := c.segments[r.From], c.segments[r.To]
		c.rulesOf[from] = append(c.rulesOf[from], i)
		c.rulesTo[to] = append(c.rulesTo[to], i)
	}
	return c
}

// firstDemand is a label that every agent of the selector has; not sensitivity if there is another, which
// selects fewer.
func (c *Compiler) firstDemand(s Selector) (labelValue, bool) {
	var found labelValue
	for _, key := range s.keys() {
		if cond := s[key]; cond.Op == "" && len(cond.Values) == 1 && (found.key == "" || found.key == LabelSensitivity) {
			found = labelValue{key, cond.Values[0]}
		}
	}
	return found, found.key != ""
}

// Update takes the agents that are new or changed and the names of those that are gone, and returns the ruleset
// at now. Pairs that did not change are those of the ruleset before.
func (c *Compiler) Update(put []Agent, removed []string, now time.Time) *Ruleset {
	changed := make(map[string]bool, len(put)+len(removed))
	for _, name := range removed {
		delete(c.agents, name)
		changed[name] = true
	}
	for _, a := range put {
		c.agents[a.Name] = member{a, c.segmentsOf(a)}
		changed[a.Name] = true
	}
	c.locals = slices.DeleteFunc(c.locals, func(name string) bool { return changed[name] })
	for name := range changed {
		if m, ok := c.agents[name]; ok && m.Host == c.host {
			c.locals = append(c.locals, name)
		}
	}
	slices.Sort(c.locals)
	if c.activate(now) {
		for name := range c.agents {
			changed[name] = true
		}
	}
	c.recompile(changed)
	return &Ruleset{Host: c.host, Pairs: c.pairs, NextExpiry: c.nextExpiry(now)}
}

func (c *Compiler) segmentsOf(a Agent) []int {
	var in []int
	consider := func(i int) {
		if c.policy.Segments[i].Match.Matches(a.Labels, c.policy.Scale()) {
			in = append(in, i)
		}
	}
	for key, value := range a.Labels {
		for _, i := range c.index[labelValue{key, value}] {
			consider(i)
		}
	}
	for _, i := range c.scan {
		consider(i)
	}
	return in
}

// activate finds which rules hold at now and reports whether that changed.
func (c *Compiler) activate(now time.Time) (changed bool) {
	for i := range c.policy.Rules {
		if is := c.policy.Rules[i].activeAt(now); is != c.active[i] {
			c.active[i], changed = is, true
		}
	}
	return changed
}

func (c *Compiler) nextExpiry(now time.Time) (next time.Time) {
	for _, r := range c.policy.Rules {
		if r.Until != nil && now.Before(*r.Until) && (next.IsZero() || r.Until.Before(next)) {
			next = *r.Until
		}
	}
	return next
}

// recompile makes anew the pairs that a changed agent is part of.
func (c *Compiler) recompile(changed map[string]bool) {
	var fresh []*Pair
	for _, local := range c.locals {
		reach := c.rulesFor(c.agents[local])
		others := maps.Keys(changed)
		if changed[local] {
			others = maps.Keys(c.agents)
		}
		for remote := range others {
			m, ok := c.agents[remote]
			if !ok || remote == local {
				continue
			}
			if pair := c.pair(c.agents[local], m, reach); pair != nil {
				fresh = append(fresh, pair)
			}
		}
	}
	slices.SortFunc(fresh, comparePairs)
	kept := make([]*Pair, 0, len(c.pairs)+len(fresh))
	for _, p := range c.pairs {
		if !changed[p.Local.Name] && !changed[p.Remote.Name] {
			kept = append(kept, p)
		}
	}
	c.pairs = merge(kept, fresh)
}

func comparePairs(a, b *Pair) int {
	return cmp.Or(strings.Compare(a.Local.Name, b.Local.Name), strings.Compare(a.Remote.Name, b.Remote.Name))
}

// merge joins two sorted lists.
func merge(a, b []*Pair) []*Pair {
	out := make([]*Pair, 0, len(a)+len(b))
	for len(a) > 0 && len(b) > 0 {
		if comparePairs(a[0], b[0]) < 0 {
			out, a = append(out, a[0]), a[1:]
		} else {
			out, b = append(out, b[0]), b[1:]
		}
	}
	return append(append(out, a...), b...)
}

// localRules are the rules that an agent is an end of, by the segment at the other end.
type localRules struct{ out, in map[int][]int }

func (c *Compiler) rulesFor(m member) localRules {
	r := localRules{out: make(map[int][]int), in: make(map[int][]int)}
	for _, s := range m.segments {
		for _, i := range c.rulesOf[s] {
			to := c.segments[c.policy.Rules[i].To]
			r.out[to] = append(r.out[to], i)
		}
		for _, i := range c.rulesTo[s] {
			from := c.segments[c.policy.Rules[i].From]
			r.in[from] = append(r.in[from], i)
		}
	}
	return r
}

// pair is what local and remote may open to each other; nil if that is nothing.
func (c *Compiler) pair(local, remote member, rules localRules) *Pair {
	in, out := c.grants(rules.in, remote.segments), c.grants(rules.out, remote.segments)
	if len(in)+len(out) == 0 {
		return nil
	}
	return &Pair{Local: local.Agent, Remote: remote.Agent, In: in, Out: out}
}

// grants are in the policy's order of rules, so that equal inputs give equal rulesets.
func (c *Compiler) grants(bySegment map[int][]int, segments []int) []Grant {
	var rules []int
	for _, s := range segments {
		for _, i := range bySegment[s] {
			if c.active[i] {
				rules = append(rules, i)
			}
		}
	}
	slices.Sort(rules)
	var grants []Grant
	for _, i := range rules {
		r := &c.policy.Rules[i]
		var until time.Time
		if r.Until != nil {
			until = *r.Until
		}
		for _, ports := range r.Allow {
			grants = append(grants, Grant{Ports: ports, Rule: r.Name, Until: until})
		}
	}
	return grants
}

// Allows reports whether the compiled rules let src open port to dst at now. One of the two must be an agent of
// the ruleset's host.
func (r *Ruleset) Allows(src, dst string, port Port, now time.Time) bool {
	return r.granted(dst, src, port, now, func(p *Pair) []Grant { return p.In }) ||
		r.granted(src, dst, port, now, func(p *Pair) []Grant { return p.Out })
}

func (r *Ruleset) granted(local, remote string, port Port, now time.Time, grants func(*Pair) []Grant) bool {
	wanted := &Pair{Local: Agent{Name: local}, Remote: Agent{Name: remote}}
	i, found := slices.BinarySearchFunc(r.Pairs, wanted, comparePairs)
	return found && slices.ContainsFunc(grants(r.Pairs[i]), func(g Grant) bool {
		return g.Ports.Contains(port) && (g.Until.IsZero() || now.Before(g.Until))
	})
}
