package authority_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-mesh/bulkhead/control/authority"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

var beyond = segment.Labels{"function": "plan", "sensitivity": "restricted"} // what grant does not have

func declaring(t testing.TB, labels segment.Labels, agents ...string) authority.DeclareRequest {
	t.Helper()
	r := authority.DeclareRequest{From: "192.0.2.9:5"}
	for _, name := range agents {
		r.Agents = append(r.Agents, authority.AgentRequest{Name: name, Labels: labels, CSR: csr(t, identity.KindAgent, name)})
	}
	return r
}

// host enrols a host without agents, and gives its certificate.
func (w *world) host(name string) *identity.Certificate {
	w.t.Helper()
	return w.mustVerify(w.join(name).HostChain, identity.KindHost)
}

func (w *world) declare(host *identity.Certificate, labels segment.Labels, agents ...string) *authority.Declared {
	w.t.Helper()
	d, err := w.Declare(host, declaring(w.t, labels, agents...))
	if err != nil {
		w.t.Fatal(err)
	}
	return d
}

// declareActive declares an agent that needs no approval, and gives its certificate.
func (w *world) declareActive(host *identity.Certificate, name string) *identity.Certificate {
	w.t.Helper()
	d := w.declare(host, grant, name)
	if len(d.Agents) != 1 || len(d.Pending) != 0 {
		w.t.Fatalf("declared %s: %+v", name, d)
	}
	return w.mustVerify(d.Agents[0].Chain, identity.KindAgent)
}

func (w *world) withdraw(host *identity.Certificate, agents ...string) {
	w.t.Helper()
	if err := w.Withdraw(host, authority.WithdrawRequest{Agents: agents, From: "192.0.2.9:5"}); err != nil {
		w.t.Fatal(err)
	}
}

// states are the agents in the registry, in short.
func (w *world) states() []string {
	w.t.Helper()
	infos, err := w.Agents()
	if err != nil {
		w.t.Fatal(err)
	}
	var all []string
	for _, i := range infos {
		state := "active"
		switch {
		case i.Revoked != nil:
			state = "revoked"
		case i.Pending:
			state = "pending"
		}
		all = append(all, i.Name+" "+i.Host+" "+state)
	}
	return all
}

func (w *world) wantStates(want ...string) {
	w.t.Helper()
	if diff := cmp.Diff(want, w.states()); diff != "" {
		w.t.Error(diff)
	}
}

func TestAgentsWithinTheGrantAreActiveAtOnce(t *testing.T) {
	w := newWorld(t)
	h2 := w.host("h2")
	cert := w.declareActive(h2, "a1")
	if cert.Name != "a1" || cert.Claims.Host != "h2" || !cmp.Equal(cert.Claims.Labels, map[string]string(grant)) || len(cert.Addresses) != 2 {
		t.Errorf("certificate of a1: %+v", cert)
	}
	plain := w.declare(h2, nil, "a2") // an agent that claims nothing is within any grant
	if len(plain.Agents) != 1 {
		t.Errorf("an agent without labels: %+v", plain)
	}
	w.wantStates("a1 h2 active", "a2 h2 active")
	if w.Policy().Version != 1 {
		t.Errorf("declaring made policy version %d", w.Policy().Version)
	}
	want := []string{"host/h2 192.0.2.9:5 declare agent/a1 done", "host/h2 192.0.2.9:5 declare agent/a2 done"}
	if diff := cmp.Diff(want, w.audited(2)); diff != "" {
		t.Error(diff)
	}
	again := w.declareActive(h2, "a1")
	if fmt.Sprint(again.Addresses) != fmt.Sprint(cert.Addresses) || again.PublicKey.Equal(cert.PublicKey) {
		t.Errorf("declared again: %+v", again)
	}
}

