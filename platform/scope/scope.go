// Package scope puts processes into cgroups of agents, for `bulkhead run`: through systemd where it runs, by hand elsewhere.
package scope

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	"github.com/coreos/go-systemd/v22/util"
	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-mesh/bulkhead/platform/workload"
)

// systemdAnswer is how long systemd may take to make a scope.
const systemdAnswer = 10 * time.Second

// Options say where cgroups are.
type Options struct {
	Root string // directory of cgroup v2
}

// Scope is a cgroup that one run has.
type Scope struct {
	dir string
}

// Enter makes a cgroup of the agent and puts a process into it, with all that it will start. The process must be waiting:
// what it has started before stays where it is.
func Enter(ctx context.Context, o Options, agent string, pid int) (*Scope, error) {
	root := o.Root
	if root == "" {
		return nil, errors.New("run as an agent: this host has no cgroup v2")
	}
	before, err := startOf(pid)
	if err != nil {
		return nil, fmt.Errorf("run as agent %s: %w", agent, err)
	}
	var s *Scope
	if util.IsRunningSystemd() {
		s, err = enterSystemd(ctx, root, agent, pid)
	} else {
		s, err = enterByHand(root, agent, pid)
	}
	if err != nil {
		return nil, fmt.Errorf("run as agent %s: %w", agent, err)
	}
	// Another process may have got the number; it would be in the agent's cgroup now.
	if after, err := startOf(pid); err != nil || after != before {
		return nil, errors.Join(fmt.Errorf("run as agent %s: process %d has ended", agent, pid), s.kill(), s.Remove())
	}
	return s, nil
}

func enterByHand(root, agent string, pid int) (*Scope, error) {
	s := &Scope{filepath.Join(root, workload.RunDir, workload.RunGroup(agent), rand.Text()[:8])}
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(s.dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0); err != nil {
		return nil, errors.Join(err, s.Remove())
	}
	return s, nil
}

// enterSystemd has systemd make the scope, because below its root all cgroups are its own.
func enterSystemd(ctx context.Context, root, agent string, pid int) (*Scope, error) {
	ctx, cancel := context.WithTimeout(ctx, systemdAnswer)
	defer cancel()
	conn, err := dbus.NewSystemConnectionContext(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask systemd: %w", err)
	}
	defer conn.Close()
	name := workload.RunScope(agent) + strings.ToLower(rand.Text()[:8]) + ".scope"
	done := make(chan string, 1)
	_, err = conn.StartTransientUnitContext(ctx, name, "fail", properties(agent, pid), done)
	if err != nil {
		return nil, fmt.Errorf("ask systemd for a scope: %w", err)
	}
	select {
	case <-ctx.Done():
		return nil, fmt.Errorf("ask systemd for a scope: %w", ctx.Err())
	case result := <-done:
		if result != "done" {
			return nil, fmt.Errorf("systemd made no scope: %s", result)
		}
	}
	return &Scope{filepath.Join(root, workload.RunDir, name)}, nil
}

func properties(agent string, pid int) []dbus.Property {
	return []dbus.Property{
		dbus.PropDescription("bulkhead agent " + agent), dbus.PropSlice(workload.RunDir), dbus.PropPids(uint32(pid)),
		{Name: "CollectMode", Value: godbus.MakeVariant("inactive-or-failed")},
	}
}

// startOf is when a process started, which tells it from a later one with its number.
func startOf(pid int) (string, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	// The name, in brackets, may hold anything; the 20th field after it is the time.
	_, rest, _ := strings.Cut(string(stat[strings.LastIndexByte(string(stat), ')')+1:]), " ")
	fields := strings.Fields(rest)
	if len(fields) < 20 {
		return "", fmt.Errorf("process %d: no start time", pid)
	}
	return fields[19], nil
}

// Wait returns nil when the scope is empty, or gone.
func (s *Scope) Wait(ctx context.Context) error {
	events, err := os.Open(filepath.Join(s.dir, "cgroup.events"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("wait for %s: %w", s.dir, err)
	}
	defer events.Close()
	buf := make([]byte, 256)
	for ctx.Err() == nil {
		n, err := events.ReadAt(buf, 0)
		if errors.Is(err, unix.ENODEV) || strings.Contains(string(buf[:n]), "populated 0") {
			return nil
		}
		// The kernel marks the file when its content changes; ctx is looked at each half second.
		if _, err := unix.Poll([]unix.PollFd{{Fd: int32(events.Fd()), Events: unix.POLLPRI}}, 500); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for %s: %w", s.dir, err)
		}
	}
	return ctx.Err()
}

// Remove removes an empty scope, and the agent's cgroup with its last one.
func (s *Scope) Remove() error {
	if err := remove(s.dir); err != nil {
		return err
	}
	if parent := filepath.Dir(s.dir); filepath.Base(parent) != workload.RunDir {
		return remove(parent)
	}
	return nil
}

func (s *Scope) kill() error {
	return os.WriteFile(filepath.Join(s.dir, "cgroup.kill"), []byte("1"), 0)
}

// remove removes a cgroup that nobody uses; one that somebody does stays.
func remove(dir string) error {
	err := unix.Rmdir(dir)
	if err == nil || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EBUSY) || errors.Is(err, unix.ENOTEMPTY) {
		return nil
	}
	return fmt.Errorf("remove %s: %w", dir, err)
}

// Clean removes the empty cgroups that runs left while no daemon was there to remove them.
func Clean(root string) error {
	if root == "" || util.IsRunningSystemd() {
		return nil
	}
	dirs, err := filepath.Glob(filepath.Join(root, workload.RunDir, "run-*", "*"))
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		if info, err := os.Stat(dir); err == nil && info.IsDir() {
			err = (&Scope{dir}).Remove()
			if err != nil {
				return err
			}
		}
	}
	return nil
}
