package workload

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fsnotify/fsnotify"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-mesh/bulkhead/overlay"
)

func TestCgroupIsFollowed(t *testing.T) {
	w := newWorld(t)
	watcher := w.watch(map[string]overlay.Match{"a": {Cgroup: "/agents/deep/planner"}})
	w.until(watcher, "nothing is there", groups("a"))
	if got := watcher.Problems()["a"]; got != "there is no cgroup /agents/deep/planner" {
		t.Errorf("problem: %q", got)
	}
	// Each level comes and goes by itself, again and again.
	var before uint64
	for i := range 20 {
		id := w.mkdir("agents/deep/planner")
		if id == before {
			t.Fatalf("round %d: the kernel reuses ID %d at once", i, id)
		}
		before = id
		took := w.until(watcher, "the cgroup is found", groups("a", id))
		if i == 0 {
			t.Logf("found after %s", took)
		}
		if len(watcher.Problems()) != 0 {
			t.Fatalf("problems: %v", watcher.Problems())
		}
		w.rmdir("agents/deep/planner")
		if i%2 == 0 {
			w.rmdir("agents/deep")
			w.rmdir("agents")
		}
		took = w.until(watcher, "the cgroup is gone", groups("a"))
		if i == 0 {
			t.Logf("gone after %s", took)
		}
	}
}

func TestCgroupMadeAgainAtOnce(t *testing.T) {
	w := newWorld(t)
	w.mkdir("agents/a")
	watcher := w.watch(map[string]overlay.Match{"a": {Cgroup: "/agents/a"}})
	for range 50 {
		w.rmdir("agents/a")
		w.rmdir("agents")
		w.until(watcher, "the new one is found", groups("a", w.mkdir("agents/a")))
	}
}

