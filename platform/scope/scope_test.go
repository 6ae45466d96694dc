package scope

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-mesh/bulkhead/platform/workload"
)

// soon is far beyond what anything here takes on a busy machine.
const soon = 15 * time.Second

const actorEnv = "BULKHEAD_SCOPE_TEST"

func TestMain(m *testing.M) {
	if os.Getenv(actorEnv) != "" {
		act()
		return
	}
	goleak.VerifyTestMain(m)
}

// act starts another process for each line, and waits for its end as they do.
func act() {
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		child := exec.Command("/bin/sh", "-c", "read line")
		child.Stdin = os.Stdin
		if err := child.Start(); err != nil {
			os.Exit(1)
		}
		os.Stdout.WriteString(strconv.Itoa(child.Process.Pid) + "\n")
		_ = child.Wait()
	}
}

func newRoot(t *testing.T) string {
	t.Helper()
	mount := ""
	f, err := os.Open("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan() && mount == ""; {
		if fields := strings.Fields(lines.Text()); fields[2] == "cgroup2" {
			mount = fields[1]
		}
	}
	root := filepath.Join(mount, "bulkhead-scope-test-"+strings.ToLower(rand.Text()[:8]))
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatalf("tests of scope run as root, where cgroup v2 is: %v", err)
	}
	t.Cleanup(func() {
		_ = os.WriteFile(filepath.Join(root, "cgroup.kill"), []byte("1"), 0)
		eventually(t, "the test's cgroups are removed", func() bool {
			if err := remove(root); err != nil {
				t.Fatal(err)
			}
			_, err := os.Stat(root)
			return os.IsNotExist(err)
		})
	})
	return root
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for deadline := time.After(soon); !ok(); {
		select {
		case <-ticker.C:
		case <-deadline:
			t.Fatalf("not within %s: %s", soon, what)
		}
	}
}

// actor is a process that waits, and can start others.
type actor struct {
	*testing.T
	pid    int
	stdin  io.WriteCloser
	stdout *bufio.Reader
	end    func()
}

func start(t *testing.T) *actor {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), actorEnv+"=1")
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	end := sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = stdin.Close()
		_ = cmd.Wait()
	})
	t.Cleanup(end)
	return &actor{t, cmd.Process.Pid, stdin, bufio.NewReader(stdout), end}
}

// fork has the actor start a process.
func (a *actor) fork() (pid int) {
	a.Helper()
	if _, err := io.WriteString(a.stdin, "fork\n"); err != nil {
		a.Fatal(err)
	}
	line, err := a.stdout.ReadString('\n')
	if err != nil {
		a.Fatal(err)
	}
	if pid, err = strconv.Atoi(strings.TrimSpace(line)); err != nil {
		a.Fatal(err)
	}
	return pid
}

// within reports whether a process is in a cgroup.
func within(t *testing.T, root, dir string, pid int) bool {
	t.Helper()
	id, err := workload.ID(dir)
	if err != nil {
		t.Fatal(err)
	}
	ids, err := workload.CgroupsOf(root, pid)
	if err != nil {
		t.Fatal(err)
	}
	for _, have := range ids {
		if have == id {
			return true
		}
	}
	return false
}

