package segment_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-mesh/bulkhead/segment"
)

// list writes a ruleset as one line for each grant.
func list(r *segment.Ruleset) (lines []string) {
	for _, p := range r.Pairs {
		for _, g := range p.In {
			lines = append(lines, fmt.Sprintf("%s <- %s %s by %s", p.Local.Name, p.Remote.Name, g.Ports, g.Rule))
		}
		for _, g := range p.Out {
			lines = append(lines, fmt.Sprintf("%s -> %s %s by %s", p.Local.Name, p.Remote.Name, g.Ports, g.Rule))
		}
	}
	return lines
}

func TestCompile(t *testing.T) {
	policy, agents := example(t)
	end := *policy.Rules[0].Until
	for host, want := range map[string][]string{
		"h1": {
			"scout -> vec1 icmp by research-reads-vectors", "scout -> vec1 tcp/5432 by research-reads-vectors", "scout -> vec1 tcp/6333-6334 by research-reads-vectors",
			"scout -> vec2 icmp by research-reads-vectors", "scout -> vec2 tcp/5432 by research-reads-vectors", "scout -> vec2 tcp/6333-6334 by research-reads-vectors",
		},
		"h3": { // its two agents are a pair from both ends
			"vault <- vec1 tcp/9000 by fill-vectors", "vault <- vec2 tcp/9000 by fill-vectors",
			"vec2 <- scout icmp by research-reads-vectors", "vec2 <- scout tcp/5432 by research-reads-vectors", "vec2 <- scout tcp/6333-6334 by research-reads-vectors",
			"vec2 -> vault tcp/9000 by fill-vectors",
		},
		"elsewhere": nil,
	} {
		r := segment.Compile(policy, host, agents, noon)
		got := list(r)
		slices.Sort(got)
		slices.Sort(want)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("rules of %s (-want +got):\n%s", host, diff)
		}
		if (host == "elsewhere") != r.NextExpiry.IsZero() {
			t.Errorf("rules of %s end at %v", host, r.NextExpiry)
		}
	}
	before, at := segment.Compile(policy, "h1", agents, end.Add(-1)), segment.Compile(policy, "h1", agents, end)
	if len(before.Pairs) == 0 || len(at.Pairs) != 0 || !before.NextExpiry.Equal(end) || !at.NextExpiry.IsZero() {
		t.Errorf("around its end the rule gives %d and %d pairs", len(before.Pairs), len(at.Pairs))
	}
	if tcp := port(t, "tcp/5432"); !before.Allows("scout", "vec1", tcp, end.Add(-1)) || before.Allows("scout", "vec1", tcp, end) {
		t.Error("a ruleset does not end its grants on its own")
	}
	if before.Allows("vec1", "vault", port(t, "tcp/9000"), noon) {
		t.Error("h1 answers for a flow between other hosts")
	}
}

func TestUpdateSharesWhatDidNotChange(t *testing.T) {
	policy, agents := example(t)
	c := segment.NewCompiler(policy, "h3")
	first := c.Update(agents, nil, noon)
	shared := func(r *segment.Ruleset) (names []string) {
		for _, p := range r.Pairs {
			if slices.Contains(first.Pairs, p) {
				names = append(names, p.Local.Name+" "+p.Remote.Name)
			}
		}
		return names
	}
	all := shared(first)
	if len(all) != 4 {
		t.Fatalf("pairs are %v", all)
	}
	if diff := cmp.Diff(all, shared(c.Update(agents, []string{"stranger"}, noon.Add(time.Minute)))); diff != "" {
		t.Errorf("equal agents made new pairs:\n%s", diff)
	}
	moved := named(t, agents, "vec1")
	moved.Host = "h9"
	if diff := cmp.Diff([]string{"vault vec2", "vec2 scout", "vec2 vault"}, shared(c.Update([]segment.Agent{moved}, nil, noon))); diff != "" {
		t.Errorf("another host's agent moved:\n%s", diff)
	}
	ended := c.Update(nil, nil, *policy.Rules[0].Until)
	if diff := cmp.Diff([]string{"vault vec2", "vec2 vault"}, shared(ended)); diff != "" {
		t.Errorf("a rule ended:\n%s", diff)
	}
	gone := c.Update(nil, []string{"vec2", "vec2"}, noon)
	if diff := cmp.Diff([]string{"vault <- vec1 tcp/9000 by fill-vectors"}, list(gone)); diff != "" {
		t.Errorf("an agent left:\n%s", diff)
	}
	if len(first.Pairs) != 4 || len(list(first)) != 9-3 {
		t.Errorf("the first ruleset changed to %v", list(first))
	}
}
