package lab

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// foreignRules are another program's: whatever happens, they stay as they are.
const foreignRules = `
iptables -A INPUT -p tcp --dport 9 -j DROP
iptables -t nat -A POSTROUTING -s 198.51.100.0/24 -j MASQUERADE
ip6tables -A FORWARD -s 2001:db8::/32 -j REJECT
ipset create theirs hash:ip && ipset add theirs 198.51.100.7
iptables -t mangle -A PREROUTING -m set --match-set theirs src -j MARK --set-mark 7
nft add table inet theirs && nft add chain inet theirs c && nft add rule inet theirs c tcp dport 99 drop
ip route add 198.51.100.0/24 dev lo table 77 && ip rule add fwmark 7 table 77 priority 7000
`

// putBackWithin is how soon what another program took away is there again.
const putBackWithin = 2 * time.Second

func TestWhatOthersTakeAwayIsPutBack(t *testing.T) {
	m := newTestMesh(t, Spec{}, Spec{Agent: "plan1", Labels: labels("plan", "internal")}, Spec{Agent: "store1", Labels: labels("store", "internal")})
	if err := m.Apply(t.Context(), openPolicy); err != nil {
		t.Fatal(err)
	}
	store := m.node("h3").Host
	shell(t, store, foreignRules)
	everything := func() string { return kernelState(t, store) }
	back := func(t *testing.T, damage string, read func() string) {
		t.Helper()
		before := read()
		shell(t, store, damage)
		begin := time.Now()
		if err := becomes(t, read, before); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took > putBackWithin {
			t.Errorf("it took %v", took)
		} else {
			t.Logf("it took %v", took.Round(time.Millisecond))
		}
	}
	for _, damage := range []string{
		"iptables -t mangle -F BULKHEAD-IN",
		"ip6tables -t raw -F BULKHEAD-RAW",
		"iptables -t mangle -D PREROUTING 1",
		"ipset flush bulkhead-in4",
		"ipset flush bulkhead-local6",
		"ipset add bulkhead-in4 10.201.0.9,tcp:22,10.201.0.2",
		"ip route del unreachable 10.201.0.0/16 metric 4294967280",
		"ip address flush dev bulkhead0 scope global",
		"ip link set bulkhead0 down",
	} {
		t.Run(damage, func(t *testing.T) { back(t, damage, everything) })
	}
	t.Run("a rule in front of ours", func(t *testing.T) {
		before := everything()
		back(t, "iptables -t mangle -I PREROUTING -j ACCEPT", func() string {
			return strings.Split(list(t, store, "iptables", "-t", "mangle", "-S", "PREROUTING"), "\n")[1]
		})
		shell(t, store, "iptables -t mangle -D PREROUTING -j ACCEPT") // it was moved back, not away
		if diff := cmp.Diff(before, everything()); diff != "" {
			t.Errorf("the rules of others have changed (-before +after):\n%s", diff)
		}
	})
	t.Run("all rules", func(t *testing.T) { // theirs too: those stay away
		back(t, "nft flush ruleset", func() string { return ours(netfilterState(t, store)) })
	})
}

// ours are the lines of a state that name something of Bulkhead's.
func ours(state string) string {
	var lines []string
	for line := range strings.Lines(state) {
		if strings.Contains(strings.ToLower(line), "bulkhead") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "")
}
