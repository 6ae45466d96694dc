package lab

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Which built-in chains iptables has registered is its own affair: without rules they change nothing.
var (
	builtinChain = regexp.MustCompile(`(?m)^:\w+ ACCEPT \[\]\n`)
	emptyTable   = regexp.MustCompile(`(?m)^\*\w+\nCOMMIT\n`)
)

// wholeState is kernelState with what that leaves out: links, the nftables of others, tracked flows, settings.
func wholeState(t *testing.T, h *Host, overlay ...netip.Prefix) string {
	t.Helper()
	state := builtinChain.ReplaceAllString(kernelState(t, h), "")
	state = emptyTable.ReplaceAllString(state, "")
	for _, command := range []string{
		"ip -o link show | sed 's/@.*: /: /'", "nft -s list table inet theirs",
		"sysctl -a 2>/dev/null | grep -E '^net[.]' | grep -vE 'conntrack_count|random|dentry|inode|icmp_msgs'",
	} {
		state += list(t, h, "sh", "-c", command)
	}
	return state + openFlows(t, h, overlay...)
}

// openFlows are the connections with an overlay address that the host's kernel has: tracked ones, and sockets.
func openFlows(t *testing.T, h *Host, overlay ...netip.Prefix) string {
	t.Helper()
	var flows []string
	both := list(t, h, "sh", "-ec", "conntrack -L -f ipv4 2>/dev/null; conntrack -L -f ipv6 2>/dev/null; ss -Htn state connected exclude time-wait")
	for line := range strings.Lines(both) {
		if slices.ContainsFunc(strings.Fields(line), func(word string) bool { return ofOverlay(word, overlay) }) {
			flows = append(flows, line)
		}
	}
	return strings.Join(flows, "")
}

// ofOverlay reports whether a word like src=ADDRESS or ADDRESS:PORT has an address within overlay.
func ofOverlay(word string, overlay []netip.Prefix) bool {
	_, text, assigned := strings.Cut(word, "=")
	addr, err := netip.ParseAddr(text)
	if !assigned {
		var socket netip.AddrPort
		socket, err = netip.ParseAddrPort(word)
		addr = socket.Addr()
	}
	return err == nil && slices.ContainsFunc(overlay, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// TestDownRestoresWhatWas compares a host after `bulkhead down` with the same host before it ever ran a daemon.
func TestDownRestoresWhatWas(t *testing.T) {
	m := newTestMesh(t, Spec{}, fiveHosts[1])
	must(t, m.Apply(t.Context(), openPolicy))
	store := newcomer(t, m, "store", 9)
	store.Agent, store.Labels = "store1", labels("store", "internal")
	shell(t, store.Host, foreignRules)
	m.Hosts = append(m.Hosts, store) // so that a failure shows its log
	plan := agentsOf(t, &Mesh{Hosts: m.Hosts[:2]})["plan1"].Addresses
	overlay := []netip.Prefix{netip.PrefixFrom(plan[0], 16).Masked(), netip.PrefixFrom(plan[1], 48).Masked()}
	state := func() string { return wholeState(t, store.Host, overlay...) }
	before := state()
	must(t, m.join(t.Context(), store))
	for _, end := range []struct {
		how string
		do  func() error
	}{
		{"stopped", func() error { return store.Daemon.Stop(t.Context()) }},
		{"killed", store.kill},
		{"killed, stopped", func() error {
			must(t, store.kill())
			must(t, store.StartDaemon())
			must(t, store.Ready(t.Context()))
			return store.Daemon.Stop(t.Context())
		}},
	} {
		t.Run(end.how, func(t *testing.T) {
			must(t, store.Ready(t.Context()))
			must(t, m.Settled(t.Context()))
			addrs := agentsOf(t, m)["store1"].Addresses
			server, err := store.Serve(addrs, 5001)
			must(t, err)
			defer server.Close()
			openStreams(t, m.node("h2"), plan, addrs)
			if openFlows(t, store.Host, overlay...) == "" {
				t.Fatal("there is no flow: none could be left")
			}
			must(t, end.do())
			if _, err := store.Run(t.Context(), "down"); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(before, state()); diff != "" {
				t.Errorf("the kernel is not as it was before (-before +after):\n%s", diff)
			}
			if _, err := os.Lstat(store.Socket()); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the socket is still there: %v", err)
			}
			must(t, store.StartDaemon())
		})
	}
}
