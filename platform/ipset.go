package platform

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// roughness is how far the time left, which the kernel counts in seconds, may be from what was asked for.
const roughness = 2000

// setPlan is how sets of the kernel become the wanted ones.
type setPlan struct {
	withdraws bool        // something that was allowed is not any more
	discard   []string    // temporary sets that a killed process left
	gone      []string    // sets that no rule will name: emptied at once, destroyed in the end
	changes   []setChange // by name
}

// setChange is what one set needs.
type setChange struct {
	name      string
	set       *set
	create    bool
	rebuild   bool    // fill a new set, then swap
	del       []entry // not when rebuilt
	addOrMove []entry // all, when created or rebuilt
}

// planSets compares. An entry that ends so late that both agree for now keeps the end that the kernel has,
// which it notes in want.
func planSets(have, want sets, now time.Time) (setPlan, error) {
	var p setPlan
	for _, name := range slices.Sorted(maps.Keys(have)) {
		switch {
		case want[name] != nil:
		case strings.HasPrefix(name, tmpPrefix):
			p.discard = append(p.discard, name)
		default:
			p.gone = append(p.gone, name)
			p.withdraws = p.withdraws || len(have[name].entries) > 0
		}
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		h, w := have[name], want[name]
		if len(w.entries) > maxEntries {
			return setPlan{}, fmt.Errorf("ipset %s: %d entries are needed and %d possible: narrow port ranges", name, len(w.entries), maxEntries)
		}
		if h != nil && (h.kind != w.kind || h.family != w.family) {
			return setPlan{}, fmt.Errorf("ipset %s: another program made it a %s of IPv%d: destroy it", name, h.kind, h.family)
		}
		c := changeSet(name, h, w, instantOf(now))
		if c.create || len(c.del)+len(c.addOrMove) > 0 {
			p.withdraws = p.withdraws || len(c.del) > 0
			p.changes = append(p.changes, c.orRebuild())
		}
	}
	return p, nil
}

func changeSet(name string, h, w *set, now instant) setChange {
	c := setChange{name: name, set: w}
	if h == nil {
		c.create = true
		c.addOrMove = slices.SortedFunc(maps.Keys(w.entries), compareEntries)
		return c
	}
	if h == w {
		return c
	}
	for e := range h.entries {
		if _, ok := w.entries[e]; !ok {
			c.del = append(c.del, e)
		}
	}
	for e, end := range w.entries {
		old, ok := h.entries[e]
		switch {
		case !ok:
			c.addOrMove = append(c.addOrMove, e)
		case old == end, h.read && near(old, end):
		case far(old, now) && far(end, now):
			w.entries[e] = old
		default:
			c.addOrMove = append(c.addOrMove, e)
		}
	}
	slices.SortFunc(c.del, compareEntries)
	slices.SortFunc(c.addOrMove, compareEntries)
	return c
}

// orRebuild makes a large change a swap, so that what passes is all old until it is all new.
func (c setChange) orRebuild() setChange {
	if !c.create && len(c.del)+len(c.addOrMove) > max(64, len(c.set.entries)/8) {
		c.rebuild, c.del = true, nil
		c.addOrMove = slices.SortedFunc(maps.Keys(c.set.entries), compareEntries)
	}
	return c
}

func near(a, b instant) bool { return a != 0 && b != 0 && max(a, b)-min(a, b) <= roughness }

// far reports whether end is later than half of what the kernel can count.
func far(end, now instant) bool { return end != 0 && end-now > instant(maxTimeout.Milliseconds()/2) }

