package bind

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/bulkhead-mesh/bulkhead/overlay"
)

// kernelIDs are those of all programs and maps of a binding.
func (w *world) kernelIDs() (programs []ebpf.ProgramID, maps []ebpf.MapID) {
	w.t.Helper()
	for _, h := range w.binding.hooks() {
		info, err := h.program.Info()
		if err != nil {
			w.t.Fatal(err)
		}
		id, _ := info.ID()
		programs = append(programs, id)
	}
	m := w.binding.objects.kernelMaps
	for _, m := range []*ebpf.Map{m.Agents, m.Cgroups, m.Control, m.Drops, m.Egress, m.Owners, m.Senders, m.Settings, m.Sockets, m.Users} {
		info, err := m.Info()
		if err != nil {
			w.t.Fatal(err)
		}
		id, _ := info.ID()
		maps = append(maps, id)
	}
	return programs, maps
}

// attached counts the programs at the world's root.
func (w *world) attached() int {
	w.t.Helper()
	n := 0
	for name, h := range w.binding.hooks() {
		dir, err := os.Open(w.root)
		if err != nil {
			w.t.Fatal(err)
		}
		found, err := link.QueryPrograms(link.QueryOptions{Target: int(dir.Fd()), Attach: h.kind})
		if err := errors.Join(err, dir.Close()); err != nil {
			w.t.Fatalf("%s: %v", name, err)
		}
		n += len(found.Programs)
	}
	return n
}

func (w *world) close() {
	w.t.Helper()
	if err := w.binding.Close(); err != nil {
		w.t.Fatal(err)
	}
}

// What a daemon leaves goes on without it, and the next one takes it over with all that it holds.
func TestBindingsAreAdopted(t *testing.T) {
	c := newCast(t)
	c.outside()
	lesson := allow(outside4+"/32", tcp, 7002)
	lesson.Until = time.Now().Add(time.Hour)
	c.guard(allow(outside4+"/32", tcp, 7001))
	if err := c.binding.Learn("alice", "api.example.com", []overlay.EgressAllow{lesson}); err != nil {
		t.Fatal(err)
	}
	c.bob.must(order{Do: "serve", Network: "tcp", Local: at(address(2, false), 8080)})
	flow := c.start("alice", 0)
	flow.must(order{Do: "keep", Network: "tcp", Remote: at(address(2, false), 8080)})
	bound := func(when string) {
		t.Helper()
		flow.must(order{Do: "again"})
		if r := c.alice.must(order{Do: "ask", Network: "tcp", Remote: at(address(2, false), 8080)}); hostOf(r.Local) != address(1, false).String() {
			t.Errorf("%s: alice asks from %s", when, r.Local)
		}
		for _, r := range []reply{
			c.stranger.tell(order{Do: "ask", Network: "tcp", Remote: at(address(2, false), 8080)}),
			c.bob.tell(order{Do: "serve", Network: "tcp", Local: at(address(1, false), 9000)}),
			c.alice.tell(order{Do: "ask", Network: "udp", Remote: outside4 + ":7001"}),
		} {
			if !strings.Contains(r.Error, "not permitted") {
				t.Errorf("%s: %+v", when, r)
			}
		}
		c.alice.must(order{Do: "ask", Network: "tcp", Remote: outside4 + ":7001"})
		c.alice.must(order{Do: "ask", Network: "tcp", Remote: outside4 + ":7002"})
	}
	_, maps := c.kernelIDs()
	attached := c.attached()
	c.close()
	bound("without a daemon")
	c.open()
	bound("with a new one")
	if _, now := c.kernelIDs(); fmt.Sprint(now) != fmt.Sprint(maps) || c.attached() != attached {
		t.Errorf("maps %v, now %v; %d programs attached, now %d", maps, now, attached, c.attached())
	}
	if restored, err := c.binding.Restore(); restored || err != nil {
		t.Errorf("restored: %t, %v", restored, err)
	}
	c.guard(allow(outside4+"/32", tcp, 7001))
	bound("with what it knew before")
}

