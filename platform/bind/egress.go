package bind

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-mesh/bulkhead/overlay"
)

const (
	maxPorts    = 16 // ranges of one destination
	prefixExtra = 32 // bits of the agent in front of an address
)

// clock tells the times of the kernel's programs: ns since boot without suspends.
type clock struct {
	now    time.Time
	kernel int64
}

func readClock() (clock, error) {
	var ts unix.Timespec
	err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return clock{time.Now(), ts.Nano()}, err
}

// until is the kernel's for an end; that of what never ends is 0.
func (c clock) until(end time.Time) uint64 {
	if end.IsZero() {
		return 0
	}
	return uint64(max(c.kernel+int64(end.Sub(c.now)), 1))
}

func (c clock) end(until uint64) time.Time { return c.now.Add(time.Duration(int64(until) - c.kernel)) }

// alone are destinations that a broader rule does not open: the link's own, and clouds' metadata.
var alone = []netip.Prefix{netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("fd00:ec2::254/128")}

// all4 is there in every trie: IPv4 addresses are mapped into IPv6, where rules for IPv6 do not mean them.
var all4 = netip.MustParsePrefix("0.0.0.0/0")

// destinations are an agent's egress list as a trie has it, which finds the longest prefix alone: each prefix has the
// ports of all that cover it. left are ranges for which there is no room.
func (c clock) destinations(agent uint32, allow []overlay.EgressAllow, now time.Time) (out map[kernelDestination]kernelPorts, left int) {
	open := map[netip.Prefix][]overlay.EgressAllow{all4: nil}
	for _, p := range alone {
		open[p] = nil
	}
	for _, a := range allow {
		p := a.Prefix.Masked()
		open[p] = append(open[p], a)
	}
	var broad []netip.Prefix // few: names are opened address by address
	for p := range open {
		if !p.IsSingleIP() {
			broad = append(broad, p)
		}
	}
	out = make(map[kernelDestination]kernelPorts, len(open))
	for p, own := range open {
		ranges := slices.Clone(own)
		for _, q := range broad {
			if q != p && covers(q, p) {
				ranges = append(ranges, open[q]...)
			}
		}
		key := kernelDestination{Prefixlen: uint32(mappedBits(p) + prefixExtra), Agent: agent, Addr: addrOf(p.Addr())}
		ports, more := c.portsOf(ranges, now)
		out[key] = ports
		left += more
	}
	return out, left
}

// covers reports whether what q opens is open in p, too.
func covers(q, p netip.Prefix) bool {
	if !within(q, p) {
		return false
	}
	for _, a := range alone {
		if within(a, p) && !within(a, q) {
			return false
		}
	}
	return true
}

func within(outer, inner netip.Prefix) bool {
	return outer.Addr().Is4() == inner.Addr().Is4() && outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
}

// portsOf joins ranges, those that last longest first, and counts those that do not fit: they are not open.
func (c clock) portsOf(allow []overlay.EgressAllow, now time.Time) (p kernelPorts, left int) {
	slices.SortFunc(allow, func(a, b overlay.EgressAllow) int {
		return cmp.Or(-compareUntil(a.Until, b.Until), cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.First, b.First), -cmp.Compare(a.Last, b.Last))
	})
	n := 0
	for _, a := range allow {
		r := kernelPortRange{First: a.First, Last: a.Last, Proto: a.Proto, Until: c.until(a.Until)}
		if ended(a, now) || slices.ContainsFunc(p.Range[:n], func(q kernelPortRange) bool {
			return q.Proto == r.Proto && q.First <= r.First && r.Last <= q.Last
		}) {
			continue
		}
		if n > 0 {
			if q := &p.Range[n-1]; q.Proto == r.Proto && q.Until == r.Until && uint32(r.First) <= uint32(q.Last)+1 {
				q.Last = r.Last
				continue
			}
		}
		if n == maxPorts {
			left++
			continue
		}
		p.Range[n] = r
		n++
	}
	return p, left
}

func ended(a overlay.EgressAllow, now time.Time) bool {
	return !a.Until.IsZero() && !now.Before(a.Until)
}

// compareUntil orders ends; zero is never and so last.
func compareUntil(a, b time.Time) int {
	switch {
	case a.IsZero() && b.IsZero():
		return 0
	case a.IsZero():
		return 1
	case b.IsZero():
		return -1
	}
	return a.Compare(b)
}
