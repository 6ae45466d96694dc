package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bulkhead-mesh/bulkhead/control/authority"
)

// otherPolicy differs from openPolicy in every set: it lets the other side begin.
const otherPolicy = `
segments:
  - name: planners
    match: {function: plan}
  - name: stores
    match: {function: store}
rules:
  - {name: store-to-plan, from: stores, to: planners, allow: [tcp/22, udp/7000-7010, icmp], crosses: "a test"}
`

// TestKilledAtAnyMoment kills a host's daemon while policies alternate: its kernel then holds the one or the other,
// whole, and the next daemon goes on from there.
func TestKilledAtAnyMoment(t *testing.T) {
	m := newTestMesh(t, Spec{}, Spec{Agent: "plan1", Labels: labels("plan", "internal")}, Spec{Agent: "store1", Labels: labels("store", "internal")})
	store := m.node("h3")
	state := func() string { return netfilterState(t, store.Host) }
	var whole []string
	for _, document := range []string{openPolicy, otherPolicy} {
		if err := m.Apply(t.Context(), document); err != nil {
			t.Fatal(err)
		}
		whole = append(whole, state())
	}
	if whole[0] == whole[1] {
		t.Fatal("both policies have the same rules")
	}
	stop := rotate(t, m, []string{openPolicy, otherPolicy})
	kills, random := 12, seeded(t)
	if soaking {
		kills = 50
	}
	for i := range kills {
		<-time.After(time.Duration(random.IntN(400)) * time.Millisecond) // the moment is what is tried
		if err := store.Daemon.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := becomes(t, state, whole...); err != nil { // a child that has begun a change ends it
			t.Fatalf("kill %d: %v", i, err)
		}
		if err := store.StartDaemon(); err != nil {
			t.Fatal(err)
		}
		if i%3 == 0 { // else the next kill comes while it starts
			if err := store.Ready(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	stop()
	if err := store.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := m.Settled(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := m.Apply(t.Context(), otherPolicy); err != nil {
		t.Fatal(err)
	}
	if err := becomes(t, state, whole[1]); err != nil {
		t.Error(err)
	}
}

// TestControlKilledWhileItSigns kills the control host's daemon during changes: each is made or not, versions have no
// gap and no fork, and what was answered stays.
func TestControlKilledWhileItSigns(t *testing.T) {
	m := newTestMesh(t, Spec{}, Spec{Agent: "plan1", Labels: labels("plan", "internal")})
	control := m.Hosts[0]
	kills, random := 5, seeded(t)
	if soaking {
		kills = 50
	}
	answered, asked := 0, 0
	for range kills {
		ctx, cancel := context.WithCancel(t.Context())
		var changing sync.WaitGroup
		changing.Go(func() {
			for ctx.Err() == nil {
				asked++ // each time another policy: equal ones make no version
				if m.Submit(ctx, strings.ReplaceAll(openPolicy, "plan-to-store", fmt.Sprint("change-", asked))) != nil {
					return // it was killed
				}
				answered++
			}
		})
		<-time.After(time.Duration(50+random.IntN(300)) * time.Millisecond) // the moment is what is tried
		if err := control.Daemon.Kill(); err != nil {
			t.Fatal(err)
		}
		cancel()
		changing.Wait()
		if err := control.StartDaemon(); err != nil {
			t.Fatal(err)
		}
		if err := control.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	out, err := control.Run(t.Context(), "policy", "versions", "-o", "json")
	if err != nil {
		t.Fatal(err)
	}
	var versions []authority.VersionInfo
	if err := json.Unmarshal(out, &versions); err != nil {
		t.Fatal(err)
	}
	seen := map[uint64]bool{}
	for _, v := range versions {
		if seen[v.Version] {
			t.Errorf("version %d is there twice", v.Version)
		}
		seen[v.Version] = true
	}
	for v := uint64(1); v <= uint64(len(versions)); v++ {
		if !seen[v] {
			t.Errorf("version %d is missing of %d", v, len(versions))
		}
	}
	if len(versions) < 1+answered || len(versions) > 1+answered+kills {
		t.Errorf("%d versions after %d answers and %d kills", len(versions), answered, kills)
	}
	t.Logf("%d changes answered, %d versions", answered, len(versions))
	if err := Eventually(t.Context(), patient, func() error {
		s, err := m.Hosts[1].Status(t.Context())
		if err == nil && s.PolicyVersion != uint64(len(versions)) {
			err = fmt.Errorf("h2 enforces version %d of %d", s.PolicyVersion, len(versions))
		}
		return err
	}); err != nil {
		t.Error(err)
	}
}
