package segment

import (
	"encoding/binary"
	"slices"
)

// classifier sorts agents into classes: agents in exactly the same segments are alike to every rule, so what they
// may open is worked out once for each two classes.
type classifier struct {
	policy *Policy
	scale  []string
	demand map[labelValue][]int // segments by a label that all their agents have
	rest   []int                // segments without such a label

	segments [][]int // of each class, ascending
	ids      map[string]int
}

type labelValue struct{ key, value string }

func newClassifier(p *Policy) *classifier {
	c := &classifier{policy: p, scale: p.Scale(), demand: make(map[labelValue][]int), ids: make(map[string]int)}
	for i, s := range p.Segments {
		if label, ok := demanded(s.Match); ok {
			c.demand[label] = append(c.demand[label], i)
		} else {
			c.rest = append(c.rest, i)
		}
	}
	return c
}

// demanded is a label that every agent of the selector has. Another than sensitivity is better: fewer have it.
func demanded(s Selector) (found labelValue, ok bool) {
	for _, key := range s.keys() {
		if c := s[key]; c.Op == "" && len(c.Values) == 1 && (!ok || found.key == LabelSensitivity) {
			found, ok = labelValue{key, c.Values[0]}, true
		}
	}
	return found, ok
}

// class is the class of agents with these labels.
func (c *classifier) class(labels Labels) int {
	var in []int
	consider := func(segments []int) {
		for _, i := range segments {
			if c.policy.Segments[i].Match.Matches(labels, c.scale) {
				in = append(in, i)
			}
		}
	}
	for key, value := range labels {
		consider(c.demand[labelValue{key, value}])
	}
	consider(c.rest)
	slices.Sort(in)
	return c.intern(in)
}

func (c *classifier) intern(segments []int) int {
	key := make([]byte, 0, 2*len(segments))
	for _, i := range segments {
		key = binary.AppendUvarint(key, uint64(i))
	}
	id, known := c.ids[string(key)]
	if !known {
		id = len(c.segments)
		c.ids[string(key)] = id
		c.segments = append(c.segments, segments)
	}
	return id
}

// ruleIndex finds the rules between two classes.
type ruleIndex struct {
	policy *Policy
	to     []int         // segment index of each rule's destination
	from   map[int][]int // rules by segment index of their source
}

func newRuleIndex(p *Policy) *ruleIndex {
	names := make(map[string]int, len(p.Segments))
	for i, s := range p.Segments {
		names[s.Name] = i
	}
	x := &ruleIndex{policy: p, to: make([]int, len(p.Rules)), from: make(map[int][]int)}
	for i, r := range p.Rules {
		from := names[r.From]
		x.to[i] = names[r.To]
		x.from[from] = append(x.from[from], i)
	}
	return x
}

// between are the rules from agents in some segments to agents in others, in the policy's order, ended or not.
func (x *ruleIndex) between(from, to []int) (rules []int) {
	for _, s := range from {
		for _, i := range x.from[s] {
			if _, found := slices.BinarySearch(to, x.to[i]); found {
				rules = append(rules, i)
			}
		}
	}
	slices.Sort(rules)
	return rules
}