func TestUnits(t *testing.T) {
	w := newWorld(t)
	top := w.mkdir("retriever.service")
	worker1, worker2 := w.mkdir("system.slice/worker@1.service"), w.mkdir("system.slice/system-worker.slice/worker@b.service")
	w.mkdir("system.slice/worker@1.service.d")
	slice := w.mkdir("agents.slice/agents-team.slice")
	scope := w.mkdir("agents.slice/agents-team.slice/x.scope")
	// What a user makes is no unit of the system: below a service, or in a slice that the user owns.
	w.mkdir("user.slice/user-1000.slice/user@1000.service/app.slice/retriever.service")
	w.mkdir("system.slice/other.service/retriever.service")
	w.mkdir("mine.slice/retriever.service")
	if err := os.Chown(filepath.Join(w.root, "mine.slice"), 1000, 1000); err != nil {
		t.Fatal(err)
	}
	backslash := w.mkdir(`system.slice/dev\x2dhash.service`)
	watcher := w.watch(map[string]overlay.Match{
		"retriever": {Unit: "retriever.service"}, "workers": {Unit: "worker@*.service"}, "team": {Unit: "agents-team.slice"},
		"scope": {Unit: "x.scope"}, "hash": {Unit: `dev\x2dhash.service`}, "none": {Unit: "worker@c.service"},
	})
	want := map[string]overlay.Workload{
		"retriever": {Cgroups: []uint64{top}}, "workers": {Cgroups: []uint64{worker1, worker2}}, "team": {Cgroups: []uint64{slice}},
		"scope": {Cgroups: []uint64{scope}}, "hash": {Cgroups: []uint64{backslash}}, "none": {},
	}
	if diff := cmp.Diff(want, watcher.Workloads()); diff != "" {
		t.Errorf("workloads (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]string{"none": "no unit worker@c.service runs"}, watcher.Problems()); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
	// A slice that comes is looked into.
	late := w.mkdir("late.slice/late-a.slice/worker@c.service")
	w.until(watcher, "the late unit is found", groups("none", late))
	w.until(watcher, "and is an instance", func(have map[string]overlay.Workload) bool { return len(have["workers"].Cgroups) == 2 })
	if watcher.Problems()["workers"] != "unit worker@c.service is agent none's" {
		t.Errorf("problems: %v", watcher.Problems())
	}
}

func TestUsers(t *testing.T) {
	w := newWorld(t)
	watcher := w.watch(map[string]overlay.Match{
		"daemon": {User: "daemon"}, "number": {User: "4321"}, "nobody": {User: "no-such-user"}, "second": {User: "1"}, "host": {Host: true},
	})
	want := map[string]overlay.Workload{
		"daemon": {UIDs: []uint32{1}}, "number": {UIDs: []uint32{4321}}, "nobody": {}, "second": {}, "host": {Host: true},
	}
	if diff := cmp.Diff(want, watcher.Workloads()); diff != "" {
		t.Errorf("workloads (-want +got):\n%s", diff)
	}
	wantProblems := map[string]string{"nobody": `this host has no user "no-such-user"`, "second": "user 1 is agent daemon's"}
	if diff := cmp.Diff(wantProblems, watcher.Problems()); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
}

func TestUsersAreLookedUpAgain(t *testing.T) {
	w := newWorld(t)
	watcher := New(Options{Root: w.root})
	watcher.Set(map[string]overlay.Match{"a": {User: "daemon"}})
	watcher.users["daemon"] = account{uid: 7} // as it was before
	p := &patrol{Watcher: watcher}
	for name, matters := range map[string]bool{"/etc/hosts": false, "/etc/passwd": true} {
		if got := p.matters(created(name)); got != matters {
			t.Errorf("%s matters: %t", name, got)
		}
	}
	if got := watcher.look(); !got.dirs["/etc"] || !watcher.Workloads()["a"].Equal(overlay.Workload{UIDs: []uint32{1}}) {
		t.Errorf("after a change of passwd: %+v, watched %v", watcher.Workloads(), got.dirs)
	}
}

// What `bulkhead run` starts is the agent's, whatever it matches, and whatever another matches.
func TestRunsAreTheAgents(t *testing.T) {
	w := newWorld(t)
	matches := map[string]overlay.Match{
		"a": {Cgroup: "/bulkhead.slice/run-b"}, "b": {Host: true}, "b-c": {User: "4321"}, "d": {Run: true}, "b-x": {Run: true},
	}
	watcher := w.watch(matches)
	b, c, scope := w.mkdir("bulkhead.slice/run-b"), w.mkdir("bulkhead.slice/run-b-c"), w.mkdir("bulkhead.slice/bulkhead-run_b_abcd.scope")
	x := w.mkdir("bulkhead.slice/bulkhead-run_b-x_abcd.scope")
	w.mkdir("bulkhead.slice/bulkhead-run_d_abcd.service")
	w.mkdir("elsewhere.slice/run-d")
	want := map[string]overlay.Workload{
		"a": {}, "b": {Host: true, Cgroups: []uint64{b, scope}}, "b-c": {UIDs: []uint32{4321}, Cgroups: []uint64{c}}, "d": {}, "b-x": {Cgroups: []uint64{x}},
	}
	w.until(watcher, "runs are found", func(have map[string]overlay.Workload) bool { return cmp.Diff(want, have) == "" })
	wantProblems := map[string]string{"a": "cgroup /bulkhead.slice/run-b is agent b's", "d": "nothing runs as the agent now"}
	if diff := cmp.Diff(wantProblems, watcher.Problems()); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
	w.rmdir("bulkhead.slice/run-b-c")
	w.until(watcher, "a run ends", func(have map[string]overlay.Workload) bool {
		return have["b-c"].Equal(overlay.Workload{UIDs: []uint32{4321}})
	})
}

// What was run as an agent is known by where it is, also when nobody asks for that agent any more.
func TestRunAs(t *testing.T) {
	w := newWorld(t)
	for group, want := range map[string]string{
		"": "", "bulkhead.slice": "", "bulkhead.slice/run-b/x": "b", "bulkhead.slice/run-b-c": "b-c", "bulkhead.slice/bulkhead-run_b-c_abcd.scope/inner": "b-c",
		"bulkhead.slice/other.service": "", "bulkhead.slice/bulkhead-run_b_abcd.service": "", "elsewhere.slice/run-b": "", "elsewhere.slice/bulkhead.slice/run-b": "",
	} {
		w.mkdir(group)
		if got, err := RunAs(w.root+"/", w.process(group)); err != nil || got != want {
			t.Errorf("a process in %q: %q, %v; want %q", group, got, err, want)
		}
	}
	if got, err := RunAs("", os.Getpid()); err != nil || got != "" {
		t.Errorf("without cgroup v2: %q, %v", got, err)
	}
}

func TestSetChangesAtOnce(t *testing.T) {
	w := newWorld(t)
	one, two := w.mkdir("one"), w.mkdir("two")
	watcher := New(Options{Root: w.root})
	before := watcher.Changed()
	watcher.Set(map[string]overlay.Match{"a": {Cgroup: "/one"}, "b": {Cgroup: "/two"}})
	select {
	case <-before:
	default:
		t.Error("Changed is open")
	}
	if diff := cmp.Diff(map[string]overlay.Workload{"a": {Cgroups: []uint64{one}}, "b": {Cgroups: []uint64{two}}}, watcher.Workloads()); diff != "" {
		t.Errorf("workloads (-want +got):\n%s", diff)
	}
	before = watcher.Changed()
	watcher.Set(map[string]overlay.Match{"b": {Cgroup: "/two"}, "a": {Cgroup: "/one"}})
	select {
	case <-before:
		t.Error("Changed is closed though nothing changed")
	default:
	}
	watcher.Set(map[string]overlay.Match{"b": {Cgroup: "/two"}})
	if diff := cmp.Diff(map[string]overlay.Workload{"b": {Cgroups: []uint64{two}}}, watcher.Workloads()); diff != "" {
		t.Errorf("workloads (-want +got):\n%s", diff)
	}
}

func TestWithoutCgroups(t *testing.T) {
	w := &world{t, ""}
	watcher := w.watch(map[string]overlay.Match{
		"a": {Cgroup: "/x"}, "b": {Unit: "x.service"}, "c": {Container: &overlay.ContainerMatch{Name: "x"}}, "d": {User: "4321"}, "e": {Host: true},
	}, filepath.Join(t.TempDir(), "engine.sock"))
	none := "this host has no cgroup v2"
	if diff := cmp.Diff(map[string]string{"a": none, "b": none, "c": none}, watcher.Problems()); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
	if got := watcher.Workloads(); !got["e"].Host || len(got["d"].UIDs) != 1 {
		t.Errorf("workloads: %+v", got)
	}
	if ids, err := CgroupsOf("", os.Getpid()); err != nil || ids != nil {
		t.Errorf("cgroups: %v, %v", ids, err)
	}
}

func TestCgroupsOf(t *testing.T) {
	w := newWorld(t)
	outer, inner := w.mkdir("outer"), w.mkdir("outer/inner")
	for group, want := range map[string][]uint64{"outer/inner": {outer, inner}, "outer": {outer}, "": nil} {
		got, err := CgroupsOf(w.root+"/", w.process(group))
		if err != nil || cmp.Diff(want, got) != "" {
			t.Errorf("cgroups of a process in %q: %v, %v; want %v", group, got, err, want)
		}
	}
	if got, err := CgroupsOf(w.root, os.Getpid()); err != nil || got != nil {
		t.Errorf("cgroups of a process elsewhere: %v, %v", got, err)
	}
	if _, err := CgroupsOf(w.root, 1<<30); err == nil {
		t.Error("no error for a process that is not there")
	}
}

// Agents and others come and go by the hundred: neither descriptors nor watches stay.
func TestNothingStays(t *testing.T) {
	w := newWorld(t)
	matches := make(map[string]overlay.Match)
	for i := range 50 {
		matches[fmt.Sprintf("a%02d", i)] = overlay.Match{Cgroup: fmt.Sprintf("/agents/%d/own", i)}
	}
	matches["u"] = overlay.Match{Unit: "worker@*.service"}
	w.mkdir("agents")
	w.mkdir("system.slice")
	watcher := w.watch(matches)
	var before struct{ files, watches int }
	for round := range 4 {
		ids := make(map[string]uint64)
		for i := range 50 {
			ids[fmt.Sprintf("a%02d", i)] = w.mkdir(fmt.Sprintf("agents/%d/own", i))
			w.mkdir(fmt.Sprintf("system.slice/worker@%d.service", i))
			w.mkdir(fmt.Sprintf("system.slice/system-%d.slice", i))
		}
		w.until(watcher, "all are found", func(have map[string]overlay.Workload) bool {
			for agent, id := range ids {
				if !groups(agent, id)(have) {
					return false
				}
			}
			return len(have["u"].Cgroups) == 50
		})
		for i := range 50 {
			w.rmdir(fmt.Sprintf("agents/%d/own", i))
			w.rmdir(fmt.Sprintf("agents/%d", i))
			w.rmdir(fmt.Sprintf("system.slice/worker@%d.service", i))
			w.rmdir(fmt.Sprintf("system.slice/system-%d.slice", i))
		}
		w.until(watcher, "all are gone", func(have map[string]overlay.Workload) bool {
			for _, load := range have {
				if len(load.Cgroups) != 0 {
					return false
				}
			}
			return true
		})
		if round == 0 {
			w.settled(watcher)
			before = resources(t)
		}
	}
	eventually(t, "descriptors and watches are as before", func() bool { return resources(t) == before })
}

// BenchmarkLook is one look for 50 agents on a host with 200 units in 20 slices.
func BenchmarkLook(b *testing.B) {
	w := newWorld(b)
	matches := make(map[string]overlay.Match)
	for i := range 200 {
		w.mkdir(fmt.Sprintf("s%d.slice/u%d.service", i%20, i))
	}
	for i := range 50 {
		matches[fmt.Sprintf("a%02d", i)] = overlay.Match{Unit: fmt.Sprintf("u%d.service", i*3)}
	}
	watcher := New(Options{Root: w.root})
	watcher.Set(matches)
	for b.Loop() {
		watcher.look()
	}
	if len(watcher.Problems()) > 0 {
		b.Error(watcher.Problems())
	}
}

// settled waits until the watcher watches what there is, and nothing else.
func (w *world) settled(watcher *Watcher) {
	w.Helper()
	eventually(w.TB, "the watcher watches what there is", func() bool {
		dirs := 0
		for dir := range watcher.look().dirs {
			if isDir(dir) {
				dirs++
			}
		}
		return resources(w.TB).watches == dirs
	})
}

// resources are the open files and inotify watches of this process.
func resources(t testing.TB) (n struct{ files, watches int }) {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fdinfo")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if link, err := os.Readlink("/proc/self/fd/" + name.Name()); err == nil && strings.HasPrefix(link, "/proc/") {
			continue // a directory that is being read
		}
		text, err := os.ReadFile("/proc/self/fdinfo/" + name.Name())
		if err == nil {
			n.files++
			n.watches += strings.Count(string(text), "inotify wd:")
		}
	}
	return n
}

func TestStatOfProcess(t *testing.T) {
	tail := " S 7 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 4242 0 0\n"
	for name, stat := range map[string]string{"plain": "12 (sleep)" + tail, "hostile name": "12 (a) Z 9 (b)" + tail} {
		if p, err := parseStat(stat); err != nil || p.parent != 7 || p.started != 4242 {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
	}
	for name, stat := range map[string]string{"empty": "", "short": "12 (sleep) S 7", "ended": strings.Replace("12 (x)"+tail, " S ", " Z ", 1), "no number": strings.Replace("12 (x)"+tail, "4242", "x", 1)} {
		if p, err := parseStat(stat); err == nil {
			t.Errorf("%s: %+v", name, p)
		}
	}
	self, err := readProcess(os.Getpid())
	if err != nil || self.parent != unix.Getppid() {
		t.Errorf("this process: %+v, %v", self, err)
	}
}

func created(name string) fsnotify.Event { return fsnotify.Event{Name: name, Op: fsnotify.Create} }