func TestEnterAndWait(t *testing.T) {
	root := newRoot(t)
	one, two := start(t), start(t)
	verified := 0
	first, err := Enter(t.Context(), Options{Root: root, Verify: func() error { verified++; return nil }}, "planner", one.pid)
	if err != nil {
		t.Fatal(err)
	}
	second, err := Enter(t.Context(), Options{Root: root}, "planner", two.pid)
	if err != nil {
		t.Fatal(err)
	}
	agents := filepath.Join(root, "bulkhead.slice", "run-planner")
	child := one.fork()
	if verified != 1 || !within(t, root, agents, one.pid) || !within(t, root, agents, child) || !within(t, root, first.Dir(), child) || within(t, root, first.Dir(), two.pid) {
		t.Errorf("verified %d times; %s", verified, first.Dir())
	}

	// It waits for what the process started, not for the process.
	waited := make(chan error, 1)
	var waiting sync.WaitGroup
	waiting.Go(func() { waited <- first.Wait(t.Context()) })
	if err := unix.Kill(one.pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the process is gone", func() bool { return strings.TrimSpace(read(t, first.Dir(), "cgroup.procs")) == strconv.Itoa(child) })
	select {
	case err := <-waited:
		t.Fatalf("did not wait for the child: %v", err)
	default:
	}
	if err := first.Remove(); err != nil {
		t.Error(err)
	}
	if !within(t, root, first.Dir(), child) {
		t.Error("a scope that is in use was removed")
	}
	if err := unix.Kill(child, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	waiting.Wait()
	if err := <-waited; err != nil {
		t.Error(err)
	}
	if err := errors.Join(first.Remove(), first.Remove(), first.Wait(t.Context())); err != nil {
		t.Errorf("a scope that is removed: %v", err)
	}
	if !within(t, root, agents, two.pid) {
		t.Error("the other run lost its cgroup")
	}
	two.end()
	if err := errors.Join(second.Wait(t.Context()), second.Remove()); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(agents); !os.IsNotExist(err) {
		t.Errorf("the agent's cgroup is left: %v", err)
	}
}

func read(t *testing.T, dir, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestWaitEndsWithContext(t *testing.T) {
	root := newRoot(t)
	a := start(t)
	s, err := Enter(t.Context(), Options{Root: root}, "planner", a.pid)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var waiting sync.WaitGroup
	waiting.Go(func() {
		if err := s.Wait(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("wait: %v", err)
		}
	})
	cancel()
	waiting.Wait()
	if err := s.Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("wait with an ended context: %v", err)
	}
}

// A process that is another than the one that asked is given back, with what it started.
func TestWrongProcessIsGivenBack(t *testing.T) {
	root := newRoot(t)
	a := start(t)
	fault := errors.New("another has its number")
	var child int
	_, err := Enter(t.Context(), Options{Root: root, Verify: func() error { child = a.fork(); return fault }}, "planner", a.pid)
	if !errors.Is(err, fault) || !strings.HasPrefix(err.Error(), "run as agent planner: ") {
		t.Errorf("enter: %v", err)
	}
	for _, pid := range []int{a.pid, child} {
		if ids, err := workload.CgroupsOf(root, pid); err != nil || len(ids) != 0 {
			t.Errorf("process %d is in %v, %v", pid, ids, err)
		}
	}
	if _, err := os.Stat(filepath.Join(root, "bulkhead.slice", "run-planner")); !os.IsNotExist(err) {
		t.Errorf("the agent's cgroup is left: %v", err)
	}
}

func TestEnterRefuses(t *testing.T) {
	root := newRoot(t)
	dead := start(t)
	dead.end()
	for name, c := range map[string]struct {
		root string
		pid  int
		want string
	}{
		"without cgroups": {"", os.Getpid(), "run as agent a: this host has no cgroup v2"},
		"no process":      {root, dead.pid, "run as agent a: find process " + strconv.Itoa(dead.pid) + ": no such process"},
		"no number":       {root, -1, "run as agent a: find process -1: invalid argument"},
	} {
		if _, err := Enter(t.Context(), Options{Root: c.root}, "a", c.pid); err == nil || err.Error() != c.want {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := os.Stat(filepath.Join(root, "bulkhead.slice")); !os.IsNotExist(err) {
		t.Errorf("something is left: %v", err)
	}
}

// Runs of one agent come and go at once: none finds its cgroup removed by another.
func TestRunsAtOnce(t *testing.T) {
	root := newRoot(t)
	var runs sync.WaitGroup
	for range 8 {
		a := start(t)
		runs.Go(func() {
			for range 50 {
				s, err := Enter(t.Context(), Options{Root: root}, "planner", a.pid)
				if err == nil {
					err = s.undo()
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	runs.Wait()
	if _, err := os.Stat(filepath.Join(root, "bulkhead.slice", "run-planner")); !os.IsNotExist(err) {
		t.Errorf("the agent's cgroup is left: %v", err)
	}
}

func TestClean(t *testing.T) {
	root := newRoot(t)
	a := start(t)
	s, err := Enter(t.Context(), Options{Root: root}, "busy", a.pid)
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"run-left/a/b", "run-left/c", "run-busy/old", "container-abc", "other.scope"} {
		if err := os.MkdirAll(filepath.Join(root, "bulkhead.slice", dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := Clean(root); err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]bool{"run-left": false, "run-busy/old": false, "container-abc": true, "other.scope": true} {
		if _, err := os.Stat(filepath.Join(root, "bulkhead.slice", dir)); (err == nil) != want {
			t.Errorf("%s: %v", dir, err)
		}
	}
	if !within(t, root, s.Dir(), a.pid) {
		t.Error("a run lost its cgroup")
	}
	a.end()
	for _, dir := range []string{"container-abc", "other.scope"} {
		if err := os.Remove(filepath.Join(root, "bulkhead.slice", dir)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(s.Wait(t.Context()), Clean(root), Clean(root), Clean("")); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(root, "bulkhead.slice")); !os.IsNotExist(err) {
		t.Errorf("bulkhead.slice is left: %v", err)
	}
}
