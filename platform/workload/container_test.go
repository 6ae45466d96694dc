package workload

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-mesh/bulkhead/overlay"
)

func TestContainerComesAndGoes(t *testing.T) {
	w := newWorld(t)
	p := w.startPodman("runc")
	watcher := w.watch(map[string]overlay.Match{
		"named": {Container: &overlay.ContainerMatch{Name: "web"}}, "labelled": {Container: &overlay.ContainerMatch{Label: "team=blue"}},
		"imaged": {Container: &overlay.ContainerMatch{Image: "other-image"}},
	}, p.socket)
	none := map[string]string{"named": "no container runs that is container.name=web", "labelled": "no container runs that is container.label=team=blue", "imaged": "no container runs that is container.image=other-image"}
	eventually(t, "the engine answers", func() bool { return cmp.Diff(none, watcher.Problems()) == "" })

	p.run("stranger")
	web, blue := p.run("web"), p.run("any", "--label", "team=blue")
	has := func(agent, id string) func(map[string]overlay.Workload) bool {
		return func(have map[string]overlay.Workload) bool { return groups(agent, p.group(id))(have) }
	}
	w.until(watcher, "web is found", has("named", web))
	w.until(watcher, "the blue one is found", has("labelled", blue))
	w.until(watcher, "no other image", groups("imaged"))

	t.Run("killed", func(t *testing.T) {
		p.podman("kill", "--signal", "KILL", web)
		within(t, "gone", w.until(watcher, "web is gone", groups("named")))
	})
	t.Run("started again", func(t *testing.T) {
		p.podman("start", web)
		within(t, "found", w.until(watcher, "web is found again", has("named", web)))
	})
	t.Run("restarted", func(t *testing.T) {
		before := p.group(web)
		p.podman("restart", "--time", "0", web)
		within(t, "found", w.until(watcher, "the new web is found", func(have map[string]overlay.Workload) bool {
			return p.group(web) != before && has("named", web)(have)
		}))
	})
	t.Run("renamed", func(t *testing.T) {
		p.podman("rename", web, "old-web")
		within(t, "gone", w.until(watcher, "web has another name", groups("named")))
		p.podman("rename", web, "web")
		within(t, "found", w.until(watcher, "web has its name again", has("named", web)))
	})
	t.Run("removed", func(t *testing.T) {
		p.podman("rm", "--force", "--time", "0", web)
		within(t, "gone", w.until(watcher, "web is gone", groups("named")))
		within(t, "found", w.until(watcher, "another is web", has("named", p.run("web"))))
	})
	t.Run("matched by two", func(t *testing.T) {
		both := p.run("both", "--label", "team=red")
		watcher.Set(map[string]overlay.Match{
			"first": {Container: &overlay.ContainerMatch{Name: "both"}}, "second": {Container: &overlay.ContainerMatch{Label: "team=red"}},
			"third": {Container: &overlay.ContainerMatch{Image: "bulkhead-sleeper", Name: "web"}},
		})
		w.until(watcher, "the first has it", has("first", both))
		if got := watcher.Problems()["second"]; got != "container both is agent first's" || !groups("second")(watcher.Workloads()) {
			t.Errorf("second: %q, %+v", got, watcher.Workloads()["second"])
		}
		if got := watcher.Workloads()["third"].Cgroups; len(got) != 1 {
			t.Errorf("third: %v", got)
		}
	})
}

// TestTimeUntilContainerIsFound measures from when the engine has started a container until Changed.
func TestTimeUntilContainerIsFound(t *testing.T) {
	w := newWorld(t)
	p := w.startPodman("runc")
	watcher := w.watch(map[string]overlay.Match{"a": {Container: &overlay.ContainerMatch{Label: "agent=a"}}}, p.socket)
	watcher.Settle(t.Context())
	var found, gone []time.Duration
	for i := range 12 {
		id := p.create(fmt.Sprint("c", i), "--label", "agent=a")
		seen := make(chan time.Time, 1)
		waiting := sync.WaitGroup{}
		waiting.Go(func() {
			for changed := watcher.Changed(); len(watcher.Workloads()["a"].Cgroups) == 0; changed = watcher.Changed() {
				select {
				case <-changed:
				case <-t.Context().Done():
					return
				}
			}
			seen <- time.Now()
		})
		p.podman("start", id)
		started, err := time.Parse(time.RFC3339Nano, p.podman("inspect", "-f", "{{.State.StartedAt.Format \"2006-01-02T15:04:05.999999999Z07:00\"}}", id))
		if err != nil {
			t.Fatal(err)
		}
		waiting.Wait()
		found = append(found, (<-seen).Sub(started))
		pid := p.pid(id)
		died := time.Now()
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		w.until(watcher, "it is gone", groups("a"))
		gone = append(gone, time.Since(died))
		p.podman("rm", "--force", "--time", "0", id)
	}
	slices.Sort(found)
	slices.Sort(gone)
	t.Logf("found: median %s, worst %s; gone: median %s, worst %s", found[len(found)/2], found[len(found)-1], gone[len(gone)/2], gone[len(gone)-1])
	if found[len(found)/2] > 200*time.Millisecond || found[len(found)-1] > time.Second || gone[len(gone)-1] > time.Second {
		t.Errorf("found %v, gone %v", found, gone)
	}
}

