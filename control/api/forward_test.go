package api

import (
	"strings"
	"testing"

	"github.com/bulkhead-mesh/bulkhead/control/authority"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

// A host without the control role answers questions from what it verified, and says where changes are made.
func TestHostWithoutControl(t *testing.T) {
	w, _ := populated(t)
	agents, err := w.authority.PolicyAgents()
	if err != nil {
		t.Fatal(err)
	}
	local := &fakeLocal{agents: agents, policy: w.authority.Policy(), rollout: []RolloutHost{{Name: "h1", Alive: true, Enforced: 2}}}
	client := onSocket(t, Options{Local: local}, root)
	e, err := client.Explain(t.Context(), "plan1", "tool1", "icmp")
	if err != nil || e.Verdict != "allow" {
		t.Errorf("explain = %+v, %v", e, err)
	}
	hosts, err := client.Hosts(t.Context())
	if err != nil || len(hosts) != 3 || hosts[0].Enforced != 2 || hosts[1].Agents[0] != "plan1" {
		t.Errorf("hosts = %+v, %v", hosts, err)
	}
	rollout, err := client.Rollout(t.Context(), 0)
	if err != nil || rollout.Version != 2 {
		t.Errorf("rollout = %+v, %v", rollout, err)
	}
	_, err = client.DeleteRule(t.Context(), "plan-uses-tools", 0)
	wantCode(t, err, CodeNoControl)
	_, err = client.Audit(t.Context(), 10)
	wantCode(t, err, CodeNoControl)
}

func TestHostWithoutPolicySaysSo(t *testing.T) {
	client := onSocket(t, Options{Local: new(fakeLocal)}, root)
	_, err := client.Policy(t.Context())
	wantCode(t, err, CodeNoPolicy)
	if agents, err := client.Agents(t.Context()); err != nil || len(agents) != 0 {
		t.Errorf("agents = %v, %v", agents, err)
	}
}

func TestSocketRefusesOtherUsers(t *testing.T) {
	client := onSocket(t, Options{Local: new(fakeLocal)}, authority.Principal{})
	_, err := client.Status(t.Context())
	wantCode(t, err, authority.CodeDenied)
}

// What a control host forwards is done in its name, so it must not do so for callers of a lesser role.
func TestForwardingChecksTheRoleFirst(t *testing.T) {
	w, alice := populated(t)
	untested, _, _ := strings.Cut(document, "tests:")
	if _, err := alice.PutPolicy(t.Context(), []byte(untested), 0); err != nil {
		t.Fatal(err)
	}
	up := w.dial(DialOptions{Server: w.address, Mesh: testMesh, Roots: w.authority.Roots(), Certificate: w.certificate})
	options := Options{Local: new(fakeLocal), Forward: up.Forward(quiet)}
	before := w.requests.Load()
	viewer := onSocket(t, options, authority.Principal{Name: "operator/vic", Role: authority.RoleViewer})
	_, err := viewer.DeleteRule(t.Context(), "plan-uses-tools", 0)
	wantCode(t, err, authority.CodeDenied)
	operator := onSocket(t, options, authority.Principal{Name: "operator/olga", Role: authority.RoleOperator})
	_, err = operator.CreateToken(t.Context(), TokenRequest{Role: authority.RoleAdmin})
	wantCode(t, err, authority.CodeDenied)
	_, err = operator.Renew(t.Context(), authority.RenewRequest{})
	wantCode(t, err, authority.CodeDenied)
	_, err = onSocket(t, options, root).Renew(t.Context(), authority.RenewRequest{})
	wantCode(t, err, authority.CodeDenied)
	if n := w.requests.Load() - before; n != 0 {
		t.Errorf("%d requests were forwarded for a viewer, for an operator, or to renew", n)
	}
	admin := onSocket(t, options, root)
	change, err := admin.DeleteRule(t.Context(), "plan-uses-tools", 0)
	if err != nil || change.Version == 0 {
		t.Errorf("forwarded change = %+v, %v", change, err)
	}
	_, err = admin.DeleteRule(t.Context(), "plan-uses-tools", 0)
	wantCode(t, err, authority.CodeNotFound) // the authority's problem comes through whole
	if _, err := admin.CreateToken(t.Context(), TokenRequest{Grant: segment.Labels{"function": "plan"}}); err != nil {
		t.Errorf("forwarded body: %v", err)
	}
}

func TestForwardingToControlThatIsAway(t *testing.T) {
	up, err := Dial(DialOptions{Server: "127.0.0.1:1", Mesh: testMesh, Certificate: new(world).certificate})
	if err != nil {
		t.Fatal(err)
	}
	client := onSocket(t, Options{Local: new(fakeLocal), Forward: up.Forward(quiet)}, root)
	_, err = client.Tokens(t.Context())
	wantCode(t, err, CodeUnreachable)
}
