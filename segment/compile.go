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

// Compiler makes the rulesets of one host and policy while agents come and go, at the cost of those that changed.
// It is not safe for concurrent use; its rulesets are.
type Compiler struct {
	policy  *Policy
	host    string
	classes *classifier
	rules   *ruleIndex
	active  []bool // by rule: it has not ended

	agents  map[string]*member
	members []map[string]*member // by class
	locals  []*local             // sorted by name
	tables  map[int][]*access    // by class of the local, then of the remote agent; nil where not yet worked out
}

// member is an agent and its class.
type member struct {
	Agent
	class int
}

// local is an agent of this host with its pairs, sorted by the remote agent's name.
type local struct {
	*member
	pairs []*Pair
}

// access is what agents of one class may open to those of another, and the other way.
type access struct {
	in, out []Grant
	ends    time.Time // the first of the grants; zero: none does
}

// NewCompiler prepares p, which must be valid, for host.
func NewCompiler(p *Policy, host string) *Compiler {
	return &Compiler{
		policy: p, host: host, classes: newClassifier(p), rules: newRuleIndex(p), active: make([]bool, len(p.Rules)),
		agents: make(map[string]*member), tables: make(map[int][]*access),
	}
}

// Update takes the agents that are new or changed and the names of those that are gone, and returns the ruleset
// at now. Pairs that did not change are those of the ruleset before. The agents must not be changed afterwards.
func (c *Compiler) Update(put []Agent, removed []string, now time.Time) *Ruleset {
	changed := make(map[string]bool, len(put)+len(removed))
	for _, name := range removed {
		changed[name] = c.remove(name) || changed[name]
	}
	for _, a := range put {
		changed[a.Name] = c.put(a) || changed[a.Name]
	}
	maps.DeleteFunc(changed, func(_ string, is bool) bool { return !is })
	c.settle(changed)
	all := c.activate(now)
	for _, l := range c.locals {
		if all || changed[l.Name] {
			l.pairs = c.pairsOf(l)
			continue
		}
		for remote := range changed {
			c.renew(l, remote)
		}
	}
	return c.ruleset()
}

// remove forgets an agent and reports whether it was known.
func (c *Compiler) remove(name string) bool {
	m := c.agents[name]
	if m == nil {
		return false
	}
	delete(c.agents, name)
	delete(c.members[m.class], name)
	return true
}

// put takes an agent and reports whether it is new or differs.
func (c *Compiler) put(a Agent) bool {
	if m := c.agents[a.Name]; m != nil && equalAgents(&m.Agent, &a) {
		return false
	}
	c.remove(a.Name)
	m := &member{Agent: a, class: c.classes.class(a.Labels)}
	for len(c.members) <= m.class {
		c.members = append(c.members, make(map[string]*member))
	}
	c.agents[a.Name], c.members[m.class][a.Name] = m, m
	return true
}

// settle brings the list of this host's agents up to date.
func (c *Compiler) settle(changed map[string]bool) {
	for name := range changed {
		i, found := slices.BinarySearchFunc(c.locals, name, func(l *local, name string) int { return strings.Compare(l.Name, name) })
		m := c.agents[name]
		here := m != nil && m.Host == c.host
		switch {
		case found && here:
			c.locals[i] = &local{member: m}
		case found:
			c.locals = slices.Delete(c.locals, i, i+1)
		case here:
			c.locals = slices.Insert(c.locals, i, &local{member: m})
		}
	}
}

// activate finds which rules hold at now, and reports whether that changed.
func (c *Compiler) activate(now time.Time) (changed bool) {
	for i := range c.policy.Rules {
		if is := c.policy.Rules[i].activeAt(now); is != c.active[i] {
			c.active[i], changed = is, true
		}
	}
	if changed {
		clear(c.tables)
	}
	return changed
}

