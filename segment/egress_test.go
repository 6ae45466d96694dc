package segment_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/bulkhead-mesh/bulkhead/segment"
	"github.com/bulkhead-mesh/bulkhead/segment/segmenttest"
)

func egressPolicy(t fataler, guards ...string) *segment.Policy {
	t.Helper()
	var b strings.Builder
	b.WriteString("segments:\n")
	for i, guard := range guards {
		fmt.Fprintf(&b, "  - {name: s%d, match: {function: [both, f%d]}%s}\n", i, i, guard)
	}
	p, err := segment.Parse([]byte(b.String()))
	if err != nil {
		t.Fatalf("parse: %v\n%s", err, b.String())
	}
	return p
}

func TestEgressForms(t *testing.T) {
	https := []segment.Ports{{Proto: segment.TCP, First: 443, Last: 443}}
	list := segment.Guard{Rules: []segment.EgressRule{
		{To: "192.0.2.0/24", Allow: append(https, segment.Ports{Proto: segment.ICMP})},
		{To: "2001:db8::/32", Allow: https}, {To: "api.example.com", Allow: https}, {To: "*.example.org", Allow: https},
		{To: "0.0.0.0/0", Allow: []segment.Ports{{Proto: segment.UDP, First: 1, Last: 65535}}},
		{To: "169.254.169.254/32", Allow: https},
	}}
	for text, want := range map[string]segment.Guard{
		"":                 {},
		", egress: host":   {Mode: segment.GuardHost},
		`, egress: "none"`: {Mode: segment.GuardNone},
		`, egress: [{to: 192.0.2.0/24, allow: [tcp/443, icmp]}, {to: "2001:db8::/32", allow: [tcp/443]}, {to: api.example.com, allow: [tcp/443]},
       {to: "*.example.org", allow: [tcp/443]}, {to: 0.0.0.0/0, allow: [udp/1-65535]}, {to: 169.254.169.254/32, allow: [tcp/443]}]`: list,
	} {
		policy := egressPolicy(t, text)
		if diff := cmp.Diff(want, policy.Segments[0].Egress); diff != "" {
			t.Errorf("%s (-want +got):\n%s", text, diff)
		}
		checkRoundTrip(t, policy)
	}
}

func TestEgressInJSON(t *testing.T) {
	for _, text := range []string{`"host"`, `"none"`, `[{"to":"192.0.2.0/24","allow":["tcp/443"]}]`} {
		var g segment.Guard
		if err := json.Unmarshal([]byte(text), &g); err != nil {
			t.Fatal(err)
		}
		if again, err := json.Marshal(g); err != nil || string(again) != text {
			t.Errorf("%s became %s, %v", text, again, err)
		}
	}
	for _, text := range []string{`[]`, `7`, `{}`, `"all"`, `[{"to":"192.0.2.0/24","allow":["tcp/0"]}]`, `[{"to":"192.0.2.1","allow":["tcp/1"]}]`} {
		policy := egressPolicy(t, "")
		if err := json.Unmarshal([]byte(text), &policy.Segments[0].Egress); err != nil {
			continue
		}
		if err := policy.Validate(); err == nil {
			t.Errorf("%s is accepted", text)
		}
	}
}

