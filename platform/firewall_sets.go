package platform

import (
	"cmp"
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/bulkhead-mesh/bulkhead/overlay"
)

const (
	protoICMP, protoTCP, protoUDP, protoICMPv6 = 1, 6, 17, 58

	// widestExpanded is the largest port range that becomes one entry for each port; a wider one gets a
	// rule and a set of its own.
	widestExpanded = 256
	// maxEntries is what one set may hold: 64 agents with 10,000 peers and some ports each.
	maxEntries = 1 << 20
	// maxTimeout is the longest that the kernel counts for an entry. A later end is armed again in time.
	maxTimeout = 2147483 * time.Second
)

type family uint8

const (
	ipv4 family = 4
	ipv6 family = 6
)

var families = []family{ipv6, ipv4}

func familyOf(a netip.Addr) family {
	if a.Is4() {
		return ipv4
	}
	return ipv6
}

// instant is a wall clock time in Unix milliseconds; 0 is never. Sets hold a hundred thousand of them.
type instant int64

func instantOf(t time.Time) instant {
	if t.IsZero() {
		return 0
	}
	return instant(t.UnixMilli())
}

func (i instant) later(j instant) bool { return j != 0 && (i == 0 || i > j) }

// entry is a member of a set: who may open which port of whom; in a set of addresses, src alone.
type entry struct {
	src   netip.Addr
	proto uint8
	port  uint16 // for ICMP type and code
	dst   netip.Addr
}

func compareEntries(a, b entry) int {
	return cmp.Or(a.src.Compare(b.src), a.dst.Compare(b.dst), cmp.Compare(a.proto, b.proto), cmp.Compare(a.port, b.port))
}

// set is an ipset of ours, wanted or as the kernel has it.
type set struct {
	kind    string // ipset type
	family  family
	wide    *wideRange        // what it is for, if the set of remote addresses of a wide range
	entries map[entry]instant // when the kernel ends each
	read    bool              // read from the kernel, so the instants are rough

	ends    []instant // of the entries that end, sorted; made when first asked for
	forever int
}

type sets map[string]*set

const (
	kindAddress = "hash:ip"
	kindFlow    = "hash:ip,port,ip"

	// Append only: a newer version adopts the sets of an older one, or removes them.
	setPrefix = "bulkhead-"
	tmpPrefix = setPrefix + "tmp-"
)

func nameLocal(f family) string { return pick(f, setPrefix+"local4", setPrefix+"local6") }
func nameIn(f family) string    { return pick(f, setPrefix+"in4", setPrefix+"in6") }
func nameOut(f family) string   { return pick(f, setPrefix+"out4", setPrefix+"out6") }

func pick(f family, four, six string) string {
	if f == ipv4 {
		return four
	}
	return six
}

// fixedSets are the sets that rules always speak of, empty.
func fixedSets() sets {
	s := make(sets)
	for _, f := range families {
		s[nameLocal(f)] = newSet(kindAddress, f)
		s[nameIn(f)] = newSet(kindFlow, f)
		s[nameOut(f)] = newSet(kindFlow, f)
	}
	return s
}

func newSet(kind string, f family) *set {
	return &set{kind: kind, family: f, entries: make(map[entry]instant)}
}

// add lets an entry pass until end or, if already longer, as long as before.
func (s *set) add(e entry, end instant) {
	if old, ok := s.entries[e]; !ok || end.later(old) {
		s.entries[e] = end
	}
}

// sizeAt is how many entries the kernel can have at now, at least and at most. No entry may be added after.
func (s *set) sizeAt(now instant) (low, high int) {
	if s.forever+len(s.ends) != len(s.entries) {
		for _, end := range s.entries {
			if end == 0 {
				s.forever++
			} else {
				s.ends = append(s.ends, end)
			}
		}
		slices.Sort(s.ends)
	}
	over, _ := slices.BinarySearch(s.ends, now-roughness)
	maybe, _ := slices.BinarySearch(s.ends, now+roughness)
	return len(s.entries) - maybe, len(s.entries) - over
}

// wideRange is a port range too wide for entries, that some remote agents may use with one local agent.
type wideRange struct {
	direction   overlay.Direction
	proto       uint8
	first, last uint16
	local       netip.Addr
}

