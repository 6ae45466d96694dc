package workload

import (
	"bufio"
	"context"
	"crypto/rand"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-mesh/bulkhead/overlay"
)

// soon is far beyond what anything here takes on a busy machine.
const soon = 15 * time.Second

// roleEnv makes the test's binary a process that waits.
const roleEnv = "BULKHEAD_WORKLOAD_TEST"

func TestMain(m *testing.M) {
	role, path, _ := strings.Cut(os.Getenv(roleEnv), " ")
	if role == "listen" {
		listener, err := net.Listen("unix", path)
		if err != nil {
			os.Exit(1)
		}
		defer listener.Close()
	}
	if role != "" {
		_, _ = os.Stdin.Read(make([]byte, 1)) // until the test ends it, or ends
		return
	}
	goleak.VerifyTestMain(m)
}

// world is a part of the host's cgroups that is a root for a watcher.
type world struct {
	testing.TB
	root string
}

func newWorld(t testing.TB) *world {
	t.Helper()
	root := filepath.Join(unified(t), "bulkhead-workload-test-"+strings.ToLower(rand.Text()[:8]))
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatalf("tests of workload run as root: %v", err)
	}
	t.Cleanup(func() { removeGroup(t, root) })
	return &world{t, root}
}

// unified is where cgroup v2 is mounted.
func unified(t testing.TB) string {
	t.Helper()
	f, err := os.Open("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); fields[2] == "cgroup2" {
			return fields[1]
		}
	}
	t.Fatal("cgroup v2 is not mounted")
	return ""
}

// removeGroup ends what is in a cgroup, and removes it with all below.
func removeGroup(t testing.TB, dir string) {
	t.Helper()
	_ = os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0)
	eventually(t, "cgroup "+dir+" is removed", func() bool {
		var dirs []string
		_ = filepath.WalkDir(dir, func(name string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, name)
			}
			return nil
		})
		for i := len(dirs) - 1; i >= 0; i-- {
			_ = unix.Rmdir(dirs[i])
		}
		_, err := os.Stat(dir)
		return os.IsNotExist(err)
	})
}

func (w *world) mkdir(path string) (id uint64) {
	w.Helper()
	dir := filepath.Join(w.root, path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		w.Fatal(err)
	}
	id, err := ID(dir)
	if err != nil {
		w.Fatal(err)
	}
	return id
}

func (w *world) rmdir(path string) {
	w.Helper()
	if err := unix.Rmdir(filepath.Join(w.root, path)); err != nil {
		w.Fatal(err)
	}
}

// process starts one that waits, in a cgroup of the world; empty is its root.
func (w *world) process(group string) int {
	w.Helper()
	pid := w.role("wait", nil)
	w.move(pid, group)
	return pid
}

// role starts a process of the test's binary, as a user.
func (w *world) role(role string, user *syscall.Credential) (pid int) {
	w.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleEnv+"="+role)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: user}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		w.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { stdin.Close(); _ = cmd.Wait() })
	return cmd.Process.Pid
}

func (w *world) move(pid int, group string) {
	w.Helper()
	if err := os.WriteFile(filepath.Join(w.root, group, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0); err != nil {
		w.Fatal(err)
	}
}

// watch starts a watcher.
func (w *world) watch(matches map[string]overlay.Match, sockets ...string) *Watcher {
	w.Helper()
	watcher := New(Options{Root: w.root, Sockets: sockets, Logger: slog.New(slog.NewTextHandler(w.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))})
	watcher.Set(matches)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- watcher.Run(ctx) }()
	w.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			w.Error(err)
		}
	})
	return watcher
}

// until waits for a state of the watcher by its Changed alone, and returns how long that took.
func (w *world) until(watcher *Watcher, what string, ok func(map[string]overlay.Workload) bool) time.Duration {
	w.Helper()
	start := time.Now()
	deadline := time.After(soon)
	for {
		changed := watcher.Changed()
		if ok(watcher.Workloads()) {
			return time.Since(start)
		}
		select {
		case <-changed:
		case <-deadline:
			w.Fatalf("not within %s: %s; found %+v, problems %v", soon, what, watcher.Workloads(), watcher.Problems())
		}
	}
}

// eventually is for what nothing tells of.
func eventually(t testing.TB, what string, ok func() bool) {
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

func groups(agent string, ids ...uint64) func(map[string]overlay.Workload) bool {
	want := overlay.Workload{Cgroups: ids}
	return func(have map[string]overlay.Workload) bool { return have[agent].Equal(want) }
}