func TestEgressAddsUp(t *testing.T) {
	for name, test := range map[string]struct {
		guards []string
		want   string // of an agent in all segments
	}{
		"silence":                 {[]string{"", ""}, "host"},
		"host":                    {[]string{", egress: host", ""}, "host"},
		"none":                    {[]string{", egress: none", ", egress: host", ""}, ""},
		"list":                    {[]string{", egress: [{to: a.example, allow: [tcp/1]}]", ", egress: host"}, "a.example tcp/1"},
		"none beside a list":      {[]string{", egress: [{to: a.example, allow: [tcp/1]}]", ", egress: none"}, "a.example tcp/1"},
		"two lists are one":       {[]string{", egress: [{to: a.example, allow: [tcp/1]}]", ", egress: [{to: 192.0.2.0/24, allow: [icmp]}]"}, "a.example tcp/1; 192.0.2.0/24 icmp"},
		"of what one is in alone": {[]string{""}, "host"},
	} {
		t.Run(name, func(t *testing.T) {
			policy := egressPolicy(t, append(test.guards, ", egress: none")...)
			policy.Segments[len(test.guards)].Match["function"] = segment.Condition{Values: []string{"other"}}
			e := policy.EgressOf(segment.Agent{Name: "a", Labels: segment.Labels{"function": "both"}})
			got := "host"
			if e.Guarded {
				var parts []string
				for _, r := range e.Rules {
					parts = append(parts, segment.Guard{Rules: []segment.EgressRule{r}}.String())
				}
				got = strings.Join(parts, "; ")
			}
			if got != test.want || !e.Guarded && len(e.Rules) > 0 {
				t.Errorf("egress is %q, want %q", got, test.want)
			}
		})
	}
}

// A segment more never opens anything that was closed but what it lists itself, and closes what it does not.
func TestEgressIsTheUnionOfItsSegments(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		policy, agents := segmenttest.Policy(t), segmenttest.Agents(t, hosts, 2)
		for _, a := range agents {
			var want segment.Egress
			for _, s := range policy.Segments {
				if slices.Contains(policy.SegmentsOf(a), s.Name) && (s.Egress.Mode == segment.GuardNone || len(s.Egress.Rules) > 0) {
					want.Guarded = true
					want.Rules = append(want.Rules, s.Egress.Rules...)
				}
			}
			if diff := cmp.Diff(want, policy.EgressOf(a)); diff != "" {
				t.Fatalf("egress of %s (-want +got):\n%s", a.Name, diff)
			}
		}
	})
}

func TestNamesMatch(t *testing.T) {
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"api.example.com", "api.example.com", true},
		{"api.example.com", "API.Example.com.", true},
		{"api.example.com", "xapi.example.com", false},
		{"api.example.com", "x.api.example.com", false},
		{"api.example.com", "example.com", false},
		{"api.example.com", "", false},
		{"*.example.com", "api.example.com", true},
		{"*.example.com", "A.b.EXAMPLE.com.", true},
		{"*.example.com", "example.com", false},
		{"*.example.com", ".example.com", false},
		{"*.example.com", "badexample.com", false},
		{"*.example.com", "example.com.evil.net", false},
		{"*.example.com", "api.example.com..", false},
		{"192.0.2.0/24", "192.0.2.1", false},
	} {
		if got := segment.NamesMatch(c.pattern, c.name); got != c.want {
			t.Errorf("%q names %q: %t, want %t", c.pattern, c.name, got, c.want)
		}
	}
}

