package authority_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-mesh/bulkhead/control/authority"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
	"github.com/bulkhead-mesh/bulkhead/overlay/signed"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

const document = `# who may plan
segments:
  - name: planners
    match: {function: plan, sensitivity: internal}
rules:
  - name: planners-talk
    from: planners
    to: planners
    allow: [tcp/443]
`

func (w *world) put(document string) authority.Change {
	w.t.Helper()
	change, err := w.PutPolicy(operator, 0, document)
	if err != nil {
		w.t.Fatal(err)
	}
	return change
}

func TestPutPolicyMakesAVersion(t *testing.T) {
	w := newWorld(t)
	w.join("h2", "a2")
	w.join("h3", "a3")
	var told []uint64
	w.OnPolicy(func(p *signed.VerifiedPolicy) {
		if p != w.Policy() {
			t.Error("the policy that was announced is not the current one")
		}
		told = append(told, p.Version)
	})
	parent := w.Policy()
	change := w.put(document)
	p := w.Policy()
	if change.Version != 2 || p.Version != 2 || p.Document != document || p.Author != operator.Name || p.Succeeds(parent) != nil {
		t.Errorf("change %+v made policy %d by %s", change, p.Version, p.Author)
	}
	if len(change.Difference.Gained) != 2 || len(change.Difference.Lost) != 0 {
		t.Errorf("difference %+v", change.Difference)
	}
	again := w.put(document)
	if !again.Unchanged || again.Version != 2 {
		t.Errorf("the same document again: %+v", again)
	}
	w.put(document + "# more\n")
	if diff := cmp.Diff([]uint64{2, 3}, told); diff != "" {
		t.Error(diff)
	}
	versions, err := w.Versions()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, v := range versions {
		at, err := w.PolicyAt(v.Version)
		if err != nil || fmt.Sprintf("%x", at.Digest) != v.Digest {
			t.Errorf("version %d: %v, digest %s", v.Version, err, v.Digest)
		}
		got = append(got, fmt.Sprintf("%d %s %s", v.Version, v.Author, v.Summary))
	}
	if diff := cmp.Diff([]string{"1 local/init init", "2 operator/alice put policy", "3 operator/alice put policy"}, got); diff != "" {
		t.Error(diff)
	}
	_, err = w.PolicyAt(9)
	wantCode(t, err, authority.CodeNotFound)
}

func TestRefusedPolicies(t *testing.T) {
	w := newWorld(t)
	w.join("h2", "a2")
	w.put(document)
	before := w.dump()
	_, err := w.PutPolicy(operator, 0, "segments: 7\n")
	if refusal := wantCode(t, err, authority.CodePolicyRefused); len(refusal.Problems) == 0 {
		t.Error("a refused policy has no problems")
	}
	_, err = w.PutPolicy(operator, 0, document+"tests:\n  - {from: agent/a2, to: agent/a2, port: tcp/22, expect: allow}\n")
	if refusal := wantCode(t, err, authority.CodeTestsFailed); len(refusal.Tests) != 1 || refusal.Tests[0].Pass {
		t.Errorf("tests %+v", refusal.Tests)
	}
	_, err = w.PutPolicy(operator, 0, strings.Repeat("#", 3<<20))
	wantCode(t, err, authority.CodeInvalid)
	_, err = w.PutPolicy(operator, 1, "sensitivity: [low, high]\n")
	wantCode(t, err, authority.CodeVersionConflict)
	_, err = w.Rollback(operator, 9)
	wantCode(t, err, authority.CodeNotFound)
	_, err = w.DeleteSegment(operator, 0, "planners") // a rule uses it
	wantCode(t, err, authority.CodePolicyRefused)
	_, err = w.DeleteRule(operator, 0, "nothing")
	wantCode(t, err, authority.CodeNotFound)
	_, err = w.CreateSegment(operator, 0, planners(t))
	wantCode(t, err, authority.CodeExists)
	if diff := cmp.Diff(before, w.dump()); diff != "" {
		t.Error(diff)
	}
}

