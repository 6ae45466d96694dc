package segment_test

import (
	"encoding/json"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/bulkhead-mesh/bulkhead/segment"
	"github.com/bulkhead-mesh/bulkhead/segment/segmenttest"
)

var (
	noon  = time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)
	hosts = []string{"h1", "h2", "h3"}
	ends  = []time.Time{noon, noon.Add(time.Nanosecond), noon.Add(time.Hour)}
)

// drawTime draws times before, at and after the ends of rules.
func drawTime(t *rapid.T) time.Time {
	return noon.Add(rapid.SampledFrom([]time.Duration{-time.Hour, -1, 0, 1, time.Minute, time.Hour, 2 * time.Hour}).Draw(t, "now"))
}

// eachFlow calls fn with every ordered pair of different agents.
func eachFlow(agents []segment.Agent, fn func(src, dst segment.Agent)) {
	for _, src := range agents {
		for _, dst := range agents {
			if src.Name != dst.Name {
				fn(src, dst)
			}
		}
	}
}

func TestBothEvaluatorsAgree(t *testing.T) {
	allowed, denied := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		policy, agents := segmenttest.Policy(t, ends...), segmenttest.Agents(t, hosts, 3)
		port, now := segmenttest.Port(t), drawTime(t)
		later := now.Add(rapid.SampledFrom([]time.Duration{0, 1, time.Hour}).Draw(t, "later"))
		rulesets := map[string]*segment.Ruleset{}
		for _, host := range hosts {
			rulesets[host] = segment.Compile(policy, host, agents, now)
		}
		eachFlow(agents, func(src, dst segment.Agent) {
			want := policy.Decide(src, dst, port, later).Allow
			if want {
				allowed++
			} else {
				denied++
			}
			for _, host := range []string{src.Host, dst.Host} {
				if got := rulesets[host].Allows(src.Name, dst.Name, port, later); got != want {
					t.Fatalf("%s -> %s %s: decide says %v, the rules of %s %v", src.Name, dst.Name, port, want, host, got)
				}
			}
			e := policy.Explain(src, dst, port, later)
			if (e.Verdict == "allow") != want || (e.Rule != "") != want || (len(e.Missing) > 0) == want || e.Reason == "" {
				t.Fatalf("decide says %v, explain %+v", want, e)
			}
		})
	})
	// Usually one flow in eight is allowed, and in 300 runs never less than one in fifteen.
	if all := allowed + denied; allowed*50 < all || denied*50 < all {
		t.Errorf("%d flows were allowed and %d denied: too lopsided to find anything", allowed, denied)
	}
}

func TestUpdatesEqualCompilation(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		policy := segmenttest.Policy(t, ends...)
		compiler := segment.NewCompiler(policy, "h1")
		known := map[string]segment.Agent{}
		for range rapid.IntRange(1, 8).Draw(t, "updates") {
			put := segmenttest.Agents(t, hosts, 2)
			put = put[:rapid.IntRange(0, len(put)).Draw(t, "put")]
			removed := rapid.SliceOfN(rapid.SampledFrom([]string{"a0", "a1", "a2", "a3", "stranger"}), 0, 3).Draw(t, "removed")
			for _, name := range removed {
				delete(known, name)
			}
			for _, a := range put {
				known[a.Name] = a
			}
			now := drawTime(t) // also backwards: clocks are set
			got := compiler.Update(put, removed, now)
			var agents []segment.Agent
			for _, a := range known {
				agents = append(agents, a)
			}
			want := segment.Compile(policy, "h1", agents, now)
			if diff := cmp.Diff(want, got, cmp.Comparer(sameAddrs), cmpopts.EquateEmpty()); diff != "" {
				t.Fatalf("updated ruleset differs from the compiled one (-want +got):\n%s", diff)
			}
			checkRuleset(t, got)
		}
	})
}

// checkRuleset checks what readers of a ruleset rely on.
func checkRuleset(t *rapid.T, r *segment.Ruleset) {
	var next time.Time
	names := make([]string, 0, len(r.Pairs))
	for _, p := range r.Pairs {
		names = append(names, p.Local.Name+" "+p.Remote.Name)
		if p.Local.Host != r.Host || p.Local.Name == p.Remote.Name || len(p.In)+len(p.Out) == 0 {
			t.Fatalf("pair %+v has no place in the rules of %s", p, r.Host)
		}
		for _, g := range slices.Concat(p.In, p.Out) {
			if !g.Until.IsZero() && (next.IsZero() || g.Until.Before(next)) {
				next = g.Until
			}
		}
	}
	if !slices.IsSorted(names) || len(slices.Compact(slices.Clone(names))) != len(names) {
		t.Fatalf("pairs are not sorted or not unique: %v", names)
	}
	if !r.NextExpiry.Equal(next) {
		t.Fatalf("next expiry is %v, want %v", r.NextExpiry, next)
	}
}