func TestDiffShowsEgress(t *testing.T) {
	const list = ", egress: [{to: api.example.com, allow: [tcp/443, icmp]}, {to: 192.0.2.0/24, allow: [udp/53]}]"
	words := "api.example.com tcp/443, icmp; 192.0.2.0/24 udp/53"
	for name, c := range map[string]struct {
		old, new []string
		want     []segment.EgressChange
	}{
		"nothing":           {[]string{"", list, ", egress: none"}, []string{", egress: host", list, ", egress: none"}, nil},
		"guarded":           {[]string{"", ", egress: none"}, []string{", egress: none", list}, []segment.EgressChange{{Segment: "s0", Old: "host", New: "none"}, {Segment: "s1", Old: "none", New: words}}},
		"opened":            {[]string{list}, []string{", egress: host"}, []segment.EgressChange{{Segment: "s0", Old: words, New: "host"}}},
		"a segment more":    {[]string{""}, []string{"", list, ""}, []segment.EgressChange{{Segment: "s1", Old: "host", New: words}}},
		"a segment is gone": {[]string{"", ", egress: none", ""}, []string{""}, []segment.EgressChange{{Segment: "s1", Old: "none", New: "host"}}},
	} {
		t.Run(name, func(t *testing.T) {
			d := segment.Diff(egressPolicy(t, c.old...), egressPolicy(t, c.new...), nil, noon)
			if diff := cmp.Diff(c.want, d.Egress); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
	rapid.Check(t, func(t *rapid.T) {
		old, new := segmenttest.Policy(t), segmenttest.Policy(t)
		if d := segment.Diff(old, old, nil, noon); len(d.Egress) > 0 {
			t.Fatalf("a policy differs from itself: %+v", d.Egress)
		}
		there, back := segment.Diff(old, new, nil, noon).Egress, segment.Diff(new, old, nil, noon).Egress
		for i := range back {
			back[i].Old, back[i].New = back[i].New, back[i].Old
		}
		byName := func(a, b segment.EgressChange) int { return strings.Compare(a.Segment, b.Segment) }
		slices.SortFunc(there, byName)
		slices.SortFunc(back, byName)
		if diff := cmp.Diff(there, back); diff != "" {
			t.Fatalf("the way back is another (-there +back):\n%s", diff)
		}
	})
}

// An agent's guard changes with the segments that it is in, also where theirs do not.
func TestDiffShowsGuardsOfAgents(t *testing.T) {
	policy := func(function string) *segment.Policy {
		p, err := segment.Parse([]byte("segments: [{name: s0, match: {function: " + function + "}, egress: none}, " +
			"{name: s1, match: {function: [call, plan]}, egress: [{to: 192.0.2.0/24, allow: [udp/53]}]}]"))
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	agents := []segment.Agent{
		{Name: "c", Labels: segment.Labels{"function": "call"}}, {Name: "p", Labels: segment.Labels{"function": "plan"}}, {Name: "o", Labels: segment.Labels{"function": "other"}},
	}
	if d := segment.Diff(policy("plan"), policy("call"), agents, noon); len(d.Guards) > 0 || len(d.Egress) > 0 {
		t.Errorf("the list guards both ways: %+v", d)
	}
	want := []segment.GuardChange{{Agent: "o", Old: "none", New: "host"}}
	if diff := cmp.Diff(want, segment.Diff(policy("other"), policy("plan"), agents, noon).Guards); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	rapid.Check(t, func(t *rapid.T) {
		old, new, agents := segmenttest.Policy(t), segmenttest.Policy(t), segmenttest.Agents(t, []string{"h1"}, 8)
		same := func(e segment.Egress) string {
			if !e.Guarded {
				return "host"
			}
			var parts []string
			for _, r := range e.Rules {
				parts = append(parts, fmt.Sprint(r))
			}
			slices.Sort(parts)
			return strings.Join(slices.Compact(parts), "; ")
		}
		changed := map[string]bool{}
		for _, g := range segment.Diff(old, new, agents, noon).Guards {
			changed[g.Agent] = true
		}
		for _, a := range agents {
			if differs := same(old.EgressOf(a)) != same(new.EgressOf(a)); differs != changed[a.Name] {
				t.Fatalf("%s: guarded differently %v, listed %v", a.Name, differs, changed[a.Name])
			}
		}
	})
}

// A destination that is accepted is one that enforcement understands: a prefix, or a name that some name matches.
func FuzzDestination(f *testing.F) {
	for _, seed := range []string{"192.0.2.0/24", "::/0", "api.example.com", "*.example.com", "10.0.0", "1.2.3.4", "fe80::%1/64", "*.*.a.b", "a..b"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, to string) {
		policy := egressPolicy(t, ", egress: [{to: a.example, allow: [tcp/1]}]")
		policy.Segments[0].Egress.Rules[0].To = to
		if policy.Validate() != nil {
			return
		}
		checkRoundTrip(t, policy)
		if p, err := netip.ParsePrefix(to); err == nil {
			if p.Masked() != p || p.Addr().Is4In6() {
				t.Fatalf("%q is accepted", to)
			}
			return
		}
		if !segment.NamesMatch(to, strings.Replace(to, "*", "x", 1)) {
			t.Fatalf("%q names nothing", to)
		}
		if _, err := netip.ParseAddr(to); err == nil {
			t.Fatalf("address %q is taken for a name", to)
		}
	})
}
