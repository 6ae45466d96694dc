package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"sync"
	"syscall"
)

// Host is a machine: a namespace that programs run in. Its methods are safe for concurrent use.
type Host struct {
	Name  string
	world *World
	ns    namespace
	group cgroup   // of all that runs on it
	env   []string // more, for all that runs on it

	mu    sync.Mutex
	cards int
	links []*Link
	addrs []netip.Addr
}

// Output is what a command left behind.
type Output struct {
	Stdout, Stderr string
	Code           int // exit status
}

// Err is nil if the command exited with 0; otherwise it says what the command said.
func (o Output) Err() error {
	if o.Code == 0 {
		return nil
	}
	return fmt.Errorf("exit status %d: %s%s", o.Code, o.Stderr, o.Stdout)
}

// Namespace is the name of the host's network namespace, as for `ip netns exec`.
func (h *Host) Namespace() string { return string(h.ns) }

// Links are the host's links in the order in which they were made.
func (h *Host) Links() []*Link {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]*Link(nil), h.links...)
}

// Addresses are those of the host's links, in that order.
func (h *Host) Addresses() []netip.Addr {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]netip.Addr(nil), h.addrs...)
}

func (h *Host) nextInterface() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.cards++
	return fmt.Sprint("eth", h.cards-1)
}

func (h *Host) addLink(l *Link, addrs []netip.Prefix) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.links = append(h.links, l)
	for _, a := range addrs {
		h.addrs = append(h.addrs, a.Addr())
	}
}

// Route sends packets for a prefix to a router.
func (h *Host) Route(to netip.Prefix, via netip.Addr) error {
	return h.ns.ip("route replace " + to.String() + " via " + via.String())
}

// Masquerade hides what lies behind a router's other links: what leaves by this one has its address as source.
func (h *Host) Masquerade(out *Link) error {
	for _, iptables := range []string{"iptables", "ip6tables"} {
		if err := h.ns.exec(iptables, "-w", "-t", "nat", "-A", "POSTROUTING", "-o", out.Interface, "-j", "MASQUERADE"); err != nil {
			return err
		}
	}
	return nil
}

// Do runs fn with the calling thread inside the host: sockets that it opens, and programs that it starts, stay there.
func (h *Host) Do(fn func() error) error { return h.ns.do(fn) }

// Run runs a program and waits for it. A program that cannot be run, or that ctx ended, is an error; one that ran
// and failed is not: see Output.
func (h *Host) Run(ctx context.Context, program string, args ...string) (Output, error) {
	return h.RunWith(ctx, nil, program, args...)
}

// RunWith is Run with this on the program's standard input.
func (h *Host) RunWith(ctx context.Context, input []byte, program string, args ...string) (Output, error) {
	return h.runIn(ctx, "", input, program, args...)
}

func (h *Host) runIn(ctx context.Context, group string, input []byte, program string, args ...string) (Output, error) {
	cmd := h.command(ctx, program, args)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(input), &stdout, &stderr
	err := h.startIn(h.group.below(group), cmd)
	if err == nil {
		err = cmd.Wait()
	}
	out := Output{Stdout: stdout.String(), Stderr: stderr.String(), Code: cmd.ProcessState.ExitCode()}
	if ctx.Err() != nil {
		return out, fmt.Errorf("run %s on %s: %w: %s", program, h.Name, ctx.Err(), out.Stderr)
	}
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		return out, fmt.Errorf("run %s on %s: %w", program, h.Name, err)
	}
	return out, nil
}

// command is a program that start starts.
func (h *Host) command(ctx context.Context, program string, args []string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(append(os.Environ(), "BULKHEAD_CGROUP_ROOT="+h.group.path()), h.env...)
	return cmd
}

// start starts a program in the host's namespace and cgroup.
func (h *Host) start(cmd *exec.Cmd) error { return h.startIn(h.group, cmd) }

func (h *Host) startIn(group cgroup, cmd *exec.Cmd) error {
	dir, err := os.Open(group.path())
	if err != nil {
		return err
	}
	defer dir.Close()
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(dir.Fd())
	return h.Do(cmd.Start)
}
