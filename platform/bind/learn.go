package bind

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/bulkhead-mesh/bulkhead/overlay"
)

// maxLessons is how many destinations an agent may have by name at once; those that end first go.
const maxLessons = 4096

// lessons are the destinations of an agent that DNS answers opened.
type lessons struct {
	known []lesson
}

// lesson is what the answer for a name opened. The name is empty for what an earlier daemon learned.
type lesson struct {
	name string
	overlay.EgressAllow
}

// add takes what is new, or lasts longer than before.
func (l *lessons) add(name string, allow []overlay.EgressAllow, now time.Time) {
	l.known = slices.DeleteFunc(l.known, func(k lesson) bool { return ended(k.EgressAllow, now) })
	for _, a := range allow {
		i := slices.IndexFunc(l.known, func(k lesson) bool {
			return k.name == name && k.Prefix == a.Prefix && k.Proto == a.Proto && k.First == a.First && k.Last == a.Last
		})
		switch {
		case i < 0:
			l.known = append(l.known, lesson{name, a})
		case compareUntil(l.known[i].Until, a.Until) < 0:
			l.known[i].Until = a.Until
		}
	}
	if over := len(l.known) - maxLessons; over > 0 {
		slices.SortFunc(l.known, func(a, b lesson) int { return compareUntil(a.Until, b.Until) })
		l.known = slices.Delete(l.known, 0, over)
	}
}

func (l *lessons) open(now time.Time) []overlay.EgressAllow {
	var open []overlay.EgressAllow
	for _, k := range l.known {
		if !ended(k.EgressAllow, now) {
			open = append(open, k.EgressAllow)
		}
	}
	return open
}

var errUnbound = errors.New("no guarded agent of that name is bound")

// Learn opens destinations to a guarded agent until they end: what DNS said of a name that its egress list names. It
// returns when the kernel has them.
func (b *Binding) Learn(agent, name string, allow []overlay.EgressAllow) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	id := b.state.ids[agent]
	i := slices.IndexFunc(b.config.Agents, func(c overlay.Binding) bool { return c.Agent == agent })
	if i < 0 || b.state.agents[id].Flags&guarded == 0 {
		return fmt.Errorf("learn destinations of %s: %w", agent, errUnbound)
	}
	l := b.learned[agent]
	if l == nil {
		l = &lessons{}
		b.learned[agent] = l
	}
	l.add(name, allow, time.Now())
	if err := b.list(id, b.config.Agents[i]); err != nil {
		return errors.Join(fmt.Errorf("learn destinations of %s: %w", agent, err), b.readEgress())
	}
	return nil
}

// Review closes what agents learned and keep does not want any more. The name is empty for what an earlier daemon learned.
func (b *Binding) Review(keep func(agent, name string, allow overlay.EgressAllow) bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	var errs []error
	for _, c := range b.config.Agents {
		l := b.learned[c.Agent]
		if l == nil {
			continue
		}
		kept := slices.DeleteFunc(slices.Clone(l.known), func(k lesson) bool { return !keep(c.Agent, k.name, k.EgressAllow) })
		if len(kept) == len(l.known) {
			continue
		}
		l.known = kept
		if err := b.list(b.state.ids[c.Agent], c); err != nil {
			errs = append(errs, fmt.Errorf("review destinations of %s: %w", c.Agent, err), b.readEgress())
		}
	}
	return errors.Join(errs...)
}

// recall drops what agents learned that are gone, or not guarded any more, and gives those of an adopted state what they
// had learned before.
func (b *Binding) recall(config overlay.BindingConfig) {
	learned := make(map[string]*lessons)
	for _, c := range config.Agents {
		if !c.Guarded || c.Host {
			continue
		}
		if l := b.learned[c.Agent]; l != nil {
			learned[c.Agent] = l
		} else if l := b.recovered[b.state.idOf(c)]; l != nil {
			learned[c.Agent] = l
		}
	}
	b.learned, b.recovered = learned, nil
}

// recollect finds in the kernel what agents had learned: what ends.
func (b *Binding) recollect() {
	b.recovered = make(map[uint32]*lessons)
	for id, list := range b.egress {
		l := &lessons{}
		for to, ports := range list {
			addr := addrFrom(to.Addr)
			for _, r := range ports.Range {
				if r.Until != 0 {
					l.known = append(l.known, lesson{EgressAllow: overlay.EgressAllow{
						Prefix: netip.PrefixFrom(addr, addr.BitLen()), Proto: r.Proto, First: r.First, Last: r.Last, Until: b.clock.end(r.Until),
					}})
				}
			}
		}
		if len(l.known) > 0 {
			b.recovered[id] = l
		}
	}
}
