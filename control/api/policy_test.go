package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/bulkhead-mesh/bulkhead/control/authority"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

const document = `segments:
  - name: planners
    match: {function: plan, sensitivity: internal}
  - name: tools
    match: {function: tool, sensitivity: internal}
rules:
  - name: plan-uses-tools
    from: planners
    to: tools
    allow: [tcp/443, icmp]
tests:
  - {from: agent/plan1, to: agent/tool1, port: tcp/443, expect: allow}
`

// populated is a world with two agents and the policy above.
func populated(t *testing.T) (*world, *Client) {
	t.Helper()
	w := newWorld(t)
	w.join("h2", "plan1", segment.Labels{"function": "plan", "sensitivity": "internal"})
	w.join("h3", "tool1", segment.Labels{"function": "tool", "sensitivity": "internal"})
	alice := w.operator("alice", authority.RoleAdmin)
	if _, err := alice.PutPolicy(t.Context(), []byte(document), 0); err != nil {
		t.Fatal(err)
	}
	return w, alice
}

func TestPolicyRoundTrip(t *testing.T) {
	_, alice := populated(t)
	p, err := alice.Policy(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if p.Document != document || p.Version != 2 || p.Author != "operator/alice" || len(p.Policy.Rules) != 1 {
		t.Errorf("policy = %+v", p)
	}
	old, err := alice.PolicyAt(t.Context(), 1)
	if err != nil || old.Version != 1 || len(old.Policy.Rules) != 0 {
		t.Errorf("version 1 = %+v, %v", old, err)
	}
	change, err := alice.Rollback(t.Context(), 1)
	if err != nil || change.Version != 3 || len(change.Difference.Lost) == 0 {
		t.Errorf("rollback = %+v, %v", change, err)
	}
	versions, err := alice.Versions(t.Context())
	if err != nil || len(versions) != 3 {
		t.Errorf("versions = %v, %v", versions, err)
	}
}

func TestStaleChangesAreRefused(t *testing.T) {
	w, alice := populated(t)
	_, err := alice.PutPolicy(t.Context(), []byte("segments: []\n"), 1)
	wantCode(t, err, authority.CodeVersionConflict)
	if p, ok := errors.AsType[*Problem](err); ok && p.Status != http.StatusPreconditionFailed {
		t.Errorf("status = %d, want 412", p.Status)
	}
	_, err = alice.DeleteRule(t.Context(), "plan-uses-tools", 1)
	wantCode(t, err, authority.CodeVersionConflict)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "https://"+w.address+"/v1/policy", strings.NewReader("segments: []\n"))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := rawClient(t, w.certificate()).Do(req)
	wantStatus(t, resp, err, http.StatusPreconditionRequired)
}

