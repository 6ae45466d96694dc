package bind

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/bulkhead-mesh/bulkhead/overlay"
)

var (
	prefixes  = []netip.Prefix{netip.MustParsePrefix("10.201.0.0/16"), netip.MustParsePrefix("fd12:3456:789a::/48")}
	resolvers = overlay.ResolverAddrs(prefixes)
	worlds    atomic.Int32
)

// world is a network namespace and a cgroup of its own, as a host has.
type world struct {
	t           testing.TB
	root, netns string
	pins        string
	binding     *Binding
}

// address is the v4 or v6 address of the agent with a number.
func address(n int, six bool) netip.Addr {
	if six {
		return netip.MustParseAddr(fmt.Sprintf("fd12:3456:789a::%x", n))
	}
	return netip.MustParseAddr(fmt.Sprintf("10.201.0.%d", n))
}

func addresses(n int) []netip.Addr { return []netip.Addr{address(n, false), address(n, true)} }

// unified is where cgroup v2 is mounted.
func unified(t testing.TB) string {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 2 && f[2] == "cgroup2" {
			return f[1]
		}
	}
	t.Fatal("cgroup v2 is not mounted (fix: mount -t cgroup2 none /sys/fs/cgroup/unified)")
	return ""
}

// newWorld has the interface with the addresses of agents 1 to 4 and of the resolver, an underlay address, and a binding.
func newWorld(t testing.TB) *world {
	t.Helper()
	name := fmt.Sprintf("bhbind%dx%d", os.Getpid(), worlds.Add(1))
	w := &world{t: t, root: filepath.Join(unified(t), name), netns: name, pins: filepath.Join(bpfFS, "bulkhead-test", name)}
	w.group("")
	// The kernel's sockets of a namespace are of whoever made it, as those of a machine are of the root of its cgroups.
	sh(t, fmt.Sprintf("echo $$ >%s/cgroup.procs; ip netns add %s", w.root, name))
	t.Cleanup(func() { sh(t, "ip netns delete "+name) })
	w.shell(`ip link set lo up; ip link add bulkhead0 type veth peer name out; ip link set bulkhead0 up; ip link set out up
		ip addr add 192.168.50.1/24 dev out; ip addr add 10.201.0.53/32 dev bulkhead0; ip addr add fd12:3456:789a::35/128 dev bulkhead0 nodad
		for n in 1 2 3 4; do ip addr add 10.201.0.$n/32 dev bulkhead0; ip addr add fd12:3456:789a::$n/128 dev bulkhead0 nodad; done
		ip route add 10.201.0.0/16 dev bulkhead0 src 10.201.0.1; ip route add fd12:3456:789a::/48 dev bulkhead0`)
	t.Cleanup(func() {
		if w.binding != nil {
			w.close()
		}
		if err := w.inside(func() error { return Remove(w.pins) }); err != nil {
			t.Error(err)
		}
	})
	w.open()
	return w
}

func (w *world) open() {
	w.t.Helper()
	err := w.inside(func() (err error) {
		w.binding, err = Open(Options{
			Root: w.root, PinDir: w.pins, Prefixes: prefixes, Resolvers: resolvers, Interface: "bulkhead0", OwnPorts: []uint16{7443}, Logger: slog.New(slog.DiscardHandler),
		})
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// group makes a cgroup below the root and returns its ID.
func (w *world) group(path string) uint64 {
	w.t.Helper()
	dir := filepath.Join(w.root, path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { // actors have ended by then
		if err := os.Remove(dir); err != nil && !os.IsNotExist(err) {
			w.t.Error(err)
		}
	})
	return w.id(path)
}

func (w *world) id(path string) uint64 {
	w.t.Helper()
	id, err := inode(filepath.Join(w.root, path))
	if err != nil {
		w.t.Fatal(err)
	}
	return id
}

func (w *world) apply(agents ...overlay.Binding) {
	w.t.Helper()
	err := w.inside(func() error {
		if err := w.binding.Apply(context.Background(), overlay.BindingConfig{Agents: agents}); err != nil {
			return err
		}
		return w.binding.Route()
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// shell runs commands in the network namespace.
func (w *world) shell(script string) string {
	w.t.Helper()
	return sh(w.t, "ip netns exec "+w.netns+" sh -euc '"+script+"'")
}

func sh(t testing.TB, script string) string {
	t.Helper()
	out, err := exec.Command("sh", "-ec", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", script, err, out)
	}
	return string(out)
}