// Restore puts back what someone took away, and nothing else.
func TestRestore(t *testing.T) {
	c := newCast(t)
	restore := func(want bool) {
		t.Helper()
		if got, err := c.binding.Restore(); got != want || err != nil {
			t.Errorf("restored: %t, %v; wanted %t", got, err, want)
		}
	}
	restore(false)
	attached := c.attached()
	for what, harm := range map[string]func() error{
		"a pin of a program": func() error { return os.Remove(filepath.Join(c.pins, "link-arrives")) },
		"a pin of a map":     func() error { return os.Remove(filepath.Join(c.pins, kernelMapOwners)) },
		"all pins":           func() error { return os.RemoveAll(c.pins) },
		"a program":          func() error { return c.binding.links["leaves"].link.Detach() },
	} {
		if err := harm(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		restore(true)
		restore(false)
		if now := c.attached(); now != attached {
			t.Errorf("%s: %d programs are attached, not %d", what, now, attached)
		}
	}
	_, maps := c.kernelIDs()
	c.close()
	c.open()
	if _, now := c.kernelIDs(); fmt.Sprint(now) != fmt.Sprint(maps) {
		t.Errorf("maps %v, and after another start %v", maps, now)
	}
}

// gone waits until something cannot be opened any more: the kernel frees a moment after.
func gone(t *testing.T, what string, open func() (io.Closer, error)) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); ; {
		c, err := open()
		if errors.Is(err, fs.ErrNotExist) {
			return
		}
		if err == nil {
			_ = c.Close()
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s is left: %v", what, err)
		}
	}
}

// Remove leaves no program, map, pin, rule or route, also where nothing is, and with what an upgrade left.
func TestRemoveLeavesNothing(t *testing.T) {
	c := newCast(t)
	programs, maps := c.kernelIDs()
	if n := c.attached(); n != len(programs) {
		t.Fatalf("%d programs are attached, want %d", n, len(programs))
	}
	if err := os.Mkdir(c.pins+aside, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := c.binding.objects.Drops.Pin(filepath.Join(c.pins+aside, "drops")); err != nil {
		t.Fatal(err)
	}
	c.close()
	for range 2 {
		if err := c.inside(func() error { return Remove(c.pins) }); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{c.pins, c.pins + aside} {
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left: %v", dir, err)
		}
	}
	for _, id := range programs {
		gone(t, fmt.Sprintf("program %d", id), func() (io.Closer, error) { return ebpf.NewProgramFromID(id) })
	}
	for _, id := range maps {
		gone(t, fmt.Sprintf("map %d", id), func() (io.Closer, error) { return ebpf.NewMapFromID(id) })
	}
	if out := c.shell("ip rule; ip -6 rule; ip route show table all; ip -6 route show table all"); strings.Contains(out, "fwmark") || strings.Contains(out, "proto 201") {
		t.Errorf("rules or routes are left: %s", out)
	}
	c.bob.must(order{Do: "serve", Network: "tcp", Local: at(address(1, false), 9000)}) // nothing is bound any more
	c.open()                                                                           // for the cleanup
}

// An upgrade whose maps are of another shape replaces all, and enforces at every moment.
func TestOtherShapesAreReplaced(t *testing.T) {
	c := newCast(t)
	old, _ := c.kernelIDs()
	c.close()
	pin := filepath.Join(c.pins, "owners")
	if err := os.Remove(pin); err != nil {
		t.Fatal(err)
	}
	other, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(other.Pin(pin), other.Close()); err != nil {
		t.Fatal(err)
	}
	ended, failed := make(chan struct{}), make(chan error, 1)
	go func() {
		defer close(failed)
		for {
			select {
			case <-ended:
				return
			default:
			}
			if r := c.bob.tell(order{Do: "serve", Network: "udp", Local: at(address(1, false), 9000)}); !strings.Contains(r.Error, "not permitted") {
				failed <- fmt.Errorf("bob takes alice's address: %+v", r)
				return
			}
		}
	}()
	c.open()
	close(ended)
	for err := range failed {
		t.Error(err)
	}
	for deadline := time.Now().Add(5 * time.Second); c.attached() != len(old); { // the kernel frees a moment after
		if time.Now().After(deadline) {
			t.Fatalf("%d programs are attached, want %d", c.attached(), len(old))
		}
	}
	if _, err := os.Stat(c.pins + aside); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what was replaced is left: %v", err)
	}
	if r := c.alice.tell(order{Do: "ask", Network: "tcp", Remote: at(address(2, false), 1)}); !strings.Contains(r.Error, "not permitted") {
		t.Errorf("before the first Apply: %+v", r)
	}
}