// Of writers that read the same version, one wins and the others are told; no change is lost.
func TestTwoWritersAtOnce(t *testing.T) {
	w, alice := populated(t)
	before, err := alice.Policy(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const writers = 8
	var wg sync.WaitGroup
	results := make([]error, writers)
	for i := range writers {
		wg.Go(func() {
			_, results[i] = alice.PutPolicy(t.Context(), []byte(document+fmt.Sprintf("# writer %d\n", i)), before.Version)
		})
	}
	wg.Wait()
	won := -1
	for i, err := range results {
		if err == nil && won >= 0 {
			t.Errorf("writers %d and %d both won", won, i)
		} else if err == nil {
			won = i
		} else {
			wantCode(t, err, authority.CodeVersionConflict)
		}
	}
	after := w.authority.Policy()
	if won < 0 || after.Version != before.Version+1 || !strings.HasSuffix(after.Document, fmt.Sprintf("# writer %d\n", won)) {
		t.Errorf("writer %d won; policy is version %d: %s", won, after.Version, after.Document)
	}
}

func TestRefusedPoliciesSayWhy(t *testing.T) {
	_, alice := populated(t)
	failing := strings.Replace(document, "expect: allow", "expect: deny", 1)
	_, err := alice.PutPolicy(t.Context(), []byte(failing), 0)
	wantCode(t, err, authority.CodeTestsFailed)
	if p, ok := errors.AsType[*Problem](err); ok && (len(p.Tests) != 1 || p.Tests[0].Pass || !strings.Contains(p.Error(), "plan1")) {
		t.Errorf("problem = %+v: %v", p, p)
	}
	broken := strings.Replace(document, "to: tools", "to: nowhere", 1)
	_, err = alice.PutPolicy(t.Context(), []byte(broken), 0)
	wantCode(t, err, authority.CodePolicyRefused)
	if p, ok := errors.AsType[*Problem](err); ok && (len(p.Problems) != 1 || p.Problems[0].Line != 9 || strings.Count(p.Error(), "nowhere") != 1) {
		t.Errorf("problem = %+v: %v", p, p)
	}
	check, err := alice.CheckPolicy(t.Context(), []byte(broken))
	if err != nil || check.OK || len(check.Problems) != 1 {
		t.Errorf("check = %+v, %v", check, err)
	}
}

func TestCheckChangesNothingAndTellsAll(t *testing.T) {
	w, alice := populated(t)
	before := w.authority.Policy().Version
	check, err := alice.CheckPolicy(t.Context(), []byte(strings.Replace(document, "tcp/443, icmp", "tcp/443, tcp/80", 1)))
	if err != nil {
		t.Fatal(err)
	}
	if !check.OK || len(check.Tests) != 1 || len(check.Difference.Gained) != 1 || len(check.Difference.Lost) != 1 {
		t.Errorf("check = %+v", check)
	}
	if len(check.Reach) != 1 || check.Reach[0].Agent != "plan1" || len(check.Reach[0].Reached) != 1 {
		t.Errorf("reach = %+v", check.Reach)
	}
	if after := w.authority.Policy().Version; after != before {
		t.Errorf("check made version %d", after)
	}
}

func TestSegmentsAndRulesOverTheAPI(t *testing.T) {
	_, alice := populated(t)
	segments, err := alice.Segments(t.Context())
	if err != nil || len(segments) != 2 || len(segments[0].Agents) != 1 || segments[0].Agents[0] != "plan1" {
		t.Fatalf("segments = %+v, %v", segments, err)
	}
	more := segments[0].Segment
	more.Name = "more"
	if _, err := alice.CreateSegment(t.Context(), more, 0); err != nil {
		t.Fatal(err)
	}
	_, err = alice.CreateSegment(t.Context(), more, 0)
	wantCode(t, err, authority.CodeExists)
	got, err := alice.Segment(t.Context(), "more")
	if err != nil || fmt.Sprint(got.Match) != fmt.Sprint(more.Match) {
		t.Errorf("segment = %+v, %v; want match %v", got, err, more.Match)
	}
	rules, err := alice.Rules(t.Context())
	if err != nil || len(rules) != 1 {
		t.Fatalf("rules = %+v, %v", rules, err)
	}
	second := rules[0]
	second.Name, second.To = "second", "more"
	if _, err := alice.CreateRule(t.Context(), second, 0); err != nil {
		t.Fatal(err)
	}
	_, err = alice.DeleteSegment(t.Context(), "more", 0)
	wantCode(t, err, authority.CodePolicyRefused)
	if _, err := alice.DeleteRule(t.Context(), "second", 0); err != nil {
		t.Error(err)
	}
	if _, err := alice.DeleteSegment(t.Context(), "more", 0); err != nil {
		t.Error(err)
	}
	_, err = alice.Segment(t.Context(), "more")
	wantCode(t, err, authority.CodeNotFound)
}

func TestQuestions(t *testing.T) {
	w, alice := populated(t)
	e, err := alice.Explain(t.Context(), "agent/plan1", "tool1", "tcp/443")
	if err != nil || e.Verdict != "allow" || e.Rule != "plan-uses-tools" || e.PolicyVersion != w.authority.Policy().Version {
		t.Errorf("explain = %+v, %v", e, err)
	}
	e, err = alice.Explain(t.Context(), "agent/tool1", "agent/plan1", "tcp/443")
	if err != nil || e.Verdict != "deny" || e.Reason == "" {
		t.Errorf("explain = %+v, %v", e, err)
	}
	_, err = alice.Explain(t.Context(), "agent/nobody", "agent/plan1", "tcp/443")
	wantCode(t, err, authority.CodeNotFound)
	_, err = alice.Explain(t.Context(), "agent/tool1", "agent/plan1", "tcp/x")
	wantCode(t, err, authority.CodeInvalid)
	reach, err := alice.Reach(t.Context(), "agent/plan1")
	if err != nil || len(reach.Reached) != 1 || reach.Reached[0].Agent != "tool1" {
		t.Errorf("reach = %+v, %v", reach, err)
	}
	change, err := alice.Relabel(t.Context(), "plan1", segment.Labels{"function": "idle"}, 0)
	if err != nil || change.Version == 0 {
		t.Fatal(err)
	}
	agent, err := alice.Agent(t.Context(), "plan1")
	if err != nil || agent.Labels["function"] != "idle" || len(agent.Segments) != 0 {
		t.Errorf("agent = %+v, %v", agent, err)
	}
}

// What a segment says of the world outside has two forms, and no others.
func TestSegmentsSayWhatLiesOutside(t *testing.T) {
	w := newWorld(t)
	alice := w.operator("alice", authority.RoleOperator)
	for name, egress := range map[string]string{"none": `"none"`, "host": `"host"`, "list": `[{"to":"api.example.com","allow":["tcp/443"]},{"to":"192.0.2.0/24","allow":["udp/53","icmp"]}]`} {
		var s segment.Segment
		if err := json.Unmarshal([]byte(`{"name":"`+name+`","match":{"function":"`+name+`"},"egress":`+egress+`}`), &s); err != nil {
			t.Fatal(err)
		}
		if _, err := alice.CreateSegment(t.Context(), s, 0); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		got, err := alice.Segment(t.Context(), name)
		if err != nil || got.Egress.String() != s.Egress.String() {
			t.Errorf("%s: %v, %v", name, got.Egress, err)
		}
	}
	client := rawClient(t, w.certificate())
	for _, egress := range []string{`"all"`, `[]`, `{}`, `7`, `[{"to":"api.example.com"}]`, `[{"to":"192.0.2.1/24","allow":["tcp/443"]}]`, `[{"to":"api.example.com","allow":["tcp/443"],"x":1}]`} {
		resp, err := client.Post("https://"+w.address+"/v1/segments", "application/json", strings.NewReader(`{"name":"bad","match":{"function":"x"},"egress":`+egress+`}`))
		if wantStatus(t, resp, err, http.StatusUnprocessableEntity); t.Failed() {
			t.Fatal(egress)
		}
	}
}
