package authority_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/bulkhead-mesh/bulkhead/control/authority"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
	"github.com/bulkhead-mesh/bulkhead/overlay/signed"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

var errCrash = errors.New("disk gone")

// Random changes on a store that fails before or after it commits, with restarts between: versions and
// audit lines are never lost, repeated or forked, and what was acknowledged is there.
func TestCrashesNeverLoseOrRepeatAVersion(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		w := newWorld(t)
		hosts := [2]*identity.Certificate{w.mustVerify(w.join("h2", "a0", "a1", "a2", "a3").HostChain, identity.KindHost), w.host("h3")}
		history := map[uint64]string{1: w.Policy().Document}
		told := uint64(1)
		listen := func() {
			w.OnPolicy(func(p *signed.VerifiedPolicy) {
				if p.Version != told+1 {
					r.Fatalf("announced version %d after %d", p.Version, told)
				}
				told = p.Version
			})
		}
		listen()
		for i := range rapid.IntRange(1, 12).Draw(r, "steps") {
			w.now = w.now.Add(time.Duration(rapid.IntRange(0, 5000).Draw(r, "ms")) * time.Millisecond)
			fail := rapid.SampledFrom([]string{"", "", "before", "after"}).Draw(r, "failure")
			w.store.OnCommit = func() (bool, error) {
				switch fail {
				case "before":
					return false, errCrash
				case "after":
					return true, errCrash
				}
				return true, nil
			}
			before := w.Policy().Version
			version, err := randomChange(r, w, hosts, i)
			w.store.OnCommit = nil
			after := w.Policy()
			if fail == "before" && after.Version != before || after.Version > before+1 || after.Version < before {
				r.Fatalf("version %d became %d though the store failed %s its commit", before, after.Version, fail)
			}
			if err == nil && version != after.Version {
				r.Fatalf("acknowledged version %d, current is %d", version, after.Version)
			}
			if document, known := history[after.Version]; known && document != after.Document {
				r.Fatalf("version %d has two documents", after.Version)
			}
			history[after.Version] = after.Document
			if rapid.IntRange(0, 4).Draw(r, "restart") == 0 {
				w.reopen()
				listen()
				told = w.Policy().Version
			}
		}
		checkHistory(r, w, history)
		w.sameAudit()
		if err := w.Close(); err != nil {
			r.Fatal(err)
		}
		w.open()
	})
}

// randomChange returns the version that was acknowledged.
func randomChange(r *rapid.T, w *world, hosts [2]*identity.Certificate, i int) (uint64, error) {
	agent := fmt.Sprintf("a%d", rapid.IntRange(0, 3).Draw(r, "agent"))
	var change authority.Change
	var err error
	switch rapid.IntRange(0, 6).Draw(r, "change") {
	case 0:
		change, err = w.PutPolicy(operator, 0, fmt.Sprintf("%s# %d\n", document, i))
	case 1:
		change, err = w.Rollback(operator, rapid.Uint64Range(1, w.Policy().Version).Draw(r, "version"))
	case 2:
		change, err = w.Relabel(operator, agent, segment.Labels{"function": fmt.Sprintf("f%d", rapid.IntRange(0, 1).Draw(r, "function"))}, 0)
	case 3:
		change, err = w.RevokeAgent(operator, agent, "test")
	case 4:
		_, err = w.CreateToken(operator, authority.TokenRequest{})
		change.Version = w.Policy().Version
	case 5: // a name that moves from host to host makes a version, too
		err = w.Withdraw(hosts[0], authority.WithdrawRequest{Agents: []string{agent}})
		change.Version = w.Policy().Version
	case 6:
		_, err = w.Declare(hosts[1], declaring(w.t, grant, agent))
		change.Version = w.Policy().Version
	}
	return change.Version, err
}

// checkHistory fails unless the stored versions are one unbroken line of what was seen.
func checkHistory(r *rapid.T, w *world, history map[uint64]string) {
	var last *signed.VerifiedPolicy
	for v := uint64(1); v <= w.Policy().Version; v++ {
		p, err := w.PolicyAt(v)
		if err != nil {
			r.Fatal(err)
		}
		if document, seen := history[v]; !seen || document != p.Document {
			r.Fatalf("version %d was not seen when it was made", v)
		}
		if last != nil {
			if err := p.Succeeds(last); err != nil {
				r.Fatalf("version %d: %v", v, err)
			}
		}
		last = p
	}
	versions, err := w.Versions()
	if err != nil || uint64(len(versions)) != w.Policy().Version {
		r.Fatalf("%d versions are listed, %v", len(versions), err)
	}
	made := map[uint64]bool{}
	for _, e := range w.fileEntries() {
		if e.Version != 0 && made[e.Version] {
			r.Fatalf("version %d has two audit lines", e.Version)
		}
		made[e.Version] = true
	}
	for v := range history {
		if !made[v] {
			r.Fatalf("version %d has no audit line", v)
		}
	}
}