func TestTheFounderMayClaimAnything(t *testing.T) {
	w := newWorld(t)
	e, err := w.EnrollLocal("h1", csr(t, identity.KindHost, "h1"), wireguard("h1"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if d := w.declare(w.mustVerify(e.HostChain, identity.KindHost), beyond, "a1"); len(d.Agents) != 1 {
		t.Errorf("declared: %+v", d)
	}
}

func TestAgentsBeyondTheGrantWaitForAnOperator(t *testing.T) {
	w := newWorld(t)
	h2 := w.host("h2")
	d := w.declare(h2, beyond, "a1")
	if len(d.Agents) != 0 || !slices.Equal(d.Pending, []string{"a1"}) {
		t.Fatalf("declared: %+v", d)
	}
	w.wantStates("a1 h2 pending")
	if agents, err := w.PolicyAgents(); err != nil || len(agents) != 0 {
		t.Errorf("policy is about %v, %v", agents, err)
	}
	infos, err := w.Agents()
	if err != nil || len(infos[0].Addresses) != 0 || !infos[0].Expires.IsZero() {
		t.Errorf("a pending agent has %+v, %v", infos, err)
	}
	if hosts, err := w.Hosts(); err != nil || len(hosts[0].Agents) != 0 {
		t.Errorf("hosts carry %+v, %v", hosts, err)
	}
	if renewed, err := w.Renew(h2, w.renewing("h2", "a1")); err != nil || len(renewed.Agents) != 0 {
		t.Errorf("a pending agent was certified by renewal: %+v, %v", renewed, err)
	}
	if _, err := w.SignJWT(h2, authority.JWTRequest{Agent: "a1", Audience: []string{"x"}}); err == nil {
		t.Error("a pending agent got a JWT")
	}

	// Asking again and again costs nothing.
	before, lines := w.dump(), w.audited(1000)
	for range 3 {
		if d := w.declare(h2, beyond, "a1"); !slices.Equal(d.Pending, []string{"a1"}) {
			t.Fatalf("asked again: %+v", d)
		}
	}
	if diff := cmp.Diff(before, w.dump()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(lines, w.audited(1000)); diff != "" {
		t.Error(diff)
	}

	info, err := w.Approve(operator, "a1", authority.ApproveRequest{Host: "h2", Labels: beyond}, 1)
	if err != nil || info.Pending || len(info.Addresses) != 2 {
		t.Fatalf("approve: %+v, %v", info, err)
	}
	w.wantStates("a1 h2 active")
	d = w.declare(h2, beyond, "a1")
	if len(d.Agents) != 1 {
		t.Fatalf("declared after approval: %+v", d)
	}
	if cert := w.mustVerify(d.Agents[0].Chain, identity.KindAgent); cert.Claims.Labels["sensitivity"] != "restricted" || !slices.Equal(cert.Addresses, info.Addresses) {
		t.Errorf("certificate: %+v", cert)
	}
	if again, err := w.Approve(operator, "a1", authority.ApproveRequest{}, 0); err != nil || !slices.Equal(again.Addresses, info.Addresses) {
		t.Errorf("approved again: %+v, %v", again, err)
	}
}

// What is approved is what the operator looked at.
func TestApprovalIsOfWhatWasSeen(t *testing.T) {
	w := newWorld(t)
	h2 := w.host("h2")
	w.declare(h2, beyond, "a1")
	before := w.dump()
	for name, test := range map[string]struct {
		agent   string
		r       authority.ApproveRequest
		ifMatch uint64
		code    authority.Code
	}{
		"unknown":      {"nobody", authority.ApproveRequest{}, 0, authority.CodeNotFound},
		"other host":   {"a1", authority.ApproveRequest{Host: "h3"}, 0, authority.CodeInvalid},
		"other labels": {"a1", authority.ApproveRequest{Labels: grant}, 0, authority.CodeInvalid},
		"no labels":    {"a1", authority.ApproveRequest{Labels: segment.Labels{}}, 0, authority.CodeInvalid},
		"other policy": {"a1", authority.ApproveRequest{}, 7, authority.CodeVersionConflict},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := w.Approve(operator, test.agent, test.r, test.ifMatch)
			wantCode(t, err, test.code)
		})
	}
	if diff := cmp.Diff(before, w.dump()); diff != "" {
		t.Error(diff)
	}
	w.withdraw(h2, "a1")
	_, err := w.Approve(operator, "a1", authority.ApproveRequest{}, 0)
	wantCode(t, err, authority.CodeNotFound)
}

func TestRefusedDeclarations(t *testing.T) {
	w := newWorld(t)
	h2, h3 := w.host("h2"), w.host("h3")
	w.declareActive(h2, "a1")
	w.declare(h2, beyond, "a2")
	stranger := *h2
	stranger.Mesh = "other.test"
	unknown := *h2
	unknown.Name = "h9"
	forged := declaring(t, grant, "a5")
	forged.Agents[0].Name = "a6"
	unknownLevel := segment.Labels{"sensitivity": "cosmic"}
	before := w.dump()
	for name, test := range map[string]struct {
		host *identity.Certificate
		r    authority.DeclareRequest
		code authority.Code
	}{
		"another host's":     {h3, declaring(t, grant, "a1"), authority.CodeNameTaken},
		"another's, pending": {h3, declaring(t, grant, "a2"), authority.CodeNameTaken},
		"other labels":       {h2, declaring(t, nil, "a1"), authority.CodeExists},
		"beyond, now":        {h2, declaring(t, beyond, "a1"), authority.CodeExists},
		"pending, other":     {h2, declaring(t, grant, "a2"), authority.CodeExists},
		"twice":              {h2, declaring(t, grant, "a5", "a5"), authority.CodeInvalid},
		"bad name":           {h2, authority.DeclareRequest{Agents: []authority.AgentRequest{{Name: "A 5"}}}, authority.CodeInvalid},
		"other CSR":          {h2, forged, authority.CodeInvalid},
		"no such level":      {h2, declaring(t, unknownLevel, "a5"), authority.CodeInvalid},
		"of another mesh":    {&stranger, declaring(t, grant, "a5"), authority.CodeDenied},
		"no host of ours":    {&unknown, declaring(t, grant, "a5"), authority.CodeNotFound},
		"one of two":         {h2, declaring(t, nil, "a5", "a1"), authority.CodeExists},
	} {
		t.Run(name, func(t *testing.T) {
			w.now = w.now.Add(time.Minute)
			_, err := w.Declare(test.host, test.r)
			refusal := wantCode(t, err, test.code)
			if name == "other labels" && !strings.Contains(refusal.Fix, "bulkhead agent relabel") {
				t.Errorf("fix: %s", refusal.Fix)
			}
			if last := w.audited(1)[0]; !strings.HasPrefix(last, "host/"+test.host.Name) || !strings.HasSuffix(last, test.code) {
				t.Errorf("audited: %s", last)
			}
		})
	}
	if diff := cmp.Diff(before, w.dump()); diff != "" {
		t.Error(diff)
	}
}

func TestAHostHasAtMost64Agents(t *testing.T) {
	w := newWorld(t)
	h2 := w.host("h2")
	var names []string
	for i := range 63 {
		names = append(names, fmt.Sprintf("a%d", i))
	}
	w.declare(h2, grant, names[:40]...)
	w.declare(h2, beyond, names[40:]...)
	w.declare(h2, grant, names[:40]...) // those that it has count once
	w.declare(h2, grant, "last")
	_, err := w.Declare(h2, declaring(t, grant, "more"))
	wantCode(t, err, authority.CodeInvalid)
	w.withdraw(h2, "a50")
	w.declare(h2, grant, "more")
	w.declare(w.host("h3"), grant, "elsewhere")
}

// What an operator revoked comes back when an operator says so, not when its host does.
func TestARevokedAgentDoesNotDeclareItselfBack(t *testing.T) {
	w := newWorld(t)
	h2 := w.host("h2")
	old := w.declare(h2, grant, "a1")
	if _, err := w.RevokeAgent(operator, "a1", "prompt injection"); err != nil {
		t.Fatal(err)
	}
	_, err := w.Declare(h2, declaring(t, grant, "a1"))
	wantCode(t, err, authority.CodeRevoked)
	w.withdraw(h2, "a1")
	_, err = w.Declare(h2, declaring(t, grant, "a1"))
	wantCode(t, err, authority.CodeRevoked)
	w.wantStates("a1 h2 revoked")

	if _, err := w.Approve(operator, "a1", authority.ApproveRequest{Labels: grant}, 0); err != nil {
		t.Fatal(err)
	}
	w.declareActive(h2, "a1")
	if _, err := w.verify(old.Agents[0].Chain, identity.KindAgent); err == nil {
		t.Error("the old certificate came back with the agent")
	}

	// One that waits is turned down the same way, and does not ask again.
	w.declare(h2, beyond, "a2")
	if _, err := w.RevokeAgent(operator, "a2", "no"); err != nil {
		t.Fatal(err)
	}
	_, err = w.Declare(h2, declaring(t, beyond, "a2"))
	wantCode(t, err, authority.CodeRevoked)
	if _, err := w.RevokeHost(admin, "h2", ""); err != nil {
		t.Fatal(err)
	}
	_, err = w.Approve(operator, "a2", authority.ApproveRequest{}, 0)
	wantCode(t, err, authority.CodeRevoked)
}

func TestRevokedHostsDeclareAndWithdrawNothing(t *testing.T) {
	w := newWorld(t)
	h2 := w.host("h2")
	w.declareActive(h2, "a1")
	w.declare(h2, beyond, "a2")
	w.withdraw(h2, "nobody")
	if _, err := w.RevokeHost(admin, "h2", "stolen"); err != nil {
		t.Fatal(err)
	}
	w.wantStates("a1 h2 revoked", "a2 h2 revoked")
	_, err := w.Declare(h2, declaring(t, grant, "a3"))
	wantCode(t, err, authority.CodeRevoked)
	_, err = w.Declare(h2, declaring(t, beyond, "a2"))
	wantCode(t, err, authority.CodeRevoked)
	wantCode(t, w.Withdraw(h2, authority.WithdrawRequest{Agents: []string{"a1"}}), authority.CodeRevoked)
	_, err = w.SignJWT(h2, authority.JWTRequest{Agent: "a1", Audience: []string{"x"}})
	wantCode(t, err, authority.CodeRevoked)
}

func TestNobodyGetsTheResolversAddress(t *testing.T) {
	w := newWorldIn(t, netip.MustParsePrefix("10.9.9.0/24"))
	for i := range 3 {
		h := w.host(fmt.Sprintf("h%d", i+2))
		var names []string
		for j := range 60 {
			names = append(names, fmt.Sprintf("a%d-%d", i, j))
		}
		for _, d := range w.declare(h, grant, names...).Agents {
			if a := w.mustVerify(d.Chain, identity.KindAgent).Addresses; a[0].As4()[3] == 53 || a[1].As16()[15] == 53 {
				t.Fatalf("%s has %v", d.Name, a)
			}
		}
	}
}

// Hosts that declare one name at once: one gets it.
func TestOfHostsThatDeclareANameOneGetsIt(t *testing.T) {
	w := newWorld(t)
	var mu sync.Mutex
	got := 0
	var all sync.WaitGroup
	for i := range 4 {
		h, r := w.host(fmt.Sprintf("h%d", i+2)), declaring(t, grant, "a1")
		all.Go(func() {
			if d, err := w.Declare(h, r); err == nil && len(d.Agents) == 1 {
				mu.Lock()
				got++
				mu.Unlock()
			}
		})
	}
	all.Wait()
	if got != 1 || len(w.states()) != 1 {
		t.Errorf("%d hosts got the name: %v", got, w.states())
	}
}

func TestGrantsAndPendingAgentsSurviveARestartAndABackup(t *testing.T) {
	w := newWorld(t)
	h2 := w.host("h2")
	w.declare(h2, beyond, "a1")
	backup := w.store.Clone()
	w.reopen()
	w.declareActive(h2, "a2")
	w.withdraw(h2, "a2")
	w.declareActive(w.host("h3"), "a2") // voids what h2 had
	held := w.Policy()
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	w.store, w.auditAt = backup, w.auditAt+".restored"
	w.open()
	if err := w.Recover(held); err != nil {
		t.Fatal(err)
	}
	w.wantStates("a1 h2 pending")
	if p := w.Policy(); len(p.Revocations) != 1 || len(p.JWTKeys) != 1 {
		t.Errorf("recovered policy has revocations %v and keys %v", p.Revocations, p.JWTKeys)
	}
	w.declareActive(h2, "a2")
}
