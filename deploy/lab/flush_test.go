package lab

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// foreignState is what other programs have in a host's kernel.
func foreignState(t *testing.T, h *Host) string {
	t.Helper()
	theirs := list(t, h, "sh", "-ec", "iptables-save; ip6tables-save; ipset save; ip rule; ip route show table 77; nft -s list ruleset inet; ip -o address show eth0")
	var lines []string
	for line := range strings.Lines(builtinChain.ReplaceAllString(withoutLinkLocal(theirs), "")) {
		if !strings.Contains(strings.ToLower(line), "bulkhead") {
			lines = append(lines, line)
		}
	}
	return emptyTable.ReplaceAllString(strings.Join(lines, ""), "")
}

// widePolicy also opens a range that is wide enough for a rule and sets of its own.
const widePolicy = `
segments:
  - name: planners
    match: {function: plan}
  - name: stores
    match: {function: store}
rules:
  - {name: plan-to-store, from: planners, to: stores, allow: [tcp/5001, tcp/20000-30000, udp/7000-7010, icmp], crosses: "a test"}
`

// TestFlushedWithoutRegardIsPutBack: whoever flushes whole tables or all sets finds ours back in time, and what that
// took from others is all that they lose.
func TestFlushedWithoutRegardIsPutBack(t *testing.T) {
	m := newTestMesh(t, Spec{}, fiveHosts[1], fiveHosts[3])
	must(t, m.Apply(t.Context(), widePolicy))
	store := m.node("h3").Host
	for _, c := range []struct {
		damage string
		takes  string // the lines of others that it takes away
	}{
		{"iptables -F", `-A INPUT .*\n`},
		{"iptables -t mangle -F", `-A PREROUTING .*\n`},
		{"iptables -t raw -F; ip6tables -t raw -F; ip6tables -t mangle -F", ``},
		{"ipset flush", `add theirs .*\n`},
		{"ipset flush; nft flush ruleset", `add theirs .*\n|-A .*\n|(?s:table inet theirs \{.*?\n\}\n)`},
		{"ip route flush table main proto 201; ip -6 route flush table main proto 201", ``},
		{"ip route flush dev bulkhead0; ip -6 route flush dev bulkhead0", ``},
	} {
		t.Run(c.damage, func(t *testing.T) {
			shell(t, store, foreignRules)
			defer shell(t, store, withoutForeignRules)
			ours := func() string { return ours(netfilterState(t, store)) + overlayRoutes(t, store) }
			before, theirs := ours(), foreignState(t, store)
			theirs = regexp.MustCompile(`(?m)^(`+c.takes+`)`).ReplaceAllString(theirs, "")
			theirs = emptyTable.ReplaceAllString(theirs, "")
			begin := time.Now()
			shell(t, store, c.damage)
			must(t, becomes(t, ours, before))
			if took := time.Since(begin); took > putBackWithin {
				t.Errorf("it took %v", took)
			} else {
				t.Logf("it took %v", took.Round(time.Millisecond))
			}
			if diff := cmp.Diff(theirs, foreignState(t, store)); diff != "" {
				t.Errorf("the rules of others have changed (-want +got):\n%s", diff)
			}
		})
	}
}

// withoutForeignRules takes away what is left of foreignRules.
const withoutForeignRules = `
iptables -D INPUT -p tcp --dport 9 -j DROP || true
iptables -t nat -D POSTROUTING -s 198.51.100.0/24 -j MASQUERADE || true
ip6tables -D FORWARD -s 2001:db8::/32 -j REJECT || true
iptables -t mangle -D PREROUTING -m set --match-set theirs src -j MARK --set-mark 7 || true
ipset destroy theirs
nft delete table inet theirs || true
ip rule del fwmark 7 table 77 priority 7000 && ip route flush table 77
`

// overlayRoutes are the routes of the overlay, without one that the kernel makes and never uses, and its addresses.
func overlayRoutes(t *testing.T, h *Host) string {
	t.Helper()
	return list(t, h, "sh", "-ec", "for v in -4 -6; do ip $v route show table all | grep -E 'bulkhead0|unreachable' | grep -vE 'fe80:|ff00:|proto kernel metric 256'; done; ip -o address show dev bulkhead0 scope global")
}
