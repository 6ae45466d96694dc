package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
)

// Order is what an actor is told to do: see deploy/lab/actor.
type Order struct {
	Do      string   `json:"do"`
	Network string   `json:"network,omitempty"`
	Local   string   `json:"local,omitempty"`
	Remote  string   `json:"remote,omitempty"`
	Server  string   `json:"server,omitempty"`
	Command []string `json:"command,omitempty"`
	Count   int      `json:"count,omitempty"`
}

// Reply is what an actor answers.
type Reply struct {
	Error  string   `json:"error"`
	Local  string   `json:"local"`
	Remote string   `json:"remote"`
	Names  []string `json:"names"`
	Output string   `json:"output"`
	Took   []int64  `json:"took"` // ns
}

// Actor is a program on a host that does on its network what it is told, until Close.
type Actor struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
	log strings.Builder // what it prints as errors

	mu sync.Mutex // one order at a time
}

// BuildActor builds the actor's program, static, into dir.
func BuildActor(ctx context.Context, dir string) (path string, err error) {
	path = filepath.Join(dir, "actor")
	cmd := exec.CommandContext(ctx, "go", "build", "-o", path, "github.com/bulkhead-mesh/bulkhead/deploy/lab/actor")
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0")
	return path, run(cmd, "build actor")
}

// Cgroup makes a cgroup below the host's, of a path as for `match: {cgroup: ...}`.
func (h *Host) Cgroup(path string) error { return mkdirAll(filepath.Join(h.group.path(), path)) }

// RemoveCgroup ends what runs in a cgroup below the host's, and removes it.
func (h *Host) RemoveCgroup(path string) error {
	return removeCgroup(filepath.Join(h.group.path(), path))
}

// CgroupRoot is the directory of the host's cgroup.
func (h *Host) CgroupRoot() string { return h.group.path() }

// Act starts a program that obeys orders, in a cgroup below the host's, as the user with this ID.
func (h *Host) Act(group string, uid int, program string, args ...string) (*Actor, error) {
	a := &Actor{cmd: h.command(h.world.ctx, program, args)}
	a.cmd.Stderr = &a.log
	if uid != 0 {
		a.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	}
	in, err := a.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := a.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	a.in, a.out = in, bufio.NewReader(out)
	if err := h.startIn(h.group.below(group), a.cmd); err != nil {
		return nil, fmt.Errorf("start actor on %s: %w", h.Name, err)
	}
	return a, nil
}

// ActOutside is Act for a program that is in none of the host's cgroups, as if no daemon could tell programs apart.
func (h *Host) ActOutside(program string, args ...string) (*Actor, error) {
	root, err := unifiedRoot()
	if err != nil {
		return nil, err
	}
	up, err := filepath.Rel(h.group.path(), root)
	if err != nil {
		return nil, err
	}
	return h.Act(up, 0, program, args...)
}

// Tell gives an order and waits for the answer. What the actor could not do is no error: see Reply.Error.
func (a *Actor) Tell(o Order) (r Reply, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	line, err := json.Marshal(o)
	if err != nil {
		return r, err
	}
	if _, err := a.in.Write(append(line, '\n')); err != nil {
		return r, fmt.Errorf("tell actor to %s: %w: %s", o.Do, err, a.log.String())
	}
	answer, err := a.out.ReadBytes('\n')
	if err != nil {
		return r, fmt.Errorf("actor does not answer to %s: %w: %s", o.Do, err, a.log.String())
	}
	return r, json.Unmarshal(answer, &r)
}

// Do is Tell for an order that must succeed.
func (a *Actor) Do(o Order) (Reply, error) {
	r, err := a.Tell(o)
	if err == nil && r.Error != "" {
		err = errors.New(r.Error)
	}
	return r, err
}

// PID is the process id, on this machine.
func (a *Actor) PID() int { return a.cmd.Process.Pid }

// Kill ends the actor at once.
func (a *Actor) Kill() error {
	if err := a.cmd.Process.Kill(); err != nil {
		return err
	}
	_ = a.cmd.Wait() // killed
	return nil
}

// Close lets the actor end by itself, as its input does, and waits for it.
func (a *Actor) Close() error {
	return errors.Join(a.in.Close(), a.cmd.Wait())
}
