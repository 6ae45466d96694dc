package daemon

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-mesh/bulkhead/platform"
)

const unfinished = "new-" // begins the name of a directory that a crash may leave; the next newState removes it

// newState makes the state directory of a new host: fill writes into an empty one beside dir's files, and all
// of its files then move into dir, host.db last, so that a crash leaves no host rather than half of one.
func newState(dir string, fill func(tmp string) error) (err error) {
	if err := privateDir(dir); err != nil {
		return fmt.Errorf("make state directory: %w", err)
	}
	unlock, err := lockDir(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	if _, err := os.Lstat(filepath.Join(dir, hostFile)); err == nil {
		return fmt.Errorf("%s already holds a host of a mesh (fix: choose another --state-dir; `bulkhead down` and removing that directory forget the old one for ever)", dir)
	}
	left, err := filepath.Glob(filepath.Join(dir, unfinished+"*"))
	if err != nil {
		return fmt.Errorf("clear state directory: %w", err)
	}
	for _, path := range left {
		if err := os.RemoveAll(path); err != nil {
			return fmt.Errorf("clear state directory: %w", err)
		}
	}
	tmp, err := os.MkdirTemp(dir, unfinished)
	if err != nil {
		return fmt.Errorf("make state directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	if err := fill(tmp); err != nil {
		return err
	}
	return moveIn(tmp, dir)
}

// privateDir makes a directory for this user alone. One that others may enter and that holds files is not ours to
// close: it may be /tmp.
func privateDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if info.Mode().Perm()&0o077 == 0 {
		return nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	if len(entries) > 0 {
		return fmt.Errorf("%s has files and mode %#o: others may enter it (fix: choose another --state-dir, or chmod 700 %s)", dir, info.Mode().Perm(), dir)
	}
	return os.Chmod(dir, 0o700)
}

// moveIn moves all files of tmp into dir, host.db last.
func moveIn(tmp, dir string) error {
	entries, err := os.ReadDir(tmp)
	if err != nil {
		return fmt.Errorf("finish state directory: %w", err)
	}
	var names []string
	for _, e := range entries {
		if e.Name() != hostFile {
			names = append(names, e.Name())
		}
	}
	for _, name := range append(names, hostFile) {
		if err := platform.SyncDir(dir); err != nil { // what moved before is durable before the next
			return fmt.Errorf("finish state directory: %w", err)
		}
		if err := os.Rename(filepath.Join(tmp, name), filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("finish state directory: %w", err)
		}
	}
	return platform.SyncDir(dir)
}

// lockDir takes a lock that ends with the process and leaves no file.
func lockDir(dir string) (unlock func() error, err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("lock state directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("another `init` or `join` is at work in %s (fix: wait until it has ended)", dir)
		}
		return nil, fmt.Errorf("lock state directory: %w", err)
	}
	return f.Close, nil
}
