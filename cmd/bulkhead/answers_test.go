package main

import (
	"encoding/json"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/goccy/go-yaml"

	"github.com/bulkhead-mesh/bulkhead/control/api"
	"github.com/bulkhead-mesh/bulkhead/control/authority"
	"github.com/bulkhead-mesh/bulkhead/overlay"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

var (
	handshake   = noon
	planLabels  = segment.Labels{"function": "plan", "sensitivity": "internal"}
	vaultLabels = segment.Labels{"function": "vault", "sensitivity": "restricted"}
	planAddrs   = []netip.Addr{netip.MustParseAddr("10.201.0.3"), netip.MustParseAddr("fd00::3")}
	https       = mustPorts("tcp/443")
	document    = "segments: []\n"
)

func mustPorts(s string) segment.Ports {
	p, err := segment.ParsePorts(s)
	if err != nil {
		panic(err)
	}
	return p
}

func mustPort(s string) segment.Port {
	p, err := segment.ParsePort(s)
	if err != nil {
		panic(err)
	}
	return p
}

func mustSelector(s string) (out segment.Selector) {
	if err := json.Unmarshal([]byte(s), &out); err != nil {
		panic(err)
	}
	return out
}

func fullDaemon() *fakeDaemon {
	difference := segment.Difference{
		Gained: []segment.Change{{From: "plan1", To: "vec1", Ports: []segment.Ports{https}, Rules: []string{"read"}}},
		Lost:   []segment.Change{{From: "plan1", To: "tool1", Ports: []segment.Ports{https}, Rules: []string{"use"}}},
		Egress: []segment.EgressChange{{Segment: "planners", Old: "host", New: "api.example.com tcp/443"}},
	}
	change := authority.Change{Version: 4, Difference: difference}
	tests := []segment.TestResult{
		{Test: segment.Test{From: "agent/plan1", To: "agent/vec1", Port: mustPort("tcp/443"), Expect: "allow"}, Got: "allow", Pass: true},
		{Test: segment.Test{From: "agent/vec1", To: "agent/plan1", Port: mustPort("icmp"), Expect: "allow"}, Got: "deny", Detail: "no rule"},
	}
	reached := []segment.Reached{{Agent: "vec1", Hops: 1, Ports: []segment.Ports{https}, Rules: []string{"read"}}, {Agent: "db1", Hops: 2, Via: []string{"vec1"}}}
	hosts := []api.Host{{Name: "h1", Alive: true, Enforced: 4, Agents: []string{"plan1"}, Control: true, Joined: &noon}, {Name: "h2", Agents: []string{}, Revoked: &noon}}
	agents := []api.Agent{{Name: "plan1", Host: "h1", Labels: planLabels, Addresses: planAddrs, Segments: []string{"planners"}, State: api.AgentActive},
		{Name: "evil\x1b[2J\nplan2", Host: "h2", Labels: segment.Labels{}, Segments: []string{}, State: api.AgentRevoked, Revoked: &noon},
		{Name: "vault1", Host: "h2", Labels: vaultLabels, Segments: []string{}, State: api.AgentPending}}
	local := []api.LocalAgent{
		{Name: "plan1", State: api.AgentActive, Labels: planLabels, Addresses: planAddrs, Segments: []string{"planners"}, Match: overlay.Match{Unit: "planner.service"}, Processes: true, Source: api.SourceConfig, NotEnforced: []string{"listening on all addresses: this kernel has no eBPF"}},
		{Name: "web1", State: api.AgentWaiting, Labels: segment.Labels{"function": "web"}, Addresses: planAddrs, Match: overlay.Match{Container: &overlay.ContainerMatch{Name: "web", Label: "tier=front"}}, Problem: "no container engine at /run/podman/podman.sock", Source: api.SourceCLI},
		{Name: "vault1", State: api.AgentPending, Labels: vaultLabels, Match: overlay.Match{Run: true}, Source: api.SourceRun}}
	segments := []api.SegmentView{{Segment: segment.Segment{Name: "planners", Match: mustSelector(`{"function": ["plan", "think"], "sensitivity": "<=internal"}`)}, Agents: []string{"plan1"}}}
	return &fakeDaemon{answers: map[string]any{
		"GET /v1/status": api.Status{Mesh: "lab.test", Host: "h1", Phase: "degraded", Reason: "control is away", Version: "v1", PolicyVersion: 4,
			PolicyIssued: &noon, PolicyAge: 90061, Agents: []api.StatusAgent{{Name: "plan1", Addresses: planAddrs, Labels: planLabels, Sensitivity: "internal", Segments: []string{"planners"}}},
			Peers: []api.Peer{{Name: "h2", Path: "direct 192.0.2.2:51900", LastHandshake: &handshake, RxBytes: 1536, TxBytes: 10, Agents: []string{"vec1"}}, {Name: "h3", Agents: []string{"db1"}}},
			Hosts: api.HostCount{Known: 3, Alive: 2}, Drops: map[string]uint64{"not allowed": 7, "spoofed": 0}, Refused: map[string]uint64{"record: expired": 1},
			CertificateExpires: noon, Control: &api.ControlStatus{Listen: ":7443", Authority: true, Version: 4}, NotEnforced: []string{"agents of other users"}},
		"GET /v1/hosts":                  hosts,
		"GET /v1/hosts/h1":               hosts[0],
		"POST /v1/hosts/h2/revoke":       change,
		"GET /v1/agents":                 agents,
		"GET /v1/agents/vault1":          agents[2],
		"POST /v1/agents/vault1/approve": api.Agent{Name: "vault1", Host: "h2", Labels: vaultLabels, Addresses: planAddrs, Segments: []string{"vaults"}, State: api.AgentActive},
		"POST /v1/agents/unseen/approve": api.Agent{Name: "unseen", State: api.AgentActive},
		"GET /v1/local/agents":           local,
		"POST /v1/local/agents":          local[0],
		"DELETE /v1/local/agents/plan1":  nil,
		"POST /v1/run":                   api.RunScope{Agent: "plan1", Addresses: planAddrs},
		"GET /v1/whois": api.Whois{Agent: "plan1", Host: "h1", Labels: planLabels, Segments: []string{"planners"}, Addresses: planAddrs,
			ID: "spiffe://lab.test/agent/plan1", Certificate: "00ff", Expires: noon, PolicyVersion: 4},
		"GET /v1/agents/plan1":         agents[0],
		"PUT /v1/agents/plan1/labels":  change,
		"POST /v1/agents/plan1/revoke": change,
		"GET /v1/segments":             segments,
		"GET /v1/segments/planners":    segments[0],
		"POST /v1/segments":            change,
		"DELETE /v1/segments/planners": change,
		"GET /v1/rules":                []segment.Rule{{Name: "read", From: "planners", To: "vectors", Allow: []segment.Ports{https, mustPorts("icmp")}, Crosses: "filtered", Until: &noon}},
		"POST /v1/rules":               change,
		"DELETE /v1/rules/read":        authority.Change{Version: 4, Unchanged: true},
		"GET /v1/tokens":               []authority.TokenInfo{{ID: "0011", Author: "local/root", Expires: noon, Uses: 2, Used: 1, Grant: planLabels}, {ID: "0022", Author: "local/root", Expires: noon, Role: authority.RoleViewer}},
		"POST /v1/tokens":              authority.CreatedToken{ID: "0011", Token: "bh1.secret", Expires: noon},
		"DELETE /v1/tokens/0011":       nil,
		"GET /v1/policy":               api.PolicyDocument{Version: 3, Issued: noon, Author: "operator/alice", Document: document},
		"PUT /v1/policy":               change,
		"POST /v1/policy/check":        api.Check{CheckResult: authority.CheckResult{Version: 3, Difference: difference, Tests: tests}, Reach: []api.AgentReach{{Agent: "plan1", Reached: reached}}},
		"POST /v1/policy/rollback":     change,
		"GET /v1/policy/versions":      []authority.VersionInfo{{Version: 1, Issued: noon, Author: "local/init", Summary: "init"}},
		"GET /v1/policy/reach":         api.Reach{AgentReach: api.AgentReach{Agent: "plan1", Reached: reached}, PolicyVersion: 4},
		"GET /v1/audit":                []authority.AuditEntry{{Time: noon, Seq: 1, Who: "local/root", From: "socket", Action: "create segment", Target: "segment/planners", Version: 2, Result: "done"}},
		"GET /v1/policy/rollout":       api.Rollout{Version: 4, Hosts: []api.RolloutHost{{Name: "h1", Enforced: 4, Alive: true}, {Name: "h2", Enforced: 3}}, Done: true},
		"GET /v1/policy/explain": func(r *http.Request) any {
			if r.URL.Query().Get("port") == "tcp/443" {
				return api.Explanation{Explanation: segment.Explanation{Verdict: "allow", Rule: "read", Reason: "rule read allows it", FromSegments: []string{"planners"}, ToSegments: []string{"vectors"}}, From: "plan1", To: "vec1", Port: "tcp/443", PolicyVersion: 4}
			}
			return api.Explanation{Explanation: segment.Explanation{Verdict: "deny", Reason: "no rule allows it", FromSegments: []string{"planners"}, ToSegments: []string{"vectors"}, Nearest: "read", Missing: []string{"read does not allow tcp/22"}}, From: "plan1", To: "vec1", Port: "tcp/22", PolicyVersion: 4}
		},
	}}
}

// What each command prints for people, and its exit code.
func TestTables(t *testing.T) {
	startFake(t, fullDaemon())
	for name, test := range map[string]struct {
		args string
		code int
	}{
		"status":          {"status", 0},
		"host-list":       {"host list", 0},
		"host-show":       {"host show host/h1", 0},
		"host-revoke":     {"host revoke h2 --reason stolen", 0},
		"agent-list":      {"agent list", 0},
		"agent-show":      {"agent show plan1", 0},
		"agent-revoke":    {"agent revoke plan1 --wait", 0},
		"agent-here":      {"agent list --here", 0},
		"agent-add":       {"agent add plan1 --label function=plan --match unit=planner.service", 0},
		"agent-remove":    {"agent remove agent/plan1", 0},
		"agent-approve":   {"agent approve agent/vault1", 0},
		"whois":           {"whois 10.201.0.3:443", 0},
		"agent-relabel":   {"agent relabel plan1 --label function=plan", 0},
		"segment-list":    {"segment list", 0},
		"segment-show":    {"segment show planners", 0},
		"segment-delete":  {"segment delete planners", 0},
		"rule-list":       {"rule list", 0},
		"rule-delete":     {"rule delete read", 0},
		"token-list":      {"token list", 0},
		"token-create":    {"token create", 0},
		"token-revoke":    {"token revoke token/0011", 0},
		"policy-show":     {"policy show", 0},
		"policy-apply":    {"policy apply -f - --wait", 0},
		"policy-check":    {"policy check -f -", exitTestsFailed},
		"policy-diff":     {"policy diff -f -", 0},
		"policy-versions": {"policy versions", 0},
		"policy-rollback": {"policy rollback 1", 0},
		"policy-reach":    {"policy reach agent/plan1", 0},
		"explain-allow":   {"policy explain agent/plan1 agent/vec1 tcp/443", 0},
		"explain-deny":    {"policy explain agent/plan1 agent/vec1 tcp/22", exitDenied},
		"audit":           {"audit", 0},
		"unreachable":     {"status --socket /nonexistent/s", exitUnreachable},
	} {
		t.Run(name, func(t *testing.T) {
			got := bulkhead(t, document, strings.Fields(test.args)...)
			if got.code != test.code {
				t.Errorf("exit code %d, want %d", got.code, test.code)
			}
			golden(t, filepath.Join("testdata/golden", name+".txt"), "$ bulkhead "+test.args+"\n"+got.out+"--- stderr\n"+got.err)
		})
	}
}

func TestProgramsGetTheWholeAnswer(t *testing.T) {
	startFake(t, fullDaemon())
	for _, format := range []string{"-ojson", "--json", "-oyaml"} {
		got := bulkhead(t, "", "status", format)
		var s api.Status
		unmarshal := json.Unmarshal
		if format == "-oyaml" {
			unmarshal = func(data []byte, v any) error { return yaml.UnmarshalWithOptions(data, v, yaml.UseJSONUnmarshaler()) }
		}
		if err := unmarshal([]byte(got.out), &s); err != nil || got.code != 0 || got.err != "" {
			t.Fatalf("%s: %v, code %d: %s%s", format, err, got.code, got.out, got.err)
		}
		if s.Phase != "degraded" || len(s.Peers) != 2 || s.Agents[0].Addresses[0] != planAddrs[0] || !s.CertificateExpires.Equal(noon) {
			t.Errorf("%s: %+v", format, s)
		}
	}
	got := bulkhead(t, "", "policy", "explain", "agent/plan1", "agent/vec1", "tcp/22", "-o", "json")
	var e struct {
		Verdict       string
		PolicyVersion uint64
	}
	if err := json.Unmarshal([]byte(got.out), &e); err != nil || e.Verdict != "deny" || e.PolicyVersion != 4 || got.code != exitDenied || got.err != "" {
		t.Errorf("explain = %+v, %v, code %d, stderr %q", e, err, got.code, got.err)
	}
	var token struct{ Token string }
	got = bulkhead(t, "", "token", "create", "-o", "json")
	if err := json.Unmarshal([]byte(got.out), &token); err != nil || token.Token != "bh1.secret" {
		t.Errorf("token create = %s, %v", got.out, err)
	}
}

func TestChangesSendWhatWasMeant(t *testing.T) {
	fake := fullDaemon()
	startFake(t, fake)
	for _, test := range []struct{ args, body, match string }{
		{"token create --uses 3 --ttl 10m --grant function=plan,sensitivity=internal", `{"uses":3,"ttl":"10m0s","grant":{"function":"plan","sensitivity":"internal"}}`, ""},
		{"token create --role viewer", `{"role":"viewer"}`, ""},
		{"segment create planners --match function=plan --match function=think --match sensitivity<=internal", `{"name":"planners","match":{"function":["plan","think"],"sensitivity":"\u003c=internal"}}`, ""},
		{"segment create quiet --match function=plan --egress none", `{"name":"quiet","match":{"function":"plan"},"egress":"none"}`, ""},
		{"segment create callers --match function=call --egress *.example.com=tcp/443,udp/443 --egress 2001:db8::/32=icmp",
			`{"name":"callers","match":{"function":"call"},"egress":[{"to":"*.example.com","allow":["tcp/443","udp/443"]},{"to":"2001:db8::/32","allow":["icmp"]}]}`, ""},
		{"rule create read --from segment/planners --to vectors --allow tcp/443,icmp --crosses filtered --until 2026-03-01T12:00:00Z --if-match 3",
			`{"name":"read","from":"planners","to":"vectors","allow":["tcp/443","icmp"],"crosses":"filtered","until":"2026-03-01T12:00:00Z"}`, `"3"`},
		{"agent relabel plan1 --label function=idle --if-match 7", `{"labels":{"function":"idle"}}`, `"7"`},
		{"agent add web1 --label function=web --match container.name=web,container.label=tier=front", `{"name":"web1","labels":{"function":"web"},"match":{"container":{"name":"web","label":"tier=front"}}}`, ""},
		{"agent add all --match host", `{"name":"all","match":{"host":true}}`, ""},
		{"agent remove plan1", "", ""},
		{"agent approve vault1 --if-match 4", `{"host":"h2","labels":{"function":"vault","sensitivity":"restricted"}}`, `"4"`}, // what was shown
		{"agent approve unseen --label function=plan", `{"labels":{"function":"plan"}}`, ""},                                   // by a host that sees no pending agents
		{"agent approve vault1 --label function=plan", `{"host":"h2","labels":{"function":"plan"}}`, ""},
		{"run --agent agent/plan1 true", `{"agent":"plan1"}`, ""},
		{"run --agent probe --label function=test -- true", `{"agent":"probe","labels":{"function":"test"}}`, ""},
		{"policy apply -f -", document, `"3"`}, // the version that was current when it was sent
		{"policy apply -f - --if-match 2", document, `"2"`},
		{"policy rollback 1", `{"version":1}`, ""},
		{"host revoke h2 --reason stolen", `{"reason":"stolen"}`, ""},
	} {
		if got := bulkhead(t, document, strings.Fields(test.args)...); got.code != 0 {
			t.Errorf("%s: code %d: %s", test.args, got.code, got.err)
			continue
		}
		if got := fake.asked.Load(); got.body != test.body || got.ifMatch != test.match {
			t.Errorf("%s: sent %s with If-Match %s; want %s with %s", test.args, got.body, got.ifMatch, test.body, test.match)
		}
	}
}

func TestExitCodesOfRefusals(t *testing.T) {
	for code, want := range map[string]int{
		"denied": exitDenied, "unauthenticated": exitDenied, "tests-failed": exitTestsFailed, "no-control": exitUnreachable,
		"unreachable": exitUnreachable, "version-conflict": exitError, "policy-refused": exitError,
	} {
		t.Run(code, func(t *testing.T) {
			fake := fullDaemon()
			fake.problems = map[string]any{"PUT /v1/policy": api.Problem{Status: 422, Code: code, Detail: "it is so", Fix: "do this"}}
			startFake(t, fake)
			got := bulkhead(t, document, "policy", "apply", "-f", "-")
			if got.code != want || got.out != "" || got.err != "bulkhead: it is so (fix: do this)\n" {
				t.Errorf("code %d, want %d; stdout %q, stderr %q", got.code, want, got.out, got.err)
			}
		})
	}
}

// --wait ends when all hosts that are alive enforce the version, and not before.
func TestWaitEndsWithTheRollout(t *testing.T) {
	fake := fullDaemon()
	var polls atomic.Int32
	fake.answers["GET /v1/policy/rollout"] = func(r *http.Request) any {
		n := polls.Add(1)
		out := api.Rollout{Version: 4, Hosts: []api.RolloutHost{{Name: "h1", Enforced: 4, Alive: true}, {Name: "h2", Enforced: 3, Alive: true}}}
		if n >= 3 {
			out.Hosts[1].Enforced, out.Done = 4, true
		}
		return out
	}
	startFake(t, fake)
	got := bulkhead(t, document, "policy", "apply", "-f", "-", "--wait")
	want := "1 of 2 hosts enforce policy version 4\n2 of 2 hosts enforce policy version 4\n"
	if got.code != 0 || got.err != want || polls.Load() != 3 {
		t.Errorf("code %d after %d polls: %s", got.code, polls.Load(), got.err)
	}
	polls.Store(-1 << 20)
	got = bulkhead(t, document, "policy", "apply", "-f", "-", "--wait", "--timeout", "200ms")
	if got.code != exitError || !strings.Contains(got.err, "h2 (at 3)") {
		t.Errorf("code %d: %s", got.code, got.err)
	}
}

func TestEvents(t *testing.T) {
	startFake(t, &fakeDaemon{answers: map[string]any{"GET /v1/events": nil}})
	if got := bulkhead(t, "", "events"); got.code != exitUnreachable {
		t.Errorf("a stream that ends: code %d: %s", got.code, got.err)
	}
}

func TestDocumentsThatCannotBeRead(t *testing.T) {
	startFake(t, fullDaemon())
	large := filepath.Join(t.TempDir(), "large.yaml")
	if err := os.WriteFile(large, make([]byte, maxDocument+1), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{large, filepath.Join(t.TempDir(), "none.yaml")} {
		if got := bulkhead(t, "", "policy", "apply", "-f", path); got.code != exitError || !strings.Contains(got.err, "read policy") {
			t.Errorf("%s: code %d: %s", path, got.code, got.err)
		}
	}
}