func TestMarshalledPolicyIsTheSame(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		policy := segmenttest.Policy(t, ends...)
		policy.Tests = []segment.Test{{From: "agent/a0", To: "agent/a1", Port: segmenttest.Port(t), Expect: "deny"}}
		checkRoundTrip(t, policy)
	})
}

type fataler interface {
	Helper()
	Fatalf(format string, args ...any)
}

// checkRoundTrip checks that policy survives its YAML and its JSON form, and that the YAML form is a fixed point.
func checkRoundTrip(t fataler, policy *segment.Policy) {
	t.Helper()
	text, err := policy.Marshal()
	if err != nil {
		t.Fatalf("marshal: %v", err)
	}
	asJSON, err := json.Marshal(policy)
	if err != nil {
		t.Fatalf("marshal JSON: %v", err)
	}
	for _, form := range [][]byte{text, asJSON} {
		again, err := segment.Parse(form)
		if err != nil {
			t.Fatalf("parse what was marshalled: %v\n%s", err, form)
		}
		if diff := cmp.Diff(policy, again, cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("policy changed (-before +after):\n%s\n%s", diff, form)
		}
		if same, err := again.Marshal(); err != nil || string(same) != string(text) {
			t.Fatalf("text changed: %v\n%s\n%s", err, text, same)
		}
	}
}

func TestNoRulesDenyAll(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		policy, agents := segmenttest.Policy(t), segmenttest.Agents(t, hosts, 2)
		policy.Rules = nil
		port := segmenttest.Port(t)
		eachFlow(agents, func(src, dst segment.Agent) {
			if policy.Decide(src, dst, port, noon).Allow {
				t.Fatalf("%s may open %s to %s without any rule", src.Name, port, dst.Name)
			}
		})
		for _, host := range hosts {
			if r := segment.Compile(policy, host, agents, noon); len(r.Pairs) != 0 {
				t.Fatalf("no rule gives pairs %v", r.Pairs)
			}
		}
	})
}

func TestFewerRulesAllowLess(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		policy, agents := segmenttest.Policy(t, ends...), segmenttest.Agents(t, hosts, 2)
		if len(policy.Rules) == 0 {
			t.Skip("no rule to remove")
		}
		fewer := *policy
		i := rapid.IntRange(0, len(policy.Rules)-1).Draw(t, "removed rule")
		fewer.Rules = slices.Delete(slices.Clone(policy.Rules), i, i+1)
		port, now := segmenttest.Port(t), drawTime(t)
		eachFlow(agents, func(src, dst segment.Agent) {
			if fewer.Decide(src, dst, port, now).Allow && !policy.Decide(src, dst, port, now).Allow {
				t.Fatalf("without rule %s, %s may open %s to %s", policy.Rules[i].Name, src.Name, port, dst.Name)
			}
		})
		if d := segment.Diff(policy, &fewer, agents, now); len(d.Gained) > 0 {
			t.Fatalf("a rule less gains %+v", d.Gained)
		}
	})
}

func TestOrderDoesNotMatter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		policy, agents := segmenttest.Policy(t, ends...), segmenttest.Agents(t, hosts, 2)
		shuffled := *policy
		shuffled.Segments = rapid.Permutation(policy.Segments).Draw(t, "segments")
		shuffled.Rules = rapid.Permutation(policy.Rules).Draw(t, "rules")
		now := drawTime(t)
		mixed := rapid.Permutation(agents).Draw(t, "agents")
		for _, host := range hosts {
			a, b := segment.Compile(policy, host, agents, now), segment.Compile(&shuffled, host, mixed, now)
			if diff := cmp.Diff(a, b, cmp.Comparer(sameAddrs)); diff != "" {
				t.Fatalf("order changed the rules of %s:\n%s", host, diff)
			}
		}
		if d := segment.Diff(policy, &shuffled, agents, now); len(d.Gained)+len(d.Lost) > 0 {
			t.Fatalf("order made a difference: %+v", d)
		}
		for _, a := range agents {
			one, err1 := policy.Reach(a.Name, agents, now)
			two, err2 := shuffled.Reach(a.Name, mixed, now)
			if diff := cmp.Diff(one, two); diff != "" || err1 != nil || err2 != nil {
				t.Fatalf("order changed the reach of %s: %v %v\n%s", a.Name, err1, err2, diff)
			}
		}
	})
}