var (
	wideName  = regexp.MustCompile(`^bulkhead-([io])([46])([tu])-([0-9a-f]{4})([0-9a-f]{4})-([a-z2-7]{9})$`)
	ownedName = regexp.MustCompile(`^bulkhead-((in|out|local)[46]|tmp-[0-9]{1,4}|[io][46][tu]-[0-9a-f]{8}-[a-z2-7]{9})$`)
)

// name says all of w, the address as a hash because names have at most 31 characters.
func (w wideRange) name() string {
	direction, proto := "i", "t"
	if w.direction == overlay.Out {
		direction = "o"
	}
	if w.proto == protoUDP {
		proto = "u"
	}
	return fmt.Sprintf("%s%s%d%s-%04x%04x-%s", setPrefix, direction, familyOf(w.local), proto, w.first, w.last, shortHash(w.local))
}

func shortHash(a netip.Addr) string {
	sum := sha256.Sum256(a.AsSlice())
	return strings.ToLower(base32.StdEncoding.EncodeToString(sum[:]))[:9]
}

// parseWideName is the inverse of name, given the addresses that it can be about.
func parseWideName(name string, locals sets) (wideRange, bool) {
	m := wideName.FindStringSubmatch(name)
	if m == nil {
		return wideRange{}, false
	}
	w := wideRange{direction: overlay.In, proto: protoTCP}
	if m[1] == "o" {
		w.direction = overlay.Out
	}
	f := ipv4
	if m[2] == "6" {
		f = ipv6
	}
	if m[3] == "u" {
		w.proto = protoUDP
	}
	w.first, w.last = parseHex16(m[4]), parseHex16(m[5])
	if w.first == 0 || int(w.last)-int(w.first) < widestExpanded {
		return wideRange{}, false
	}
	if local := locals[nameLocal(f)]; local != nil {
		for e := range local.entries {
			if shortHash(e.src) == m[6] {
				w.local = e.src
				return w, true
			}
		}
	}
	return wideRange{}, false
}

// parseHex16 reads four hex digits that a pattern has matched.
func parseHex16(s string) uint16 {
	n, _ := strconv.ParseUint(s, 16, 16)
	return uint16(n)
}

// adopt is what a restarted process goes on with: of the sets that it found those that it understands,
// and empty ones for those that are missing.
func (s sets) adopt() sets {
	out := fixedSets()
	for name, found := range s {
		if missing, ok := out[name]; ok {
			if missing.kind == found.kind && missing.family == found.family {
				out[name] = found
			}
			continue
		}
		if w, ok := parseWideName(name, s); ok && found.kind == kindAddress && found.family == familyOf(w.local) {
			found.wide = &w
			out[name] = found
		}
	}
	return out
}

// ruleData is what rules speak of that sets cannot hold.
type ruleData struct {
	wide []wideRange  // in the order in which rules name them
	own  []netip.Addr // of the agents here, sorted: each may talk to itself

	owners []Owner
}

func (d ruleData) equal(e ruleData) bool {
	return slices.Equal(d.wide, e.wide) && slices.Equal(d.own, e.own) && slices.EqualFunc(d.owners, e.owners, Owner.equal)
}

func (s sets) ruleData() ruleData {
	d := ruleData{wide: s.wideRanges()}
	for _, f := range families {
		if local := s[nameLocal(f)]; local != nil {
			for e := range local.entries {
				d.own = append(d.own, e.src)
			}
		}
	}
	slices.SortFunc(d.own, netip.Addr.Compare)
	return d
}

// wideRanges are those that have a set, in the order in which rules name them.
func (s sets) wideRanges() []wideRange {
	var out []wideRange
	for _, set := range s {
		if set.wide != nil {
			out = append(out, *set.wide)
		}
	}
	slices.SortFunc(out, func(a, b wideRange) int { return strings.Compare(a.name(), b.name()) })
	return out
}

// desiredSets are the sets that enforce config at now, and how many grants cannot be enforced and stay
// denied: malformed ones, of an address outside the overlay, or of a local agent that is not there.
func desiredSets(config overlay.FirewallConfig, prefixes []netip.Prefix, now time.Time) (sets, int) {
	d := desire{sets: fixedSets(), prefixes: prefixes, now: instantOf(now), latest: instantOf(now.Add(maxTimeout))}
	for _, a := range config.Local {
		if !d.inOverlay(a) {
			d.refused++
			continue
		}
		d.sets[nameLocal(familyOf(a))].add(entry{src: a}, 0)
	}
	for _, g := range config.Allow {
		d.allow(g)
	}
	return d.sets, d.refused
}

