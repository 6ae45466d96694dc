package segment_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/bulkhead-mesh/bulkhead/segment"
	"github.com/bulkhead-mesh/bulkhead/segment/segmenttest"
)

func TestReach(t *testing.T) {
	policy, agents := example(t)
	got, err := policy.Reach("scout", agents, noon)
	if err != nil {
		t.Fatal(err)
	}
	read := []segment.Ports{{Proto: segment.ICMP}, {Proto: segment.TCP, First: 5432, Last: 5432}, {Proto: segment.TCP, First: 6333, Last: 6334}}
	want := []segment.Reached{
		{Agent: "vec1", Hops: 1, Via: []string{}, Ports: read, Rules: []string{"research-reads-vectors"}},
		{Agent: "vec2", Hops: 1, Via: []string{}, Ports: read, Rules: []string{"research-reads-vectors"}},
		{Agent: "vault", Hops: 2, Via: []string{"vec1"}, Ports: []segment.Ports{{Proto: segment.TCP, First: 9000, Last: 9000}}, Rules: []string{"fill-vectors"}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("reach (-want +got):\n%s", diff)
	}
	if _, err := policy.Reach("nobody", agents, noon); err == nil || err.Error() != `reach: there is no agent "nobody"` {
		t.Errorf("reach of a stranger: %v", err)
	}
}

func TestReachJoinsRanges(t *testing.T) {
	policy, agents := example(t)
	policy.Rules[0].Allow = nil
	for _, text := range []string{"tcp/21-30", "udp/31", "tcp/10-20", "tcp/12-15", "tcp/32"} {
		ports, err := segment.ParsePorts(text)
		if err != nil {
			t.Fatal(err)
		}
		policy.Rules[0].Allow = append(policy.Rules[0].Allow, ports)
	}
	reached, err := policy.Reach("scout", agents, noon)
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(reached[0].Ports); got != "[tcp/10-30 tcp/32 udp/31]" {
		t.Errorf("ports are %s", got)
	}
}

// probes are a port inside and outside each range that segmenttest draws.
func probes(t testing.TB) (ports []segment.Port) {
	for _, text := range []string{"tcp/443", "tcp/440", "tcp/450", "tcp/451", "tcp/6000", "tcp/6999", "udp/443", "udp/53", "icmp"} {
		ports = append(ports, port(t, text))
	}
	return ports
}

func opens(p *segment.Policy, src, dst segment.Agent, ports []segment.Port, now time.Time) (open []segment.Port) {
	for _, port := range ports {
		if p.Decide(src, dst, port, now).Allow {
			open = append(open, port)
		}
	}
	return open
}

func TestReachIsWhatDecideAllows(t *testing.T) {
	ports := probes(t)
	rapid.Check(t, func(t *rapid.T) {
		policy, agents := segmenttest.Policy(t, ends...), segmenttest.Agents(t, hosts, 3)
		now := drawTime(t)
		start := rapid.SampledFrom(agents).Draw(t, "start")
		hopsTo := map[string]int{start.Name: 0}
		byName := map[string]segment.Agent{}
		for _, a := range agents {
			byName[a.Name] = a
		}
		for hop := 1; hop <= len(agents); hop++ {
			eachFlow(agents, func(src, dst segment.Agent) {
				_, seen := hopsTo[dst.Name]
				if h, here := hopsTo[src.Name]; !seen && here && h == hop-1 && len(opens(policy, src, dst, ports, now)) > 0 {
					hopsTo[dst.Name] = hop
				}
			})
		}
		reached, err := policy.Reach(start.Name, agents, now)
		if err != nil || len(reached) != len(hopsTo)-1 {
			t.Fatalf("%s reaches %+v, %v, want %v", start.Name, reached, err, hopsTo)
		}
		for _, r := range reached {
			if r.Hops != hopsTo[r.Agent] || len(r.Via) != r.Hops-1 {
				t.Fatalf("%+v is %d hops away", r, hopsTo[r.Agent])
			}
			way := append(slices.Concat([]string{start.Name}, r.Via), r.Agent)
			for i := range len(way) - 1 {
				if len(opens(policy, byName[way[i]], byName[way[i+1]], ports, now)) == 0 {
					t.Fatalf("the way %v has no step from %s", way, way[i])
				}
			}
			last := byName[way[len(way)-2]]
			for _, port := range ports {
				if contains(r.Ports, port) != policy.Decide(last, byName[r.Agent], port, now).Allow {
					t.Fatalf("the last hop of %+v is wrong about %s", r, port)
				}
			}
		}
	})
}

func contains(ports []segment.Ports, port segment.Port) bool {
	return slices.ContainsFunc(ports, func(p segment.Ports) bool { return p.Contains(port) })
}

func TestDiff(t *testing.T) {
	policy, agents := example(t)
	changed := *policy
	changed.Rules = slices.Clone(policy.Rules)
	changed.Rules[1].Allow = []segment.Ports{{Proto: segment.TCP, First: 8999, Last: 9001}}
	got := segment.Diff(policy, &changed, agents, noon)
	extra := []segment.Ports{{Proto: segment.TCP, First: 8999, Last: 8999}, {Proto: segment.TCP, First: 9001, Last: 9001}}
	want := segment.Difference{
		Gained: []segment.Change{
			{From: "vec1", To: "vault", Ports: extra, Rules: []string{"fill-vectors"}},
			{From: "vec2", To: "vault", Ports: extra, Rules: []string{"fill-vectors"}},
		},
		Lost: []segment.Change{},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("difference (-want +got):\n%s", diff)
	}
	back := segment.Diff(&changed, policy, agents, noon)
	if diff := cmp.Diff(segment.Difference{Gained: want.Lost, Lost: want.Gained}, back); diff != "" {
		t.Errorf("difference back (-want +got):\n%s", diff)
	}
}

func TestDiffIsBounded(t *testing.T) {
	policy := &segment.Policy{
		Segments: []segment.Segment{{Name: "all", Match: segment.Selector{"function": {Values: []string{"x"}}}}},
		Rules:    []segment.Rule{{Name: "r", From: "all", To: "all", Allow: []segment.Ports{{Proto: segment.ICMP}}, Crosses: "x"}},
	}
	var agents []segment.Agent
	for i := range 150 {
		agents = append(agents, segment.Agent{Name: string([]byte{'a' + byte(i/10), '0' + byte(i%10)}), Labels: segment.Labels{"function": "x"}})
	}
	d := segment.Diff(&segment.Policy{}, policy, agents, noon)
	if len(d.Gained) != 10_000 || d.Unlisted != 150*149-10_000 || len(d.Lost) != 0 {
		t.Errorf("%d gained, %d lost, %d unlisted", len(d.Gained), len(d.Lost), d.Unlisted)
	}
}

func TestDiffIsWhatDecideSays(t *testing.T) {
	ports := probes(t)
	rapid.Check(t, func(t *rapid.T) {
		old, new := segmenttest.Policy(t, ends...), segmenttest.Policy(t, ends...)
		agents, now := segmenttest.Agents(t, hosts, 2), drawTime(t)
		d := segment.Diff(old, new, agents, now)
		changes := map[[2]string][2][]segment.Ports{}
		for i, list := range [][]segment.Change{d.Gained, d.Lost} {
			for _, c := range list {
				entry := changes[[2]string{c.From, c.To}]
				if entry[i] != nil || len(c.Ports) == 0 || len(c.Rules) == 0 || c.From == c.To {
					t.Fatalf("change %+v is there twice or empty", c)
				}
				entry[i] = c.Ports
				changes[[2]string{c.From, c.To}] = entry
			}
		}
		eachFlow(agents, func(src, dst segment.Agent) {
			entry := changes[[2]string{src.Name, dst.Name}]
			for _, port := range ports {
				before, after := old.Decide(src, dst, port, now).Allow, new.Decide(src, dst, port, now).Allow
				if contains(entry[0], port) != (after && !before) || contains(entry[1], port) != (before && !after) {
					t.Fatalf("%s -> %s %s: %v before, %v after, difference %+v", src.Name, dst.Name, port, before, after, entry)
				}
			}
		})
	})
}