// A process that one agent gives up and another takes is one of the two at every moment, and never what the rest of the
// host is.
func TestClaimsChangeAtOnce(t *testing.T) {
	c := newCast(t)
	c.bob.must(order{Do: "serve", Network: "tcp", Local: at(address(2, false), 8080)})
	group := c.id("alice")
	configs := make([]overlay.BindingConfig, 2)
	for i := range configs {
		agents := []overlay.Binding{
			{Agent: "alice", Addresses: addresses(1)}, {Agent: "bob", Addresses: addresses(2), Workload: overlay.Workload{Cgroups: []uint64{c.id("bob")}}},
			{Agent: "host", Addresses: addresses(4), Workload: overlay.Workload{Host: true}}, {Agent: "zoe", Addresses: addresses(3)},
		}
		agents[3*i].Cgroups = []uint64{group}
		configs[i].Agents = agents
	}
	if err := c.binding.Apply(context.Background(), configs[0]); err != nil {
		t.Fatal(err)
	}
	ended, changes := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		defer func() { changes <- n }()
		for {
			select {
			case <-ended:
				return
			default:
			}
			n++
			if err := c.binding.Apply(context.Background(), configs[n%2]); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	sources := map[string]int{}
	for range 3000 {
		// What is sent when the process changes hands is refused; with whose address it was sent is what counts.
		r := c.alice.tell(order{Do: "source", Remote: at(address(2, false), 8080)})
		sources[r.Local+r.Error]++
	}
	close(ended)
	t.Logf("%d changes: %v", <-changes, sources)
	for _, n := range []int{1, 3} {
		if sources[address(n, false).String()] == 0 {
			t.Errorf("never the agent %d", n)
		}
		delete(sources, address(n, false).String())
	}
	if len(sources) > 0 {
		t.Errorf("in between: %v", sources)
	}
}

// Agents keep their marks, and new ones get those that nobody has; more agents than marks are refused, and one may take
// another's place when all marks are given.
func TestMarksAreKept(t *testing.T) {
	var config overlay.BindingConfig
	for i := range maxSlots {
		config.Agents = append(config.Agents, overlay.Binding{Agent: fmt.Sprintf("a%d", i), Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 201, 1, byte(i)})}})
	}
	full, err := desire(state{}, config)
	if err != nil {
		t.Fatal(err)
	}
	config.Agents[7] = overlay.Binding{Agent: "other", Addresses: addresses(9)}
	next, err := desire(full, config)
	if err != nil {
		t.Fatal(err)
	}
	if next.agents[next.ids["other"]].Mark != full.agents[full.ids["a7"]].Mark {
		t.Error("the only free mark is not given")
	}
	for name, id := range next.ids {
		if name != "other" && full.ids[name] != id {
			t.Errorf("%s is another", name)
		}
	}
	config.Agents = append(config.Agents, overlay.Binding{Agent: "more"})
	if _, err := desire(next, config); !errors.Is(err, errTooManyAgents) {
		t.Errorf("too many agents: %v", err)
	}
}

// Where eBPF cannot be, the reason is said.
func TestUnsupportedSaysWhy(t *testing.T) {
	if err := Supported(t.TempDir()); !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "cgroup v2") {
		t.Errorf("a directory that is no cgroup: %v", err)
	}
	if err := Supported(unified(t)); err != nil {
		t.Errorf("here: %v", err)
	}
	if _, err := Open(Options{Root: t.TempDir(), PinDir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)}); !errors.Is(err, ErrUnsupported) {
		t.Errorf("pins outside a bpffs: %v", err)
	}
}
