package authority_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-mesh/bulkhead/control/authority"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
)

func TestWithdrawnAgentsAreForgottenByPolicyAndRenewal(t *testing.T) {
	w := newWorld(t)
	h2, h3 := w.host("h2"), w.host("h3")
	w.declareActive(h2, "a1")
	w.declareActive(h3, "a2")
	w.declare(h2, beyond, "a3")
	w.withdraw(h2, "a1", "a2", "a3", "nobody")
	w.withdraw(h2, "a1") // again is no error
	w.wantStates("a2 h3 active")
	want := []string{"host/h2 192.0.2.9:5 withdraw agent/a1 done", "host/h2 192.0.2.9:5 withdraw agent/a3 done"}
	if diff := cmp.Diff(want, w.audited(2)); diff != "" {
		t.Error(diff)
	}
	if agents, err := w.PolicyAgents(); err != nil || len(agents) != 1 {
		t.Errorf("policy is about %v, %v", agents, err)
	}
	if renewed, err := w.Renew(h2, w.renewing("h2", "a1")); err != nil || len(renewed.Agents) != 0 {
		t.Errorf("a withdrawn agent was certified by renewal: %+v, %v", renewed, err)
	}
	_, err := w.Relabel(operator, "a1", grant, 0)
	wantCode(t, err, authority.CodeNotFound)
	if w.Policy().Version != 1 {
		t.Errorf("withdrawing made policy version %d", w.Policy().Version)
	}
}

// An agent that comes and goes, as with a container, is the same agent.
func TestAnAgentComesBackAsItWent(t *testing.T) {
	w := newWorld(t)
	h2 := w.host("h2")
	first := w.declareActive(h2, "a1")
	for range 3 {
		w.withdraw(h2, "a1")
		if again := w.declareActive(h2, "a1"); !slices.Equal(again.Addresses, first.Addresses) {
			t.Errorf("a1 came back with %v, had %v", again.Addresses, first.Addresses)
		}
	}
	if w.Policy().Version != 1 {
		t.Errorf("coming and going made policy version %d", w.Policy().Version)
	}
	// An operator may cut even what its host says is gone: its certificate is not.
	chain := w.declare(h2, grant, "a1").Agents[0].Chain
	w.withdraw(h2, "a1")
	if _, err := w.RevokeAgent(operator, "a1", "lies"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.verify(chain, identity.KindAgent); err == nil {
		t.Error("a withdrawn agent cannot be revoked")
	}
}

// An approval is of an agent that is there: it ends with the agent, and so does what was certified by it.
func TestAnApprovalEndsWithTheAgent(t *testing.T) {
	w := newWorld(t)
	h2 := w.host("h2")
	w.declare(h2, beyond, "a1")
	if _, err := w.Approve(operator, "a1", authority.ApproveRequest{}, 0); err != nil {
		t.Fatal(err)
	}
	chain := w.declare(h2, beyond, "a1").Agents[0].Chain
	w.withdraw(h2, "a1")
	if d := w.declare(h2, beyond, "a1"); !slices.Equal(d.Pending, []string{"a1"}) {
		t.Errorf("declared again: %+v", d)
	}
	if _, err := w.verify(chain, identity.KindAgent); err == nil {
		t.Error("a pending agent has a certificate that is believed")
	}
}

// Whoever takes a name that was given up gets it alone: what the one before was certified is void.
func TestANameIsOneAgentsAtATime(t *testing.T) {
	for name, take := range map[string]func(w *world, h2, h3 *identity.Certificate) string{
		"declared on another host": func(w *world, _, h3 *identity.Certificate) string {
			w.declareActive(h3, "a1")
			return "a1 h3 active"
		},
		"enrolled with another host": func(w *world, _, _ *identity.Certificate) string {
			w.join("h4", "a1")
			return "a1 h4 active"
		},
		"with other labels": func(w *world, h2, _ *identity.Certificate) string {
			w.declare(h2, nil, "a1")
			return "a1 h2 active"
		},
		"beyond the grant": func(w *world, h2, _ *identity.Certificate) string {
			w.declare(h2, beyond, "a1")
			return "a1 h2 pending"
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			h2, h3 := w.host("h2"), w.host("h3")
			old := w.declare(h2, grant, "a1").Agents[0].Chain
			before := w.mustVerify(old, identity.KindAgent)
			w.withdraw(h2, "a1")
			w.now = w.now.Add(time.Minute)
			w.wantFirst(take(w, h2, h3))
			if _, err := w.verify(old, identity.KindAgent); err == nil {
				t.Error("two certificates of one name are good")
			}
			agents, err := w.PolicyAgents()
			if err != nil || len(agents) > 0 && slices.Equal(agents[0].Addresses, before.Addresses) {
				t.Errorf("it took over %v, %v", agents, err)
			}
			if p := w.Policy(); p.Version != 2 || len(p.Revocations) != 1 || p.Revocations[0].ID != "agent/a1" {
				t.Errorf("policy %d revokes %v", p.Version, p.Revocations)
			}
		})
	}
}

// wantFirst is wantStates of the first agent alone.
func (w *world) wantFirst(want string) {
	w.t.Helper()
	if got := w.states()[0]; got != want {
		w.t.Errorf("registry says %s, want %s", got, want)
	}
}

func TestWithdrawnAgentsAreForgottenAfterTheirCertificates(t *testing.T) {
	w := newWorld(t)
	e := w.join("h2")
	h2 := w.mustVerify(e.HostChain, identity.KindHost)
	first := w.declareActive(h2, "a1")
	w.withdraw(h2, "a1")
	w.now = w.now.Add(25 * time.Hour)
	if again := w.declareActive(h2, "a1"); slices.Equal(again.Addresses, first.Addresses) || w.Policy().Version != 1 {
		t.Errorf("a day later it came back with %v, policy %d", again.Addresses, w.Policy().Version)
	}
	w.withdraw(h2, "a1")
	w.now = w.now.Add(72 * time.Hour)
	w.declare(h2, beyond, "a2")
	for key := range w.dump() {
		if key == "authority-agents/a1" {
			t.Error("a1 is not forgotten")
		}
	}
}

// A host cannot fill the registry by giving agents up.
func TestGivenUpAgentsAreBounded(t *testing.T) {
	w := newWorld(t)
	h2 := w.host("h2")
	var err error
	names := 0
	for batch := 0; err == nil && names < 2000; batch++ {
		var fresh []string
		for i := range 64 {
			fresh = append(fresh, fmt.Sprintf("a%d-%d", batch, i))
		}
		if _, err = w.Declare(h2, declaring(t, grant, fresh...)); err == nil {
			names += len(fresh)
			w.withdraw(h2, fresh...)
		}
	}
	wantCode(t, err, authority.CodeExhausted)
	if names < 1024 || names > 1200 {
		t.Errorf("%d names were taken", names)
	}
	w.declare(w.host("h3"), grant, "elsewhere")
	w.now = w.now.Add(72 * time.Hour)
	w.declare(h2, grant, "later")
}
