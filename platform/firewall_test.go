package platform

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-mesh/bulkhead/overlay"
)

// foreign is what other programs have in the kernel, some of it in our way.
const foreign = `
ipset create theirs hash:ip
ipset add theirs 192.0.2.1
ipset create bulkhead-theirs hash:ip
for ipt in iptables ip6tables; do
	for t in raw mangle; do
		$ipt -t $t -N THEIRS
		$ipt -t $t -A PREROUTING -m comment --comment "a \"quoted\" comment" -j THEIRS
		$ipt -t $t -A PREROUTING -j ACCEPT
	done
	$ipt -t mangle -A POSTROUTING -j MARK --set-mark 7
	$ipt -t nat -A POSTROUTING -p tcp --dport 25 -j REDIRECT --to-ports 26 2>/dev/null || $ipt -t nat -A POSTROUTING -j RETURN
	$ipt -A OUTPUT -j ACCEPT
	$ipt -A INPUT -p tcp --dport 22 -j ACCEPT
done
iptables -A INPUT -m set --match-set theirs src -j DROP
ip route add unreachable 10.99.0.0/16 metric 77
`

func (w *world) remove(t testing.TB) {
	t.Helper()
	w.here.must(t, func() error { return w.firewall.Remove(context.Background()) })
}

func TestForeignRulesStayByteForByte(t *testing.T) {
	w := newWorld(t)
	w.here.sh(t, foreign)
	before := saved(t, w.here)
	w.remove(t)
	if diff := cmp.Diff(before, saved(t, w.here)); diff != "" {
		t.Fatalf("a removal of nothing changed:\n%s", diff)
	}
	w.fence(t)
	w.apply(t, append(grant(overlay.In, protoTCP, 443, 443), grant(overlay.Out, protoUDP, 1000, 60000)...)...)
	serve(t, w.here, 444)
	if !blocked(w.there, there4, here4, 444) {
		t.Error("another program's ACCEPT opens what is not granted")
	}
	w.remove(t)
	if diff := cmp.Diff(before, saved(t, w.here)); diff != "" {
		t.Fatalf("left behind or taken away (-before +after):\n%s", diff)
	}
	w.remove(t)
}

func TestRemoveFinishesHalfInstalledStates(t *testing.T) {
	for _, half := range []string{
		"iptables -t mangle -F BULKHEAD-IN",
		"iptables -t raw -D PREROUTING 1",
		"ip6tables -F; ip6tables -t mangle -F; ip6tables -t raw -F",
		"nft flush ruleset; ipset destroy bulkhead-in4",
		"ip route flush type unreachable; ipset create bulkhead-tmp-0 hash:ip",
		"iptables -t mangle -A PREROUTING -i old0 -j BULKHEAD-IN; iptables -t mangle -N BULKHEAD-OLD; iptables -t mangle -A FORWARD -g BULKHEAD-OLD",
	} {
		t.Run(half, func(t *testing.T) {
			w := newWorld(t)
			w.fence(t)
			w.apply(t, grant(overlay.In, protoTCP, 1, 60000)...)
			w.here.sh(t, half)
			w.remove(t)
			if left := saved(t, w.here); strings.Contains(strings.ToLower(strings.ReplaceAll(left, "dev bulkhead0", "")), "bulkhead") || strings.Contains(left, "unreachable 10.201") {
				t.Errorf("left behind:\n%s", left)
			}
			w.remove(t)
			w.fence(t)
			if err := w.check(t); err != nil {
				t.Error(err)
			}
		})
	}
}

// kernelState says whether anything wrote to the kernel.
func kernelState(t *testing.T, w *world) string {
	t.Helper()
	state := saved(t, w.here)
	w.here.must(t, func() error {
		g, err := readGeneration()
		state += "generation " + time.Duration(g).String()
		return err
	})
	return state
}

func TestApplyIsIdempotentAndReadsBack(t *testing.T) {
	w := newWorld(t)
	w.fence(t)
	until := time.Now().Add(time.Hour)
	far := time.Now().Add(maxTimeout * 2)
	allow := append(grant(overlay.In, protoTCP, 443, 443), grant(overlay.Out, protoUDP, 1000, 60000)...)
	allow = append(allow, grant(overlay.In, protoICMP, 0, 0)...)
	allow = append(allow, grant(overlay.Out, protoTCP, 80, 90)...)
	allow[0].Until, allow[1].Until = until, far
	w.apply(t, allow...)
	if err := w.check(t); err != nil {
		t.Fatal(err)
	}
	before := kernelState(t, w)
	w.withoutPrograms(func() { w.apply(t, allow...) })
	after := kernelState(t, w)
	// The seconds that are left may have changed.
	if strings.Count(before, "\n") != strings.Count(after, "\n") || before[strings.LastIndex(before, "generation"):] != after[strings.LastIndex(after, "generation"):] {
		t.Errorf("an equal Apply changed the kernel:\n%s", cmp.Diff(before, after))
	}
}

