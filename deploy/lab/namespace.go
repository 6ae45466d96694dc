package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// namespace is the name of a network namespace, as ip(8) knows it.
type namespace string

// do runs fn inside, on a thread of its own. Sockets that fn opens stay inside for their life.
func (n namespace) do(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with fn
		done <- n.enter(fn)
	}()
	return <-done
}

func (n namespace) enter(fn func() error) error {
	f, err := os.Open(filepath.Join(namespaceDir, string(n)))
	if err != nil {
		return fmt.Errorf("enter namespace: %w", err)
	}
	err = unix.Setns(int(f.Fd()), unix.CLONE_NEWNET)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("enter namespace %s: %w", n, err)
	}
	return fn()
}

// ip runs commands of ip(8) inside, in one process.
func (n namespace) ip(commands ...string) error {
	cmd := exec.Command("ip", "-n", string(n), "-batch", "-")
	cmd.Stdin = strings.NewReader(strings.Join(commands, "\n") + "\n")
	return run(cmd, strings.Join(commands, "; "))
}

// exec runs a program inside.
func (n namespace) exec(program string, args ...string) error {
	return ip(append([]string{"netns", "exec", string(n), program}, args...)...)
}

// sysctl sets keys below /proc/sys/net. A key that this kernel does not have is nothing to set.
func (n namespace) sysctl(values map[string]string) error {
	return n.do(func() error {
		for key, value := range values {
			err := os.WriteFile(filepath.Join("/proc/sys/net", key), []byte(value), 0o644)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("set %s: %w", key, err)
			}
		}
		return nil
	})
}

func ip(args ...string) error {
	return run(exec.Command("ip", args...), "ip "+strings.Join(args, " "))
}

func run(cmd *exec.Cmd, what string) error {
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", what, err, strings.TrimSpace(string(out)))
	}
	return nil
}

func output(program string, args ...string) (string, error) {
	out, err := exec.Command(program, args...).Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w", program, strings.Join(args, " "), err)
	}
	return string(out), nil
}
