package bind

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-mesh/bulkhead/overlay"
)

// maxLessons is how many destinations an agent may have by name at once; those that end first go.
const maxLessons = 4096

// lessons are the destinations of an agent that DNS answers opened.
type lessons struct {
	known []overlay.EgressAllow
}

// add takes what is new, or lasts longer than before.
func (l *lessons) add(allow []overlay.EgressAllow, now time.Time) {
	l.known = l.open(now)
	for _, a := range allow {
		i := slices.IndexFunc(l.known, func(k overlay.EgressAllow) bool {
			return k.Prefix == a.Prefix && k.Proto == a.Proto && k.First == a.First && k.Last == a.Last
		})
		switch {
		case i < 0:
			l.known = append(l.known, a)
		case compareUntil(l.known[i].Until, a.Until) < 0:
			l.known[i].Until = a.Until
		}
	}
	if over := len(l.known) - maxLessons; over > 0 {
		slices.SortFunc(l.known, func(a, b overlay.EgressAllow) int { return compareUntil(a.Until, b.Until) })
		l.known = slices.Delete(l.known, 0, over)
	}
}

func (l *lessons) open(now time.Time) []overlay.EgressAllow {
	return slices.DeleteFunc(slices.Clone(l.known), func(a overlay.EgressAllow) bool { return !a.Until.IsZero() && !now.Before(a.Until) })
}

var errUnbound = errors.New("no guarded agent of that name is bound")

// Learn opens destinations to a guarded agent until they end: what DNS said of names that its egress list names. It returns
// when the kernel has them.
func (b *Binding) Learn(agent string, allow []overlay.EgressAllow) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	id, ok := b.state.ids[agent]
	if !ok || b.state.agents[id].Flags&guarded == 0 {
		return fmt.Errorf("learn destinations of %s: %w", agent, errUnbound)
	}
	l := b.learned[agent]
	if l == nil {
		l = &lessons{}
		b.learned[agent] = l
	}
	l.add(allow, time.Now())
	if err := b.converge(b.config); err != nil {
		return fmt.Errorf("learn destinations of %s: %w", agent, err)
	}
	return nil
}

// monotonic is a time as the kernel's programs count, ns since boot without suspends.
func monotonic(at, now time.Time) uint64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 1 // long ago
	}
	return uint64(ts.Nano() + int64(at.Sub(now)))
}