// withoutPrograms runs fn while any write to the kernel would be an error.
func (w *world) withoutPrograms(fn func()) {
	f := w.firewall
	ipset, restores := f.ipset, []string{f.tables[0].restore, f.tables[1].restore}
	f.ipset, f.tables[0].restore, f.tables[1].restore = "/bin/false", "/bin/false", "/bin/false"
	fn()
	f.ipset, f.tables[0].restore, f.tables[1].restore = ipset, restores[0], restores[1]
}

// The kernel says what is in a large set in many messages.
func TestLargeSetsAreAdoptedWhole(t *testing.T) {
	w := newWorld(t)
	w.fence(t)
	many, _ := manyGrants(10_000)
	w.apply(t, many.Allow...)
	if err := w.check(t); err != nil {
		t.Fatal(err)
	}
	w.firewall = w.newFirewall(t)
	w.fence(t)
	w.withoutPrograms(func() { w.apply(t, many.Allow...) })
	if err := w.check(t); err != nil {
		t.Error(err)
	}
}

func TestRestartAdoptsAndWithdraws(t *testing.T) {
	w := newWorld(t)
	serve(t, w.here, 80, 443, 5000)
	w.fence(t)
	both := append(grant(overlay.In, protoTCP, 443, 443), grant(overlay.In, protoTCP, 4000, 6000)...)
	w.apply(t, append(both, grant(overlay.In, protoTCP, 80, 80)...)...)
	s := openStream(t, "tcp", w.there, w.here, there4, here4, 4500)

	w.firewall = w.newFirewall(t) // as after a kill -9
	w.fence(t)
	if err := w.check(t); err != nil {
		t.Error(err)
	}
	for _, port := range []int{80, 443, 5000} {
		if !passes(w.there, there4, here4, port) {
			t.Errorf("port %d is cut by a restart", port)
		}
	}
	a, _, errs := s.state()
	if errs[0] != nil || errs[1] != nil {
		t.Fatal(errs)
	}
	eventually(t, expected, "a running connection survives", func() bool { a2, _, _ := s.state(); return a2 > a })

	w.apply(t, grant(overlay.In, protoTCP, 443, 443)...)
	s.silent(t)
	for port, want := range map[int]bool{80: false, 443: true, 5000: false} {
		if check := map[bool]func(space, netip.Addr, netip.Addr, int) bool{true: passes, false: blocked}[want]; !check(w.there, there4, here4, port) {
			t.Errorf("port %d passes: %t, want %t", port, !want, want)
		}
	}
	if err := w.check(t); err != nil {
		t.Error(err)
	}
	if left := w.here.sh(t, "ipset list -n"); strings.Contains(left, "bulkhead-i") && strings.Contains(left, "-0fa0") {
		t.Errorf("sets of withdrawn ranges are left:\n%s", left)
	}
}

func TestApplyNeedsAFence(t *testing.T) {
	w := newWorld(t)
	if err := w.firewall.Apply(t.Context(), overlay.FirewallConfig{}); !errors.Is(err, errNotFenced) {
		t.Errorf("got %v", err)
	}
	if err := w.check(t); !errors.Is(err, ErrDrift) {
		t.Errorf("got %v", err)
	}
}

func TestFenceRefusesASplitFirewall(t *testing.T) {
	w := newWorld(t)
	w.here.sh(t, "iptables-legacy -t mangle -N BULKHEAD-IN; iptables-legacy -t mangle -A PREROUTING -j BULKHEAD-IN")
	before := saved(t, w.here)
	err := w.here.do(func() error { return w.firewall.Fence(context.Background()) })
	if !errors.Is(err, ErrSplit) {
		t.Errorf("got %v", err)
	}
	if diff := cmp.Diff(before, saved(t, w.here)); diff != "" {
		t.Errorf("refused, and yet changed:\n%s", diff)
	}
	w.remove(t)
	if left := w.here.sh(t, "iptables-legacy -t mangle -S"); strings.Contains(left, "BULKHEAD") {
		t.Errorf("left behind:\n%s", left)
	}
	w.fence(t)
}

