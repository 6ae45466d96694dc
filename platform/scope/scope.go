package scope

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/coreos/go-systemd/v22/util"
	"golang.org/x/sys/unix"
)

// Options say where cgroups are.
type Options struct {
	Root string // directory of cgroup v2

	// Verify says whether the number is still that of the process that asked, as its socket knows. It is called when the
	// process is in its cgroup, which is undone on an error. Without it, what was known when Enter began counts.
	Verify func() error
}

// Scope is a cgroup that one run has.
type Scope struct {
	root, dir string
}

// Enter makes a cgroup of the agent and puts a process into it, with all that it will start. The process must be waiting:
// what it has started before stays where it is.
func Enter(ctx context.Context, o Options, agent string, pid int) (*Scope, error) {
	s, err := enter(ctx, o, agent, pid)
	if err != nil {
		return nil, fmt.Errorf("run as agent %s: %w", agent, err)
	}
	return s, nil
}

func enter(ctx context.Context, o Options, agent string, pid int) (*Scope, error) {
	if o.Root == "" {
		return nil, errors.New("this host has no cgroup v2")
	}
	asker, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("find process %d: %w", pid, err)
	}
	defer unix.Close(asker)
	var s *Scope
	if util.IsRunningSystemd() {
		s, err = enterSystemd(ctx, o.Root, agent, pid)
	} else {
		s, err = enterByHand(o.Root, agent, pid)
	}
	if err != nil {
		return nil, err
	}
	// While it lives nobody else gets its number.
	err = alive(asker, pid)
	if err == nil && o.Verify != nil {
		err = o.Verify()
	}
	if err != nil {
		return nil, errors.Join(err, s.undo())
	}
	return s, nil
}

// alive asks for the end of a process: its descriptor is readable then.
func alive(pidfd, pid int) error {
	ended, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 0)
	for errors.Is(err, unix.EINTR) { // by a signal of the runtime's own
		ended, err = unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 0)
	}
	if err != nil {
		return fmt.Errorf("look for process %d: %w", pid, err)
	}
	if ended != 0 {
		return fmt.Errorf("process %d has ended", pid)
	}
	return nil
}

// undo gives what is in the scope back to the host, where nothing is an agent's, and removes it.
func (s *Scope) undo() error {
	members, err := os.ReadFile(filepath.Join(s.dir, "cgroup.procs"))
	if err != nil && !gone(err) {
		return fmt.Errorf("empty %s: %w", s.dir, err)
	}
	for pid := range strings.FieldsSeq(string(members)) {
		if err := put(s.root, pid); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	return s.Remove()
}

// put moves a process, with all its threads.
func put(dir, pid string) error {
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(pid), 0); err != nil {
		return fmt.Errorf("put process %s into %s: %w", pid, dir, err)
	}
	return nil
}

// Dir is the scope's directory in the cgroup v2 hierarchy.
func (s *Scope) Dir() string { return s.dir }

// Wait returns nil when nothing is in the scope any more, or the error of ctx.
func (s *Scope) Wait(ctx context.Context) error {
	events, err := os.Open(filepath.Join(s.dir, "cgroup.events"))
	if gone(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("wait for %s: %w", s.dir, err)
	}
	defer events.Close()
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("wait for %s: %w", s.dir, err)
	}
	defer unix.Close(wake)
	woken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(woken)
		_, _ = unix.Write(wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}) // an empty counter takes it
	})
	defer func() {
		if !stop() {
			<-woken
		}
	}()
	for ctx.Err() == nil {
		populated, err := isPopulated(events)
		if err != nil {
			return fmt.Errorf("wait for %s: %w", s.dir, err)
		}
		if !populated {
			return nil
		}
		// The kernel marks the file when it says something new.
		fds := []unix.PollFd{{Fd: int32(events.Fd()), Events: unix.POLLPRI}, {Fd: int32(wake), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for %s: %w", s.dir, err)
		}
	}
	return ctx.Err()
}

func isPopulated(events *os.File) (bool, error) {
	text := make([]byte, 256)
	n, err := events.ReadAt(text, 0)
	if gone(err) {
		return false, nil
	}
	if n == 0 {
		return false, fmt.Errorf("read cgroup.events: %w", err)
	}
	return !strings.Contains(string(text[:n]), "populated 0"), nil
}

// gone reports whether an error says that a cgroup is not there any more.
func gone(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) }
