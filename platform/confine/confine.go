package confine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// Options say what to run.
type Options struct {
	Command []string // program and arguments; the program is looked for in PATH
	Dir     string   // where to run it; empty: here
	Env     []string // its environment; nil: that of this process
	Hide    []string // directories that the command shall not see, where the caller may arrange that: as root
}

// Run runs a command with the standard streams of this process, passes signals on to it, and returns its exit code: 128
// and its number for a signal that ended it. Neither it nor what it starts can gain privileges; of root's, few are left,
// and cgroups are read-only for it. If this process is killed, the command is. The end of ctx is a SIGTERM for it.
func Run(ctx context.Context, o Options) (code int, err error) {
	if len(o.Command) == 0 {
		return 0, errors.New("run: no command")
	}
	if err := isDir(o.Dir); err != nil {
		return 0, fmt.Errorf("run in %s: %w", o.Dir, err)
	}
	cmd := exec.CommandContext(ctx, o.Command[0], o.Command[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Dir, cmd.Env = o.Dir, o.Env
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	signals := make(chan os.Signal, 64)
	signal.Notify(signals, passed()...) // before the start: none that comes then is lost
	defer signal.Stop(signals)
	ended, err := start(cmd, o.Hide)
	if err != nil {
		return 0, fmt.Errorf("run %s: %w", o.Command[0], err)
	}
	for {
		select {
		case s := <-signals:
			pass(cmd.Process, s.(syscall.Signal))
		case err := <-ended:
			return codeOf(cmd.ProcessState, err)
		}
	}
}

func isDir(path string) error {
	if path == "" {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return unix.ENOTDIR
	}
	return nil
}

// start starts the command from a thread that has given up what the command shall not have. The thread waits for the
// command's end, because the command would be killed at the thread's.
func start(cmd *exec.Cmd, hide []string) (<-chan error, error) {
	started, ended := make(chan error, 1), make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for ever: the thread ends with this function
		err := giveUp(hide)
		if err == nil {
			err = cmd.Start()
		}
		started <- err
		if err == nil {
			ended <- cmd.Wait()
		}
	}()
	return ended, <-started
}

func codeOf(state *os.ProcessState, err error) (int, error) {
	if state == nil {
		return 0, err
	}
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal()), nil
	}
	return state.ExitCode(), nil
}