func TestCheckChangesNothing(t *testing.T) {
	w := newWorld(t)
	w.join("h2", "a2")
	w.join("h3", "a3")
	before := w.dump()
	good, err := w.Check(document)
	if err != nil || !good.OK || len(good.Difference.Gained) != 2 || good.Policy == nil || good.Version != 1 {
		t.Errorf("%+v, %v", good, err)
	}
	bad, err := w.Check("segments: 7\n")
	if err != nil || bad.OK || len(bad.Problems) == 0 {
		t.Errorf("%+v, %v", bad, err)
	}
	failing, err := w.Check(document + "tests:\n  - {from: agent/a2, to: agent/a3, port: tcp/443, expect: deny}\n")
	if err != nil || failing.OK || len(failing.Tests) != 1 {
		t.Errorf("%+v, %v", failing, err)
	}
	same, err := w.Check(w.Policy().Document)
	if err != nil || !same.OK || !same.Unchanged {
		t.Errorf("%+v, %v", same, err)
	}
	if diff := cmp.Diff(before, w.dump()); diff != "" {
		t.Error(diff)
	}
}

func TestSegmentsAndRulesOneByOne(t *testing.T) {
	w := newWorld(t)
	want, err := segment.Parse([]byte(document))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.CreateSegment(operator, 1, want.Segments[0]); err != nil {
		t.Fatal(err)
	}
	if _, err := w.CreateRule(operator, 2, want.Rules[0]); err != nil {
		t.Fatal(err)
	}
	got := w.Policy().Parsed
	if len(got.Segments) != 1 || len(got.Rules) != 1 || got.Rules[0].Name != "planners-talk" {
		t.Errorf("policy %+v", got)
	}
	_, err = w.CreateRule(operator, 0, want.Rules[0])
	wantCode(t, err, authority.CodeExists)
	if _, err := w.DeleteRule(operator, 0, "planners-talk"); err != nil {
		t.Fatal(err)
	}
	if change, err := w.DeleteSegment(operator, 4, "planners"); err != nil || change.Version != 5 {
		t.Errorf("%+v, %v", change, err)
	}
	if got := w.Policy().Parsed; len(got.Segments)+len(got.Rules) != 0 {
		t.Errorf("left over: %+v", got)
	}
}

func TestRollbackKeepsRevocations(t *testing.T) {
	w := newWorld(t)
	e := w.join("h2", "a2")
	w.put(document)
	if _, err := w.RevokeAgent(operator, "a2", "stolen"); err != nil {
		t.Fatal(err)
	}
	change, err := w.Rollback(operator, 1)
	if err != nil || change.Version != 4 {
		t.Fatalf("%+v, %v", change, err)
	}
	first, err := w.PolicyAt(1)
	if err != nil || w.Policy().Document != first.Document {
		t.Errorf("rolled back to %q, %v", w.Policy().Document, err)
	}
	if _, err := w.verify(e.Agents[0].Chain, identity.KindAgent); !errors.Is(err, identity.ErrRevoked) {
		t.Errorf("a rollback revived a certificate: %v", err)
	}
}

func TestOfWritersWithOneVersionOneWins(t *testing.T) {
	w := newWorld(t)
	for round := range 5 {
		base := w.Policy().Version
		errs := make([]error, 20)
		var wg sync.WaitGroup
		for i := range errs {
			wg.Go(func() {
				_, errs[i] = w.PutPolicy(operator, base, fmt.Sprintf("%s# round %d writer %d\n", document, round, i))
			})
		}
		wg.Wait()
		won := 0
		for _, err := range errs {
			if err == nil {
				won++
				continue
			}
			wantCode(t, err, authority.CodeVersionConflict)
		}
		if won != 1 || w.Policy().Version != base+1 {
			t.Errorf("%d of 20 writers won, version %d became %d", won, base, w.Policy().Version)
		}
	}
}

func TestRelabelVoidsTheOldLabels(t *testing.T) {
	w := newWorld(t)
	e := w.join("h2", "a2")
	host := w.mustVerify(e.HostChain, identity.KindHost)
	labels := segment.Labels{"function": "plan", "sensitivity": "restricted"}
	change, err := w.Relabel(operator, "a2", labels, 1)
	if err != nil || change.Version != 2 {
		t.Fatalf("%+v, %v", change, err)
	}
	if _, err := w.verify(e.Agents[0].Chain, identity.KindAgent); !errors.Is(err, identity.ErrRevoked) {
		t.Errorf("the certificate with the old labels: %v", err)
	}
	renewed, err := w.Renew(host, w.renewing("h2", "a2")) // in the same instant
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string(labels), map[string]string(w.mustVerify(renewed.Agents[0].Chain, identity.KindAgent).Claims.Labels)); diff != "" {
		t.Error(diff)
	}
	if again, err := w.Relabel(operator, "a2", labels, 0); err != nil || !again.Unchanged {
		t.Errorf("%+v, %v", again, err)
	}
	_, err = w.Relabel(operator, "a2", grant, 1)
	wantCode(t, err, authority.CodeVersionConflict)
	_, err = w.Relabel(operator, "a2", segment.Labels{"sensitivity": "cosmic"}, 0)
	wantCode(t, err, authority.CodeInvalid)
	_, err = w.Relabel(operator, "a9", grant, 0)
	wantCode(t, err, authority.CodeNotFound)
}

