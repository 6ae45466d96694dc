package api

import (
	"crypto/tls"
	"slices"
	"strings"
	"testing"

	"github.com/bulkhead-mesh/bulkhead/control/authority"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

func declaring(t *testing.T, labels segment.Labels, agent string) authority.DeclareRequest {
	t.Helper()
	_, csr := newCSR(t, identity.KindAgent, agent)
	return authority.DeclareRequest{Agents: []authority.AgentRequest{{Name: agent, Labels: labels, CSR: csr}}}
}

// The whole way of an agent whose labels its host was not granted.
func TestAnAgentIsDeclaredApprovedAndWithdrawn(t *testing.T) {
	w := newWorld(t)
	plan, spy := segment.Labels{"function": "plan"}, segment.Labels{"function": "spy"}
	host, operator := w.join("h2", "plan1", plan), w.operator("alice", authority.RoleOperator)

	d, err := host.Declare(t.Context(), declaring(t, plan, "plan2"))
	if err != nil || len(d.Agents) != 1 || len(d.Pending) != 0 {
		t.Fatalf("within the grant: %+v, %v", d, err)
	}
	d, err = host.Declare(t.Context(), declaring(t, spy, "spy1"))
	if err != nil || len(d.Agents) != 0 || !slices.Equal(d.Pending, []string{"spy1"}) {
		t.Fatalf("beyond the grant: %+v, %v", d, err)
	}
	got, err := operator.Agent(t.Context(), "spy1")
	if err != nil || got.State != AgentPending || got.Expires != nil || got.Addresses == nil || len(got.Addresses) != 0 {
		t.Errorf("a pending agent is shown as %+v, %v", got, err)
	}
	_, err = host.SignJWT(t.Context(), authority.JWTRequest{Agent: "spy1", Audience: []string{"db"}})
	wantCode(t, err, authority.CodeDenied)

	_, err = operator.ApproveAgent(t.Context(), "spy1", authority.ApproveRequest{Labels: plan}, 0)
	wantCode(t, err, authority.CodeInvalid)
	_, err = operator.ApproveAgent(t.Context(), "spy1", authority.ApproveRequest{}, 99)
	wantCode(t, err, authority.CodeVersionConflict)
	_, err = w.operator("vic", authority.RoleViewer).ApproveAgent(t.Context(), "spy1", authority.ApproveRequest{}, 0)
	wantCode(t, err, authority.CodeDenied)
	got, err = operator.ApproveAgent(t.Context(), "spy1", authority.ApproveRequest{Host: "h2", Labels: spy}, 1)
	if err != nil || got.State != AgentActive || len(got.Addresses) != 2 {
		t.Errorf("approved: %+v, %v", got, err)
	}
	if d, err = host.Declare(t.Context(), declaring(t, spy, "spy1")); err != nil || len(d.Agents) != 1 {
		t.Errorf("after approval: %+v, %v", d, err)
	}
	token, err := host.SignJWT(t.Context(), authority.JWTRequest{Agent: "spy1", Audience: []string{"db"}})
	if err != nil || strings.Count(token, ".") != 2 {
		t.Errorf("JWT = %q, %v", token, err)
	}

	if err := host.Withdraw(t.Context(), authority.WithdrawRequest{Agents: []string{"spy1", "plan2"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := operator.RevokeAgent(t.Context(), "plan1", "cut"); err != nil {
		t.Fatal(err)
	}
	agents, err := operator.Agents(t.Context())
	if err != nil || len(agents) != 1 || agents[0].Name != "plan1" || agents[0].State != AgentRevoked {
		t.Errorf("left are %+v, %v", agents, err)
	}
	entries, err := operator.Audit(t.Context(), 2)
	if err != nil || entries[0].Action != "withdraw" || !strings.HasPrefix(entries[0].From, "127.0.0.1:") {
		t.Errorf("audited: %+v, %v", entries, err)
	}
}

// What a host asks for its agents, only a host may ask, and no other host may be asked to ask it.
func TestOnlyHostsDeclare(t *testing.T) {
	w := newWorld(t)
	ask := func(c *Client) []error {
		_, declared := c.Declare(t.Context(), declaring(t, nil, "a1"))
		_, signed := c.SignJWT(t.Context(), authority.JWTRequest{Agent: "a1", Audience: []string{"db"}})
		return []error{declared, c.Withdraw(t.Context(), authority.WithdrawRequest{Agents: []string{"a1"}}), signed}
	}
	token := w.token(authority.TokenRequest{Role: authority.RoleAdmin})
	for _, c := range []*Client{w.operator("root", authority.RoleAdmin), w.dial(DialOptions{Credential: &Credential{Token: &token}}), w.onSocket()} {
		for _, err := range ask(c) {
			wantCode(t, err, authority.CodeDenied)
		}
	}
	resp, err := rawClient(t, nil).Post("https://"+w.address+"/v1/declare", "application/json", strings.NewReader("{}"))
	wantStatus(t, resp, err, 401)

	// A host that is not the authority does not pass on what it would say in its own name.
	away := New(Options{Local: w.local, Forward: w.server.Public(), Verify: w.server.options.Verify})
	path := serveSocket(t, away.Socket(socketRoot))
	for _, err := range ask(w.dial(DialOptions{Socket: path})) {
		wantCode(t, err, authority.CodeDenied)
	}
}

// An admin's approval is passed on by a host that is not the authority.
func TestApprovalIsPassedOn(t *testing.T) {
	w := newWorld(t)
	if _, err := w.join("h2", "plan1", segment.Labels{"function": "plan"}).Declare(t.Context(), declaring(t, segment.Labels{"function": "spy"}, "spy1")); err != nil {
		t.Fatal(err)
	}
	control := w.dial(DialOptions{Server: w.address, Mesh: testMesh, Roots: w.authority.Roots(), Certificate: func() *tls.Certificate { return w.cert.Load() }})
	away := New(Options{Local: w.local, Forward: control.Forward(quiet)})
	got, err := w.dial(DialOptions{Socket: serveSocket(t, away.Socket(socketRoot))}).ApproveAgent(t.Context(), "spy1", authority.ApproveRequest{}, 0)
	if err != nil || got.State != AgentActive {
		t.Errorf("approve = %+v, %v", got, err)
	}
}
