package daemon

import (
	"fmt"
	"slices"
	"sync"
)

// Phase is where a daemon is in its life.
//
//	starting → fenced → ready ⇄ degraded
//	    └────────┴────────┴──────┴─────→ draining → stopped
type Phase string

// The phases of a daemon.
const (
	Starting Phase = "starting" // nothing is done yet
	Fenced   Phase = "fenced"   // deny is in the kernel
	Ready    Phase = "ready"    // the newest policy is enforced
	Degraded Phase = "degraded" // the last good policy is enforced; the reason says what is wrong
	Draining Phase = "draining" // on the way down
	Stopped  Phase = "stopped"
)

var phaseSteps = map[Phase][]Phase{
	Starting: {Fenced, Draining},
	Fenced:   {Ready, Degraded, Draining},
	Ready:    {Degraded, Draining},
	Degraded: {Ready, Draining},
	Draining: {Stopped},
}

// lifecycle holds the phase. It is safe for concurrent use.
type lifecycle struct {
	mu     sync.Mutex
	phase  Phase
	reason string
}

// enter makes p the phase and reports whether it or its reason changed. A step that the drawing does not
// have is a fault of the daemon's code.
func (l *lifecycle) enter(p Phase, reason string) (changed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if p != l.phase && !slices.Contains(phaseSteps[l.phase], p) {
		panic(fmt.Sprintf("daemon: internal error: phase %s cannot follow %s", p, l.phase))
	}
	changed = p != l.phase || reason != l.reason
	l.phase, l.reason = p, reason
	return changed
}

func (l *lifecycle) now() (Phase, string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.phase, l.reason
}