// change is the text for `ipset restore` that makes the sets what rules need: withdrawals first, then new
// sets, then swaps side by side, then what is added.
func (p setPlan) change(now time.Time) []byte {
	t := setText{now: instantOf(now)}
	for _, name := range p.discard {
		t.line("destroy", name)
	}
	for _, name := range p.gone {
		t.line("flush", name)
	}
	for _, c := range p.changes {
		for _, e := range c.del {
			t.del(c.name, e)
		}
	}
	var built []string
	for _, c := range p.changes {
		switch {
		case c.create:
			t.create(c.name, c.set)
			t.addAll(c.name, c, "\n")
		case c.rebuild:
			tmp := tmpPrefix + strconv.Itoa(len(built))
			built = append(built, tmp)
			t.create(tmp, c.set)
			t.addAll(tmp, c, "\n")
		}
	}
	for _, c := range p.changes {
		if c.rebuild {
			t.line("swap", built[0], c.name)
			t.late = append(t.late, built[0])
			built = built[1:]
		}
	}
	for _, c := range p.changes {
		if !c.create && !c.rebuild {
			t.addAll(c.name, c, orMove)
		}
	}
	for _, tmp := range t.late {
		t.line("destroy", tmp)
	}
	return t.Bytes()
}

// cleanup is the text that destroys the sets that no rule names any more.
func (p setPlan) cleanup() []byte { return destroyText(p.gone) }

func destroyText(names []string) []byte {
	var t setText
	for _, name := range names {
		t.line("destroy", name)
	}
	return t.Bytes()
}

// setText writes the language of `ipset restore`.
type setText struct {
	bytes.Buffer
	now  instant
	late []string
}

func (t *setText) line(words ...string) {
	for i, w := range words {
		if i > 0 {
			t.WriteByte(' ')
		}
		t.WriteString(w)
	}
	t.WriteByte('\n')
}

func (t *setText) create(name string, s *set) {
	inet := "inet"
	if s.family == ipv6 {
		inet = "inet6"
	}
	t.line("create", name, s.kind, "family", inet, "maxelem", strconv.Itoa(maxEntries), "timeout", "0")
}

// orMove ends a line that may be about an entry which is there already, or not there any more.
const orMove = " -exist\n"

func (t *setText) addAll(name string, c setChange, lineEnd string) {
	for _, e := range c.addOrMove {
		t.add(name, e, c.set.entries[e])
		t.WriteString(lineEnd)
	}
}

func (t *setText) add(name string, e entry, end instant) {
	seconds := instant(0)
	if end != 0 {
		// At least 1: a 0 would mean for ever.
		seconds = min(max((end-t.now)/1000, 1), instant(maxTimeout/time.Second))
	}
	t.entry("add", name, e)
	t.WriteString(" timeout ")
	t.number(uint64(seconds))
}

func (t *setText) del(name string, e entry) {
	t.entry("del", name, e)
	t.WriteString(orMove)
}

func (t *setText) entry(verb, name string, e entry) {
	t.WriteString(verb)
	t.WriteByte(' ')
	t.WriteString(name)
	t.WriteByte(' ')
	t.Write(e.src.AppendTo(t.AvailableBuffer()))
	if !e.dst.IsValid() {
		return
	}
	t.WriteByte(',')
	switch e.proto {
	case protoTCP:
		t.WriteString("tcp:")
	case protoUDP:
		t.WriteString("udp:")
	case protoICMP:
		t.WriteString("icmp:")
	case protoICMPv6:
		t.WriteString("icmpv6:")
	default: // found in the kernel, to be removed
		t.number(uint64(e.proto))
		t.WriteByte(':')
	}
	if e.proto == protoICMP || e.proto == protoICMPv6 {
		t.number(uint64(e.port >> 8))
		t.WriteByte('/')
		t.number(uint64(e.port & 0xff))
	} else {
		t.number(uint64(e.port))
	}
	t.WriteByte(',')
	t.Write(e.dst.AppendTo(t.AvailableBuffer()))
}

func (t *setText) number(n uint64) { t.Write(strconv.AppendUint(t.AvailableBuffer(), n, 10)) }

// runIpset hands text to one `ipset restore`, which finishes it even if this process dies.
func (f *Firewall) runIpset(ctx context.Context, text []byte) error {
	if len(text) == 0 {
		return nil
	}
	return runChild(ctx, text, f.ipset, "restore")
}
