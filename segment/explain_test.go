package segment_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-mesh/bulkhead/segment"
)

func TestExplain(t *testing.T) {
	policy, agents := example(t)
	after := noon.AddDate(1, 0, 0)
	for _, test := range []struct {
		name, src, dst, port string
		late                 bool
		want                 segment.Explanation
	}{
		{name: "allowed", src: "scout", dst: "vec1", port: "tcp/6334", want: segment.Explanation{
			Verdict: "allow", Rule: "research-reads-vectors", Reason: "rule research-reads-vectors allows it",
			FromSegments: []string{"researchers"}, ToSegments: []string{"vector-store"},
		}},
		{name: "other port", src: "scout", dst: "vec1", port: "tcp/22", want: segment.Explanation{
			Reason:       "no rule allows it: port tcp/22 is not in rule research-reads-vectors (tcp/5432, tcp/6333-6334, icmp)",
			FromSegments: []string{"researchers"}, ToSegments: []string{"vector-store"}, Nearest: "research-reads-vectors",
			Missing: []string{"port tcp/22 is not in rule research-reads-vectors (tcp/5432, tcp/6333-6334, icmp)"},
		}},
		{name: "ended", src: "scout", dst: "vec1", port: "icmp", late: true, want: segment.Explanation{
			Reason:       "no rule allows it: rule research-reads-vectors ended at 2027-01-31T00:00:00Z",
			FromSegments: []string{"researchers"}, ToSegments: []string{"vector-store"}, Nearest: "research-reads-vectors",
			Missing: []string{"rule research-reads-vectors ended at 2027-01-31T00:00:00Z"},
		}},
		{name: "backwards", src: "vec1", dst: "scout", port: "tcp/5432", want: segment.Explanation{
			Reason:       "no rule allows it: rule research-reads-vectors goes the other way, from researchers to vector-store",
			FromSegments: []string{"vector-store"}, ToSegments: []string{"researchers"}, Nearest: "research-reads-vectors",
			Missing: []string{"rule research-reads-vectors goes the other way, from researchers to vector-store"},
		}},
		{name: "wrong segment", src: "scout", dst: "vault", port: "tcp/9000", want: segment.Explanation{
			Reason:       "no rule allows it: agent scout is in researchers, not in vector-store",
			FromSegments: []string{"researchers"}, ToSegments: []string{"deep-store"}, Nearest: "fill-vectors",
			Missing: []string{"agent scout is in researchers, not in vector-store"},
		}},
		{name: "no segment", src: "idler", dst: "vec1", port: "tcp/5432", want: segment.Explanation{
			Reason:       "no rule allows it: agent idler is in no segment",
			FromSegments: []string{}, ToSegments: []string{"vector-store"},
			Missing: []string{"agent idler is in no segment"},
		}},
		{name: "itself", src: "vec1", dst: "vec1", port: "tcp/5432", want: segment.Explanation{
			Reason:       "source and destination are the same agent: no policy is about what it does with itself",
			FromSegments: []string{"vector-store"}, ToSegments: []string{"vector-store"},
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			now := noon
			if test.late {
				now = after
			}
			if test.want.Verdict == "" {
				test.want.Verdict = "deny"
			}
			got := policy.Explain(named(t, agents, test.src), named(t, agents, test.dst), port(t, test.port), now)
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("explanation (-want +got):\n%s", diff)
			}
		})
	}
	t.Run("no rules", func(t *testing.T) {
		empty := *policy
		empty.Rules = nil
		got := empty.Explain(agents[0], agents[1], port(t, "icmp"), noon)
		if diff := cmp.Diff([]string{"the policy has no rules"}, got.Missing); diff != "" {
			t.Error(diff)
		}
	})
}

func TestRunTests(t *testing.T) {
	policy, agents := example(t)
	policy.Tests = append(policy.Tests,
		segment.Test{From: "agent/scout", To: "agent/vec1", Port: port(t, "tcp/22"), Expect: "allow"},
		segment.Test{From: "agent/scout", To: "agent/vec1", Port: port(t, "icmp"), Expect: "deny"},
		segment.Test{From: "agent/nobody", To: "agent/vec1", Port: port(t, "icmp"), Expect: "deny"},
	)
	want := []segment.TestResult{
		{Test: policy.Tests[0], Got: "allow", Pass: true},
		{Test: policy.Tests[1], Got: "deny", Pass: true},
		{Test: policy.Tests[2], Got: "deny", Detail: "no rule allows it: port tcp/22 is not in rule research-reads-vectors (tcp/5432, tcp/6333-6334, icmp)"},
		{Test: policy.Tests[3], Got: "allow", Detail: "rule research-reads-vectors allows it"},
		{Test: policy.Tests[4], Detail: `there is no agent "nobody" (fix: correct the name, or enrol it first)`},
	}
	if diff := cmp.Diff(want, policy.RunTests(agents, noon)); diff != "" {
		t.Errorf("results (-want +got):\n%s", diff)
	}
}
