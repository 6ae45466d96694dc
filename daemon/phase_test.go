package daemon

import (
	"testing"

	"pgregory.net/rapid"
)

// No phase is ever followed by one that the drawing does not lead to, and a forbidden step changes nothing.
func TestPhasesFollowTheDrawing(t *testing.T) {
	all := []Phase{Starting, Fenced, Ready, Degraded, Draining, Stopped}
	rapid.Check(t, func(t *rapid.T) {
		l := lifecycle{phase: Starting}
		order := map[Phase]int{Starting: 0, Fenced: 1, Ready: 2, Degraded: 2, Draining: 3, Stopped: 4}
		for range 10 {
			before, _ := l.now()
			next := rapid.SampledFrom(all).Draw(t, "next")
			panicked := func() (panicked bool) {
				defer func() { panicked = recover() != nil }()
				l.enter(next, "a test")
				return false
			}()
			after, _ := l.now()
			if panicked && after != before || !panicked && after != next {
				t.Fatalf("from %s to %s: now %s, panicked %t", before, next, after, panicked)
			}
			if order[after] < order[before] || order[after] > order[before]+1 && after != Draining {
				t.Fatalf("%s follows %s", after, before)
			}
		}
	})
}

func TestReasonAloneIsAChange(t *testing.T) {
	l := lifecycle{phase: Ready, reason: "a"}
	if l.enter(Ready, "a") || !l.enter(Ready, "b") || !l.enter(Degraded, "b") {
		t.Error("a change is not told, or nothing is told as one")
	}
}
