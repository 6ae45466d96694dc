// Package confine runs a command that cannot leave the cgroup that its caller is in, as far as the kernel can see to that.
package confine

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Options say what to run.
type Options struct {
	Command []string // program and arguments; the program is looked for in PATH
	Hide    []string // directories that the command shall not see, where the caller may arrange that: as root
}

// kept are the capabilities that a command of root keeps: those by which it can serve, and none by which it could change
// its cgroup, the network, other processes or the kernel.
var kept = []int{
	unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER, unix.CAP_FSETID, unix.CAP_KILL, unix.CAP_SETGID, unix.CAP_SETUID,
	unix.CAP_NET_BIND_SERVICE,
}

// Run runs a command with the standard streams of this process, passes signals on to it, and returns its exit code: 128
// and its number for a signal that ended it. Neither it nor what it starts can gain privileges; of root's, few are left,
// and cgroups are read-only for it.
func Run(ctx context.Context, o Options) (code int, err error) {
	if len(o.Command) == 0 {
		return 0, errors.New("run: no command")
	}
	cmd := exec.CommandContext(ctx, o.Command[0], o.Command[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, passed()...)
	defer signal.Stop(signals)
	if err := start(cmd, o.Hide); err != nil {
		return 0, fmt.Errorf("run %s: %w", o.Command[0], err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		select {
		case s := <-signals:
			if err := cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
				return 0, fmt.Errorf("pass %s on: %w", s, err)
			}
		case err := <-ended:
			return codeOf(cmd.ProcessState, err)
		}
	}
}

// passed are the signals that others send to this process and mean for the command. Those of a terminal reach the command
// by themselves.
func passed() []os.Signal {
	all := []os.Signal{syscall.SIGTERM, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGALRM}
	if _, err := unix.IoctlGetTermios(int(os.Stdin.Fd()), unix.TCGETS); err != nil {
		return append(all, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGCONT, syscall.SIGWINCH)
	}
	signal.Ignore(syscall.SIGINT, syscall.SIGQUIT)
	return all
}

func codeOf(state *os.ProcessState, err error) (int, error) {
	if _, failed := errors.AsType[*exec.ExitError](err); err != nil && !failed {
		return 0, err
	}
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal()), nil
	}
	return state.ExitCode(), nil
}

// start starts the command from a thread that has given up what the command shall not have; the thread ends then.
func start(cmd *exec.Cmd, hide []string) error {
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		err := giveUp(hide)
		if err == nil {
			err = cmd.Start()
		}
		started <- err
	}()
	return <-started
}

// giveUp is for this thread and what it starts alone.
func giveUp(hide []string) error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("give up new privileges: %w", err)
	}
	if os.Geteuid() == 0 {
		if err := protect(hide); err != nil {
			return err
		}
		if err := dropBounds(); err != nil {
			return err
		}
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("give up capabilities: %w", err)
	}
	return dropCapabilities()
}

// protect makes cgroups read-only and hides directories, in a mount namespace of this thread's own: what root owns it could
// write otherwise, without any capability.
func protect(hide []string) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("protect cgroups: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("protect cgroups: %w", err)
	}
	groups, err := cgroupMounts()
	if err != nil {
		return fmt.Errorf("protect cgroups: %w", err)
	}
	for _, dir := range groups {
		if err := unix.Mount("", dir, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
			return fmt.Errorf("protect cgroups at %s: %w", dir, err)
		}
	}
	for _, dir := range hide {
		err := unix.Mount("none", dir, "tmpfs", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "size=4k,mode=000")
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("hide %s: %w", dir, err)
		}
	}
	return nil
}

func cgroupMounts() ([]string, error) {
	f, err := os.Open("/proc/thread-self/mounts")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var dirs []string
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if fields := strings.Fields(lines.Text()); len(fields) > 2 && strings.HasPrefix(fields[2], "cgroup") {
			dirs = append(dirs, fields[1])
		}
	}
	return dirs, lines.Err()
}

// dropBounds keeps programs from getting more than kept, whoever owns them.
func dropBounds() error {
	for c := range unix.CAP_LAST_CAP + 1 {
		if isKept(c) {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("give up capability %d: %w", c, err)
		}
	}
	return nil
}

func isKept(c int) bool {
	for _, k := range kept {
		if k == c {
			return true
		}
	}
	return false
}

func dropCapabilities() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var have [2]unix.CapUserData
	if err := unix.Capget(&header, &have[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	var keep [2]uint32
	for _, c := range kept {
		keep[c/32] |= 1 << (c % 32)
	}
	for i := range have {
		have[i].Effective &= keep[i]
		have[i].Permitted &= keep[i]
		have[i].Inheritable = 0
	}
	if err := unix.Capset(&header, &have[0]); err != nil {
		return fmt.Errorf("give up capabilities: %w", err)
	}
	return nil
}
