package workload

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// podman is an engine of the test's own: its storage, its service and its containers' cgroups are nobody else's.
type podman struct {
	*world
	dir     string
	runtime string
	socket  string
	service *exec.Cmd
}

const image = "localhost/bulkhead-sleeper"

// startPodman starts an engine, with an image in which a process waits for its end.
func (w *world) startPodman(runtime string) *podman {
	w.Helper()
	dir, err := os.MkdirTemp("", "bulkhead-podman-") // short: it holds sockets
	if err != nil {
		w.Fatal(err)
	}
	p := &podman{world: w, dir: dir, runtime: runtime, socket: filepath.Join(dir, "engine.sock")}
	w.Cleanup(p.remove)
	p.buildImage()
	p.start()
	return p
}

func (p *podman) command(args ...string) *exec.Cmd {
	cmd := exec.Command("podman", append([]string{
		"--root", filepath.Join(p.dir, "root"), "--runroot", filepath.Join(p.dir, "run"), "--tmpdir", filepath.Join(p.dir, "tmp"),
		"--runtime", p.runtime, "--cgroup-manager", "cgroupfs", "--events-backend", "file",
	}, args...)...)
	cmd.Env = append(os.Environ(), "TMPDIR="+p.dir)
	return cmd
}

// podman runs the engine's own program and returns the last line that it says.
func (p *podman) podman(args ...string) string {
	p.Helper()
	out, err := p.try(args...)
	if err != nil {
		p.Fatal(err)
	}
	return out
}

func (p *podman) try(args ...string) (string, error) {
	cmd := p.command(args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("podman %s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	lines := strings.Split(strings.TrimSpace(stdout.String()), "\n")
	return lines[len(lines)-1], nil
}

// buildImage makes an image of one static program.
func (p *podman) buildImage() {
	p.Helper()
	context := filepath.Join(p.dir, "image")
	if err := os.Mkdir(context, 0o755); err != nil {
		p.Fatal(err)
	}
	build := exec.Command("go", "build", "-o", filepath.Join(context, "sleeper"), "./testdata/sleeper")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		p.Fatalf("build image: %v: %s", err, out)
	}
	file := "FROM scratch\nCOPY sleeper /sleeper\nENTRYPOINT [\"/sleeper\"]\n"
	if err := os.WriteFile(filepath.Join(context, "Dockerfile"), []byte(file), 0o644); err != nil {
		p.Fatal(err)
	}
	p.podman("build", "-q", "-t", image, context)
}

// start starts the engine's API.
func (p *podman) start() {
	p.Helper()
	p.service = p.command("system", "service", "--time", "0", "unix://"+p.socket)
	if err := p.service.Start(); err != nil {
		p.Fatal(err)
	}
	eventually(p.TB, "the engine listens", func() bool {
		conn, err := net.Dial("unix", p.socket)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
}

func (p *podman) stop() {
	p.Helper()
	if err := p.service.Process.Kill(); err != nil {
		p.Fatal(err)
	}
	_ = p.service.Wait()
	if err := os.Remove(p.socket); err != nil && !os.IsNotExist(err) {
		p.Fatal(err)
	}
}

// parent is the cgroup in which the engine makes those of containers, in the world's root.
func (p *podman) parent() string { return "/" + filepath.Base(p.root) + "/engine" }

// create makes a container; args go before the image.
func (p *podman) create(name string, args ...string) (id string) {
	p.Helper()
	return p.podman(append(append([]string{"create", "--name", name, "--network", "host", "--cgroup-parent", p.parent(),
		"--ulimit", "nofile=1024:4096", "--ulimit", "nproc=1024:4096"}, args...), image)...)
}

// run makes a container and starts it.
func (p *podman) run(name string, args ...string) (id string) {
	p.Helper()
	id = p.create(name, args...)
	p.podman("start", id)
	return id
}

func (p *podman) pid(id string) int {
	p.Helper()
	pid, err := strconv.Atoi(p.podman("inspect", "-f", "{{.State.Pid}}", id))
	if err != nil {
		p.Fatal(err)
	}
	return pid
}

// group is the ID of the cgroup of a container's own; 0 if there is none.
func (p *podman) group(id string) uint64 {
	got, err := ID(filepath.Join(p.root, "engine", "libpod-"+id))
	if err != nil {
		return 0
	}
	return got
}

// remove removes all that the engine made.
func (p *podman) remove() {
	if _, err := p.try("rm", "--all", "--force", "--time", "0"); err != nil {
		p.Error(err)
	}
	if p.service != nil {
		_ = p.service.Process.Kill()
		_ = p.service.Wait()
	}
	// What the engine runs after a container's end may be at it yet.
	eventually(p.TB, "the engine's storage is removed", func() bool {
		_ = unix.Unmount(filepath.Join(p.dir, "root", "overlay"), unix.MNT_DETACH)
		return os.RemoveAll(p.dir) == nil
	})
	// Of version 1, where this host has it; that of version 2 goes with the world.
	dirs, err := filepath.Glob("/sys/fs/cgroup/*/" + filepath.Base(p.root))
	if err != nil {
		p.Error(err)
	}
	for _, dir := range dirs {
		if dir != p.root {
			removeGroupV1(p.TB, dir)
		}
	}
}

// removeGroupV1 removes a cgroup of version 1, which may hold the monitors of containers for a moment yet.
func removeGroupV1(t testing.TB, dir string) {
	t.Helper()
	eventually(t, "cgroup "+dir+" is removed", func() bool {
		subs, _ := filepath.Glob(filepath.Join(dir, "*", "*"))
		more, _ := filepath.Glob(filepath.Join(dir, "*"))
		for _, sub := range append(append(subs, more...), dir) {
			_ = syscall.Rmdir(sub)
		}
		_, err := os.Stat(dir)
		return os.IsNotExist(err)
	})
}