func TestNewFirewallRefusesUnusableOptions(t *testing.T) {
	for name, o := range map[string]FirewallOptions{
		"no interface": {},
		"wildcard":     {Interface: "bulk+"},
		"injection":    {Interface: "a -j ACCEPT"},
		"too long":     {Interface: "bulkhead01234567"},
		"no prefix":    {Interface: "bulkhead0", Prefixes: []netip.Prefix{{}}},
		"overlap":      {Interface: "bulkhead0", Prefixes: []netip.Prefix{prefix4, netip.MustParsePrefix("10.0.0.0/8")}},
	} {
		if _, err := NewFirewall(o); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

func TestUntilIsMovedAndArmedAgain(t *testing.T) {
	w := newWorld(t)
	w.fence(t)
	const none = -1
	start := time.Now()
	w.firewall.now = func() time.Time { return start }
	left := func() time.Duration {
		for line := range strings.Lines(w.here.sh(t, "ipset save bulkhead-in4")) {
			if fields := strings.Fields(line); fields[0] == "add" {
				d, err := time.ParseDuration(fields[len(fields)-1] + "s")
				if err != nil {
					t.Fatal(err)
				}
				return d
			}
		}
		return none
	}
	at := func(until time.Time) {
		t.Helper()
		g := grant(overlay.In, protoTCP, 443, 443)[:1]
		g[0].Until = until
		w.apply(t, g...)
	}
	for _, c := range []struct {
		until time.Time
		want  time.Duration
	}{
		{start.Add(time.Hour), time.Hour}, {time.Time{}, 0},
		{start.Add(200 * time.Second), 200 * time.Second}, {start.Add(300 * time.Second), 300 * time.Second},
		{start.Add(-time.Second), none}, {start.Add(999 * time.Millisecond), none}, {start.AddDate(1, 0, 0), maxTimeout},
	} {
		at(c.until)
		// It runs down meanwhile; 0, which means for ever, and none at all are exact.
		if got := left(); got != c.want && (c.want <= 0 || got > c.want || got < c.want-30*time.Second || got == 0) {
			t.Errorf("until %s: %s are left, want %s", c.until.Sub(start), got, c.want)
		}
	}
	// Half of the time that the kernel can count is over: the guard's next full look arms it again.
	w.here.sh(t, "ipset add bulkhead-in4 10.201.0.2,tcp:443,10.201.0.1 timeout 5 -exist")
	w.here.must(t, func() error {
		w.firewall.now = func() time.Time { return start.Add(maxTimeout) }
		_, err := w.firewall.guardOnce(context.Background(), true)
		return err
	})
	if got := left(); got < maxTimeout-30*time.Second {
		t.Errorf("%s are left after arming again", got)
	}
}

func TestEntriesThatCannotBeEnforcedStayDenied(t *testing.T) {
	w := newWorld(t)
	w.fence(t)
	mapped := netip.AddrFrom16(there4.As16())
	good := overlay.Allow{Direction: overlay.In, Remote: there4, Local: here4, Proto: protoTCP, First: 443, Last: 443}
	bad := make([]overlay.Allow, 9)
	for i := range bad {
		bad[i] = good
	}
	bad[0].Remote = netip.MustParseAddr("192.0.2.1")
	bad[1].Local = netip.MustParseAddr("10.201.0.77")
	bad[2].Remote = there6
	bad[3].Proto = 47
	bad[4].First = 444
	bad[5].First = 0
	bad[6].Direction = 3
	bad[7].Remote = mapped
	bad[8].Remote = netip.Addr{}
	w.apply(t, append(bad, good)...)
	if got := strings.Count(w.here.sh(t, "ipset save"), "tcp:"); got != 1 {
		t.Errorf("%d entries, want 1", got)
	}
}

// What the kernel says of rules by owner is what was written, for each kind of owner.
func TestOwnersAreReadBack(t *testing.T) {
	root, err := CgroupRoot()
	if err != nil {
		t.Fatal(err)
	}
	group := fmt.Sprintf("bulkhead-owner-%d", os.Getpid()) // the kernel wants it to be there
	if err := os.MkdirAll(filepath.Join(root, group, "a@1.service"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(os.Remove(filepath.Join(root, group, "a@1.service")), os.Remove(filepath.Join(root, group))); err != nil {
			t.Error(err)
		}
	})
	w := newWorld(t)
	w.firewall.options.ByOwner = true
	w.fence(t)
	w.apply(t)
	w.here.must(t, func() error {
		return w.firewall.SetOwners(t.Context(), []Owner{{Addresses: []netip.Addr{here4, here6}, UIDs: []uint32{1000}, Groups: []string{group, group + "/a@1.service"}}})
	})
	if err := w.check(t); err != nil {
		t.Error(err)
	}
	w.here.must(t, func() error { return w.firewall.SetOwners(t.Context(), nil) })
	if err := w.check(t); err != nil {
		t.Error(err)
	}
}