// within is what the product promises of containers.
func within(t *testing.T, what string, took time.Duration) {
	t.Helper()
	t.Logf("%s after %s", what, took)
	if took > time.Second {
		t.Errorf("%s after %s: more than a second", what, took)
	}
}

// An engine that is restarted has its containers all the while; those that came and went meanwhile are seen then.
func TestEngineComesAndGoes(t *testing.T) {
	w := newWorld(t)
	watcher := w.watch(map[string]overlay.Match{"a": {Container: &overlay.ContainerMatch{Name: "web"}}}, filepath.Join(t.TempDir(), "none.sock"))
	watcher.Settle(t.Context())
	if got := watcher.Problems()["a"]; !strings.HasPrefix(got, "no container engine at ") || !strings.HasSuffix(got, "there is no socket") {
		t.Errorf("problem: %q", got)
	}
	p := w.startPodman("runc")
	web := p.run("web")
	watcher = w.watch(map[string]overlay.Match{"a": {Container: &overlay.ContainerMatch{Name: "web"}}}, p.socket)
	watcher.Settle(t.Context())
	if !groups("a", p.group(web))(watcher.Workloads()) {
		t.Fatalf("settled with %+v, %v", watcher.Workloads(), watcher.Problems())
	}
	p.stop()
	eventually(t, "the engine is away", func() bool { _, err := watcher.engines[0].running(); return err != nil })
	if !groups("a", p.group(web))(watcher.Workloads()) || len(watcher.Problems()) > 0 {
		t.Errorf("without the engine: %+v, %v", watcher.Workloads(), watcher.Problems())
	}
	p.podman("rm", "--force", "--time", "0", web)
	within(t, "gone", w.until(watcher, "the cgroup is gone without the engine", groups("a")))
	web = p.run("web")
	p.start()
	w.until(watcher, "the engine says what came", func(have map[string]overlay.Workload) bool { return groups("a", p.group(web))(have) })
	// Where no agent is a container any more, the engine is left alone.
	watcher.Set(map[string]overlay.Match{"a": {Host: true}})
	w.until(watcher, "nothing of the container is left", func(have map[string]overlay.Workload) bool { return have["a"].Equal(overlay.Workload{Host: true}) })
}

