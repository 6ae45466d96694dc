package confine

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// passed are the signals that others send to this process and mean for the command.
func passed() []os.Signal {
	all := []os.Signal{
		syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGALRM, syscall.SIGTERM,
		syscall.SIGTSTP, syscall.SIGCONT, syscall.SIGWINCH, syscall.SIGIO, syscall.SIGPWR,
	}
	for s := syscall.Signal(35); s <= 64; s++ { // of real time, without those of C libraries
		all = append(all, s)
	}
	return all
}

// pass passes a signal on, and stops this process with the command. One that cannot be passed on is lost, as if the
// sender had tried it.
func pass(p *os.Process, s syscall.Signal) {
	switch s {
	case syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTSTP, syscall.SIGWINCH:
		if !inForeground() { // else the terminal has sent it to the command, too
			_ = p.Signal(s)
		}
	default:
		_ = p.Signal(s)
	}
	if s == syscall.SIGTSTP {
		_ = unix.Kill(os.Getpid(), unix.SIGSTOP) // until SIGCONT
	}
}

// inForeground reports whether this process, and so the command, is what its terminal sends signals to.
func inForeground() bool {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return false
	}
	defer tty.Close()
	group, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}