type desire struct {
	sets        sets
	prefixes    []netip.Prefix
	now, latest instant
	refused     int
}

func (d *desire) inOverlay(a netip.Addr) bool { return inPrefixes(d.prefixes, a) }

func inPrefixes(prefixes []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}

func (d *desire) allow(g overlay.Allow) {
	end, ok := d.end(g.Until)
	if !ok {
		return
	}
	f := familyOf(g.Local)
	_, here := d.sets[nameLocal(f)].entries[entry{src: g.Local}]
	if !here || familyOf(g.Remote) != f || !d.inOverlay(g.Remote) || !wellFormed(g) {
		d.refused++
		return
	}
	e, name := entry{src: g.Remote, proto: g.Proto, dst: g.Local}, nameIn(f)
	if g.Direction == overlay.Out {
		e.src, e.dst, name = g.Local, g.Remote, nameOut(f)
	}
	switch {
	case g.Proto == protoICMP:
		for _, kind := range echoTypes(f) {
			e.proto, e.port = icmpOf(f), kind
			d.sets[name].add(e, end)
		}
	case int(g.Last)-int(g.First) < widestExpanded:
		for port := int(g.First); port <= int(g.Last); port++ {
			e.port = uint16(port)
			d.sets[name].add(e, end)
		}
	default:
		d.allowWide(g, end)
	}
}

func (d *desire) allowWide(g overlay.Allow, end instant) {
	w := wideRange{direction: g.Direction, proto: g.Proto, first: g.First, last: g.Last, local: g.Local}
	s := d.sets[w.name()]
	if s == nil {
		s = newSet(kindAddress, familyOf(g.Local))
		s.wide = &w
		d.sets[w.name()] = s
	}
	if *s.wide != w { // two addresses with one hash: the second stays denied
		d.refused++
		return
	}
	s.add(entry{src: g.Remote}, end)
}

// end is when the kernel shall end a grant; false if less than the second is left that the kernel counts in.
func (d *desire) end(until time.Time) (instant, bool) {
	end := instantOf(until)
	if end == 0 {
		return 0, true
	}
	return min(end, d.latest), end-d.now >= 1000
}

func wellFormed(g overlay.Allow) bool {
	if g.Direction != overlay.In && g.Direction != overlay.Out {
		return false
	}
	switch g.Proto {
	case protoICMP:
		return true
	case protoTCP, protoUDP:
		return g.First > 0 && g.First <= g.Last
	}
	return false
}

func icmpOf(f family) uint8 {
	if f == ipv4 {
		return protoICMP
	}
	return protoICMPv6
}

// echoTypes are type and code of the echo request and the reply, as a set counts them: instead of a port.
func echoTypes(f family) [2]uint16 {
	if f == ipv4 {
		return [2]uint16{8 << 8, 0 << 8}
	}
	return [2]uint16{128 << 8, 129 << 8}
}

// allows reports whether src may open port of dst by the sets at now; for ICMP, port is not looked at.
func (s sets) allows(src netip.Addr, proto uint8, port uint16, dst netip.Addr, now instant) bool {
	f := familyOf(src)
	if proto == icmpOf(f) {
		port = echoTypes(f)[0]
	}
	in := func(name string, e entry) bool {
		set := s[name]
		if set == nil {
			return false
		}
		end, ok := set.entries[e]
		return ok && end.later(now)
	}
	isLocal := func(a netip.Addr) bool { return in(nameLocal(f), entry{src: a}) }
	flow := entry{src: src, proto: proto, port: port, dst: dst}
	if isLocal(dst) && (in(nameIn(f), flow) || s.allowsWide(in, overlay.In, flow, dst, src)) {
		return true
	}
	return isLocal(src) && (in(nameOut(f), flow) || s.allowsWide(in, overlay.Out, flow, src, dst))
}

func (s sets) allowsWide(in func(string, entry) bool, d overlay.Direction, flow entry, local, remote netip.Addr) bool {
	for name, set := range s {
		w := set.wide
		if w != nil && w.direction == d && w.local == local && w.proto == flow.proto &&
			w.first <= flow.port && flow.port <= w.last && in(name, entry{src: remote}) {
			return true
		}
	}
	return false
}