// A user's engine could say of any process that it is an agent.
func TestEngineOfAUserIsNotAsked(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	for at := dir; at != os.TempDir(); at = filepath.Dir(at) {
		if err := os.Chmod(at, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	socket := filepath.Join(dir, "engine.sock")
	w.role("listen "+socket, &syscall.Credential{Uid: 65534, Gid: 65534})
	eventually(t, "the user listens", func() bool { _, err := os.Stat(socket); return err == nil })
	watcher := w.watch(map[string]overlay.Match{"a": {Container: &overlay.ContainerMatch{Name: "web"}}}, socket)
	eventually(t, "the watcher says why", func() bool {
		return strings.Contains(watcher.Problems()["a"], "it is user 65534's, and only root's can say which processes are an agent")
	})
}

// A container that has no cgroup of its own is moved, with all its processes, also those of later, and their cgroup goes
// with it.
func TestContainerWithoutCgroup(t *testing.T) {
	w := newWorld(t)
	p := w.startPodman(withoutUnified(t))
	watcher := w.watch(map[string]overlay.Match{"a": {Container: &overlay.ContainerMatch{Label: "agent=a"}}}, p.socket)
	stranger := p.run("stranger")
	id := p.podman("run", "--detach", "--name", "web", "--label", "agent=a", "--network", "host", "--cgroup-parent", p.parent(),
		"--ulimit", "nofile=1024:4096", "--ulimit", "nproc=1024:4096", image, "two")
	home := moveDir(w.root, id)
	within(t, "found", w.until(watcher, "the container is found", func(have map[string]overlay.Workload) bool {
		got, err := ID(home)
		return err == nil && groups("a", got)(have)
	}))
	inside := func() []int { return membersOf(t, home) }
	if got := inside(); len(got) != 2 || !slices.Contains(got, p.pid(id)) {
		t.Errorf("moved are %v, not %d and its other", got, p.pid(id))
	}
	if at, err := groupOf(w.root, p.pid(stranger)); err != nil || isBelow(w.root, at) {
		t.Errorf("the stranger is in %s, %v", at, err)
	}
	p.podman("exec", "--detach", id, "/sleeper")
	eventually(t, "what enters later is moved", func() bool { return len(inside()) == 3 })

	again, cancel := context.WithCancel(t.Context())
	defer cancel()
	second := New(Options{Root: w.root, Sockets: []string{p.socket}, Logger: watcher.options.Logger})
	second.Set(map[string]overlay.Match{"a": {Container: &overlay.ContainerMatch{Label: "agent=a"}}})
	done := make(chan error, 1)
	go func() { done <- second.Run(again) }()
	second.Settle(t.Context())
	if got, err := ID(home); err != nil || !groups("a", got)(second.Workloads()) {
		t.Errorf("a watcher that starts later settles with %+v, %v", second.Workloads(), second.Problems())
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}

	p.podman("restart", "--time", "0", id)
	eventually(t, "the container's new processes are moved", func() bool { return slices.Contains(inside(), p.pid(id)) && len(inside()) == 2 })
	p.podman("rm", "--force", "--time", "0", id)
	within(t, "gone", w.until(watcher, "the container is gone", groups("a")))
	eventually(t, "its cgroup is removed", func() bool { return !isDir(home) })
}

// withoutUnified is a runtime that knows cgroups of version 1 only, as older ones do on hosts with both.
func withoutUnified(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "runc")
	script := fmt.Sprintf("#!/bin/sh\nexec unshare --mount sh -c 'umount %s && exec runc \"$@\"' runc \"$@\"\n", unified(t))
	if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func membersOf(t *testing.T, dir string) (pids []int) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return nil
	}
	for field := range strings.FieldsSeq(string(text)) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	return pids
}

func TestImages(t *testing.T) {
	for _, c := range []struct {
		want, have string
		same       bool
	}{
		{"planner", "planner", true}, {"planner", "localhost/planner:latest", true}, {"planner", "docker.io/library/planner", true},
		{"planner:1", "localhost/planner:1", true}, {"planner:1", "localhost/planner:2", false}, {"planner:1", "planner", false},
		{"acme/planner", "docker.io/acme/planner:3", true}, {"planner", "docker.io/acme/planner", false},
		{"planner", "evil.example/planner", false}, {"planner", "evil.example/localhost/planner", false},
		{"reg.example:5000/planner", "reg.example:5000/planner:1", true}, {"reg.example", "reg.example:5000/planner", false},
		{"planner", "docker.io/library/planner@sha256:00", true}, {"planner:1", "localhost/planner:1@sha256:00", true},
	} {
		if got := sameImage(c.want, c.have); got != c.same {
			t.Errorf("sameImage(%q, %q) = %t", c.want, c.have, got)
		}
	}
}

func TestProcessesOfContainer(t *testing.T) {
	const host = "pid:[1]"
	id := strings.Repeat("ab", 32)
	c := container{id: id, pid: 10, started: 5}
	all := table{
		1: {space: host, cgroups: "0::/\n"}, 10: {parent: 9, started: 5, space: "pid:[2]", cgroups: "0::/\n"},
		9:  {parent: 1, space: host, cgroups: "1:pids:/machine.slice/libpod-conmon-" + id + ".scope\n"},
		11: {parent: 10, space: "pid:[3]"}, 12: {parent: 1, space: "pid:[2]"}, 13: {parent: 1, space: host, cgroups: "1:pids:/x/libpod-" + id + "\n0::/\n"},
		14: {parent: 13, space: host}, 15: {parent: 16, space: host}, 16: {parent: 15, space: host}, 17: {parent: 404, space: host},
	}
	got := all.of(c, host)
	slices.Sort(got)
	if diff := cmp.Diff([]int{10, 11, 12, 13, 14}, got); diff != "" {
		t.Errorf("processes (-want +got):\n%s", diff)
	}
	// With the host's own processes in sight, the host is no part of it.
	onHost := table{1: {space: host}, 10: {parent: 1, started: 5, space: host}, 11: {parent: 10, space: host}, 12: {parent: 1, space: host}}
	got = onHost.of(c, host)
	slices.Sort(got)
	if diff := cmp.Diff([]int{10, 11}, got); diff != "" {
		t.Errorf("processes (-want +got):\n%s", diff)
	}
	c.started++
	if got := all.of(c, host); got != nil {
		t.Errorf("another process has its number: %v", got)
	}
}