// pairsOf makes all pairs of a local agent.
func (c *Compiler) pairsOf(l *local) []*Pair {
	var pairs []*Pair
	for class, members := range c.members {
		if len(members) == 0 {
			continue
		}
		access := c.access(l.class, class)
		if access.none() {
			continue
		}
		for name, m := range members {
			if name != l.Name {
				pairs = append(pairs, pairOf(l, m, access))
			}
		}
	}
	slices.SortFunc(pairs, func(a, b *Pair) int { return strings.Compare(a.Remote.Name, b.Remote.Name) })
	return pairs
}

// renew brings the pair of a local agent with one other up to date.
func (c *Compiler) renew(l *local, remote string) {
	i, found := l.find(remote)
	m := c.agents[remote]
	var access *access
	if m != nil {
		access = c.access(l.class, m.class)
	}
	switch {
	case m != nil && !access.none() && found:
		l.pairs[i] = pairOf(l, m, access)
	case m != nil && !access.none():
		l.pairs = slices.Insert(l.pairs, i, pairOf(l, m, access))
	case found:
		l.pairs = slices.Delete(l.pairs, i, i+1)
	}
}

func (l *local) find(remote string) (int, bool) {
	return slices.BinarySearchFunc(l.pairs, remote, func(p *Pair, name string) int { return strings.Compare(p.Remote.Name, name) })
}

// pairOf makes a pair, or returns the one there is if it is equal.
func pairOf(l *local, m *member, access *access) *Pair {
	if i, found := l.find(m.Name); found {
		old := l.pairs[i]
		if equalAgents(&old.Local, &l.Agent) && equalAgents(&old.Remote, &m.Agent) &&
			slices.Equal(old.In, access.in) && slices.Equal(old.Out, access.out) {
			return old
		}
	}
	return &Pair{Local: l.Agent, Remote: m.Agent, In: access.in, Out: access.out}
}

// access works out what two classes may open to each other, once.
func (c *Compiler) access(local, remote int) *access {
	table := c.tables[local]
	if missing := remote + 1 - len(table); missing > 0 {
		table = append(table, make([]*access, missing)...)
		c.tables[local] = table
	}
	if table[remote] == nil {
		here, there := c.classes.segments[local], c.classes.segments[remote]
		a := &access{in: c.grants(c.rules.between(there, here)), out: c.grants(c.rules.between(here, there))}
		for _, g := range slices.Concat(a.in, a.out) {
			a.ends = earlier(a.ends, g.Until)
		}
		table[remote] = a
	}
	return table[remote]
}

func (a *access) none() bool { return len(a.in)+len(a.out) == 0 }

// grants are what the active ones of rules allow, in an order that does not depend on the policy's.
func (c *Compiler) grants(rules []int) []Grant {
	var grants []Grant
	for _, i := range rules {
		r := &c.policy.Rules[i]
		if !c.active[i] {
			continue
		}
		var until time.Time
		if r.Until != nil {
			until = *r.Until
		}
		for _, ports := range r.Allow {
			grants = append(grants, Grant{Ports: ports, Rule: r.Name, Until: until})
		}
	}
	slices.SortFunc(grants, func(a, b Grant) int { return cmp.Or(comparePorts(a.Ports, b.Ports), strings.Compare(a.Rule, b.Rule)) })
	return slices.Compact(grants)
}

// ruleset joins the pairs of all local agents.
func (c *Compiler) ruleset() *Ruleset {
	r := &Ruleset{Host: c.host}
	lists := make([][]*Pair, len(c.locals))
	for i, l := range c.locals {
		lists[i] = l.pairs
		for class, members := range c.members {
			others := len(members)
			if class == l.class {
				others-- // a class with the local agent alone has no pair
			}
			if others > 0 {
				r.NextExpiry = earlier(r.NextExpiry, c.access(l.class, class).ends)
			}
		}
	}
	r.Pairs = slices.Concat(lists...)
	return r
}

// earlier is the first of two times of which zero is never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || (!b.IsZero() && b.Before(a)) {
		return b
	}
	return a
}

func equalAgents(a, b *Agent) bool {
	return a.Name == b.Name && a.Host == b.Host && maps.Equal(a.Labels, b.Labels) && slices.Equal(a.Addresses, b.Addresses)
}