// Certificates from a clock that ran ahead, and from the second of the change, are void too.
func TestRevocationCoversEveryClock(t *testing.T) {
	w := newWorld(t)
	e := w.join("h2", "a2")
	host := w.mustVerify(e.HostChain, identity.KindHost)
	w.now = w.now.Add(90 * time.Second) // our clock jumps ahead
	ahead, err := w.Renew(host, w.renewing("h2", "a2"))
	if err != nil {
		t.Fatal(err)
	}
	w.now = w.now.Add(-89 * time.Second) // and back
	if _, err := w.Relabel(operator, "a2", segment.Labels{"function": "other"}, 0); err != nil {
		t.Fatal(err)
	}
	for _, chain := range [][][]byte{e.Agents[0].Chain, ahead.Agents[0].Chain} {
		if _, err := w.verify(chain, identity.KindAgent); !errors.Is(err, identity.ErrRevoked) {
			t.Errorf("a certificate from before the change: %v", err)
		}
	}
	renewed, err := w.Renew(host, w.renewing("h2", "a2"))
	if err != nil {
		t.Fatal(err)
	}
	w.mustVerify(renewed.Agents[0].Chain, identity.KindAgent)
}

func TestRevocationsArePrunedOnceTheirCertificatesExpired(t *testing.T) {
	w := newWorld(t)
	w.join("h2", "a1", "a2", "a3")
	revoke := func(agent string) int {
		t.Helper()
		if _, err := w.RevokeAgent(operator, agent, ""); err != nil {
			t.Fatal(err)
		}
		return len(w.Policy().Revocations)
	}
	if n := revoke("a1"); n != 1 {
		t.Errorf("%d revocations", n)
	}
	w.now = w.now.Add(25 * time.Hour) // expired, but some clock may be behind
	if n := revoke("a2"); n != 2 {
		t.Errorf("%d revocations after a day", n)
	}
	w.now = w.now.Add(25 * time.Hour)
	if n := revoke("a3"); n != 2 {
		t.Errorf("%d revocations after two days", n)
	}
}

func TestOperators(t *testing.T) {
	w := newWorld(t)
	key, err := identity.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	chain, err := w.IssueOperator(admin, "alice", authority.RoleOperator, key.Public(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	c := w.mustVerify(chain, identity.KindOperator)
	if c.Name != "alice" || c.Claims.Role != "operator" {
		t.Errorf("%+v", c)
	}
	if _, err := w.RevokeOperator(admin, "alice", "left"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.verify(chain, identity.KindOperator); !errors.Is(err, identity.ErrRevoked) {
		t.Errorf("a revoked operator: %v", err)
	}
	again, err := w.IssueOperator(admin, "alice", authority.RoleViewer, key.Public(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	w.mustVerify(again, identity.KindOperator)
	operators, err := w.Operators()
	if err != nil || len(operators) != 1 || operators[0].Role != authority.RoleViewer || operators[0].Revoked != nil {
		t.Errorf("operators %+v, %v", operators, err)
	}
	for name, issue := range map[string]func() error{
		"name": func() error {
			_, err := w.IssueOperator(admin, "A/b", authority.RoleViewer, key.Public(), time.Hour)
			return err
		},
		"role": func() error { _, err := w.IssueOperator(admin, "bob", "root", key.Public(), time.Hour); return err },
		"key": func() error {
			_, err := w.IssueOperator(admin, "bob", authority.RoleViewer, nil, time.Hour)
			return err
		},
		"life": func() error {
			_, err := w.IssueOperator(admin, "bob", authority.RoleViewer, key.Public(), 1000*24*time.Hour)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) { wantCode(t, issue(), authority.CodeInvalid) })
	}
	_, err = w.RevokeOperator(admin, "nobody", "")
	wantCode(t, err, authority.CodeNotFound)
}
