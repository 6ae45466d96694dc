package lab

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// ofInterface are settings of one interface, which go with it.
var ofInterface = regexp.MustCompile(`(?m)^net\.ipv[46]\.(conf|neigh)\.(eth0|bulkhead0)\..*\n`)

// TestDownLeavesNothing compares a host that was in a mesh with what it was before, and with one that never was.
func TestDownLeavesNothing(t *testing.T) {
	m := newTestMesh(t, Spec{}, Spec{Agent: "plan1", Labels: labels("plan", "internal")}, Spec{Agent: "store1", Labels: labels("store", "internal")})
	if err := m.Apply(t.Context(), openPolicy); err != nil {
		t.Fatal(err)
	}
	never, err := m.World.AddHost("never")
	if err != nil {
		t.Fatal(err)
	}
	settings := func(h *Host) string {
		return ofInterface.ReplaceAllString(list(t, h, "sh", "-c", "sysctl -a 2>/dev/null | grep -E '^net[.](ipv4|ipv6|netfilter|bridge)' | grep -vE 'conntrack_count|random|icmp_msgs|mtu_expires|dentry|inode'"), "")
	}
	store := m.node("h3")
	down := func(end func() error) {
		t.Helper()
		if err := end(); err != nil {
			t.Fatal(err)
		}
		if _, err := store.Run(t.Context(), "down"); err != nil {
			t.Fatal(err)
		}
	}
	stop := func() error { return store.Daemon.Stop(t.Context()) }
	down(stop)
	if left := ours(kernelState(t, store.Host)); left != "" {
		t.Errorf("there is still:\n%s", left)
	}
	if diff := cmp.Diff(settings(never), settings(store.Host)); diff != "" {
		t.Errorf("settings are not as they were (-before +after):\n%s", diff)
	}
	if _, err := os.Stat(store.Socket()); !os.IsNotExist(err) {
		t.Errorf("the socket is still there: %v", err)
	}
	shell(t, store.Host, foreignRules)
	before := kernelState(t, store.Host)
	for how, end := range map[string]func() error{"stopped": stop, "killed": store.kill} {
		t.Run(how, func(t *testing.T) {
			if err := store.StartDaemon(); err != nil {
				t.Fatal(err)
			}
			if err := store.Ready(t.Context()); err != nil {
				t.Fatal(err)
			}
			if kernelState(t, store.Host) == before {
				t.Fatal("a daemon that runs changes nothing")
			}
			if _, err := store.Run(t.Context(), "down"); err == nil || !strings.Contains(err.Error(), "stop the daemon") {
				t.Errorf("down beside a daemon: %v", err)
			}
			down(end)
			if diff := cmp.Diff(before, kernelState(t, store.Host)); diff != "" {
				t.Errorf("the kernel is not as it was (-before +after):\n%s", diff)
			}
		})
	}
	t.Run("after a fence alone", func(t *testing.T) { // as at boot
		if _, err := store.Run(t.Context(), "fence"); err != nil {
			t.Fatal(err)
		}
		if fenced := netfilterState(t, store.Host); !strings.Contains(fenced, "-j BULKHEAD-RAW") || strings.Contains(fenced, "add bulkhead") {
			t.Errorf("the fence is:\n%s", fenced)
		}
		down(func() error { return nil })
		if diff := cmp.Diff(before, kernelState(t, store.Host)); diff != "" {
			t.Errorf("the kernel is not as it was (-before +after):\n%s", diff)
		}
	})
	t.Run("without a state directory", func(t *testing.T) {
		if err := store.StartDaemon(); err != nil {
			t.Fatal(err)
		}
		if err := store.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
		down(func() error {
			if err := store.kill(); err != nil {
				return err
			}
			return os.RemoveAll(store.StateDir())
		})
		if diff := cmp.Diff(before, kernelState(t, store.Host)); diff != "" {
			t.Errorf("the kernel is not as it was (-before +after):\n%s", diff)
		}
	})
}

func (n *Node) kill() error { return n.Daemon.Kill() }
