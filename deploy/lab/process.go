package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
)

// Process is a program that runs on a host until it ends by itself, is ended, or its world is closed.
type Process struct {
	Name string
	cmd  *exec.Cmd
	log  string
	done chan struct{}
	err  error // valid once done is closed
}

// Start starts a program. What it prints is appended to a file, named by the host and name, in the world's directory.
func (h *Host) Start(name, program string, args ...string) (*Process, error) {
	log, err := h.world.logFile(h.Name, name)
	if err != nil {
		return nil, fmt.Errorf("start %s on %s: %w", name, h.Name, err)
	}
	defer log.Close()
	p := &Process{Name: name, log: log.Name(), done: make(chan struct{})}
	p.cmd = h.command(context.Background(), program, args)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	// A group of its own: an interrupt from the terminal is for the lab, which then ends the rest in order.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := h.start(p.cmd); err != nil {
		return nil, fmt.Errorf("start %s on %s: %w", name, h.Name, err)
	}
	h.world.adopt(p)
	return p, nil
}

// adopt makes Close end the process, and waits for it to end.
func (w *World) adopt(p *Process) {
	w.mu.Lock()
	w.processes = append(w.processes, p)
	w.mu.Unlock()
	w.run(func() {
		p.err = p.cmd.Wait()
		close(p.done)
	})
}

// PID is the process id, on this machine.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err is how the process ended, nil for success, once Done is closed.
func (p *Process) Err() error {
	select {
	case <-p.done:
		return p.err
	default:
		return errors.New("it still runs")
	}
}

// Signal sends a signal. A process that has ended is an error.
func (p *Process) Signal(s os.Signal) error { return p.cmd.Process.Signal(s) }

// Stop asks the process to end, as systemd does, and waits until ctx ends: then it is killed, and that is an error.
func (p *Process) Stop(ctx context.Context) error {
	if err := p.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", p.Name, err)
	}
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return errors.Join(fmt.Errorf("stop %s: %w", p.Name, ctx.Err()), p.Kill())
	}
}

// Kill ends the process at once, as kill -9 does, and waits for that. It may be called again.
func (p *Process) Kill() error {
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill %s: %w", p.Name, err)
	}
	<-p.done
	return nil
}

// Log is what the process has printed so far, and earlier ones of its name on its host.
func (p *Process) Log() string {
	data, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(data)
}
