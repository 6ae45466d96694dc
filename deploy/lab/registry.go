package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	registryDir   = "/run/bulkhead-lab" // one locked file per world
	namespaceDir  = "/run/netns"        // where ip(8) keeps named namespaces
	worldPrefix   = "bhl"
	maxWorlds     = 1000 // of one process
	pendingPrefix = "."
)

// register claims a name for a world. The lock is held until the file is closed or this process dies.
func register() (name string, lock *os.File, err error) {
	// Locked before it has its name, so that nobody ever sees the name without the lock.
	f, err := os.CreateTemp(registryDir, pendingPrefix)
	if err != nil {
		return "", nil, err
	}
	defer func() { err = errors.Join(err, os.Remove(f.Name())) }()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return "", nil, errors.Join(err, f.Close())
	}
	for n := range maxWorlds {
		name := fmt.Sprintf("%s%dx%d", worldPrefix, os.Getpid(), n)
		err := os.Link(f.Name(), filepath.Join(registryDir, name))
		if err == nil {
			return name, f, nil
		}
		if !errors.Is(err, fs.ErrExist) {
			return "", nil, errors.Join(err, f.Close())
		}
	}
	return "", nil, errors.Join(fmt.Errorf("this process has %d worlds already", maxWorlds), f.Close())
}

// sweep removes the worlds whose process is gone: those that nobody holds the lock of.
func sweep() error {
	if err := os.MkdirAll(registryDir, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(registryDir)
	if err != nil {
		return err
	}
	var faults error
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), worldPrefix) {
			faults = errors.Join(faults, sweepWorld(e.Name()))
		}
	}
	return faults
}

func sweepWorld(name string) error {
	f, err := os.Open(filepath.Join(registryDir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // someone else removed it
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil // its owner lives
	}
	return demolish(name)
}

// demolish ends what still runs in a world's namespaces, and removes them and the world's name.
func demolish(name string) error {
	spaces, err := filepath.Glob(filepath.Join(namespaceDir, name+"-*"))
	if err != nil {
		return err
	}
	var faults error
	for _, path := range spaces {
		space := filepath.Base(path)
		faults = errors.Join(faults, endAll(space), removePins(path), ip("netns", "delete", space))
	}
	faults = errors.Join(faults, removeCgroups(name))
	if err := os.Remove(filepath.Join(registryDir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		faults = errors.Join(faults, err)
	}
	return faults
}

// removePins removes the programs that daemons of a namespace left in the kernel, which are named after it.
func removePins(namespace string) error {
	var st unix.Stat_t
	if err := unix.Stat(namespace, &st); err != nil {
		return err
	}
	dirs, err := filepath.Glob(fmt.Sprintf("/sys/fs/bpf/bulkhead/*-%d", st.Ino))
	for _, dir := range dirs {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	return err
}

// endAll kills the processes in a namespace, but never this one, one of whose threads may be inside.
func endAll(space string) error {
	out, err := output("ip", "netns", "pids", space)
	if err != nil {
		return err
	}
	for _, field := range strings.Fields(out) {
		pid, err := strconv.Atoi(field)
		if err != nil || pid == os.Getpid() {
			continue
		}
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("kill %d in %s: %w", pid, space, err)
		}
	}
	return nil
}
