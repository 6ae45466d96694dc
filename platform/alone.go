package platform

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrNotAlone says that a daemon runs in this network namespace, whose rules another would take for damage.
var ErrNotAlone = errors.New("a daemon runs in this network namespace already")

// Alone makes the caller the one daemon of its network namespace, until it closes what it gets or ends. Who wants to be
// that finds the others in a directory, which is made.
func Alone(dir string) (io.Closer, error) {
	var st unix.Stat_t
	if err := unix.Stat("/proc/self/ns/net", &st); err != nil {
		return nil, fmt.Errorf("find network namespace: %w", err)
	}
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, "daemon-"+strconv.FormatUint(st.Ino, 10)+".lock")
	for {
		l, err := takeLock(path)
		if l != nil || err != nil {
			return l, err
		}
	}
}

// lock is a file that its holder removes; who waits for it meanwhile holds one that nobody finds.
type lock struct{ *os.File }

// takeLock returns nothing where the file was removed before it was locked.
func takeLock(path string) (io.Closer, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer file.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		holder, _ := io.ReadAll(io.LimitReader(file, 16)) // for people
		return nil, fmt.Errorf("%w: process %s (fix: stop it, or use a network namespace of its own)", ErrNotAlone, strings.TrimSpace(string(holder)))
	}
	held, err := file.Stat()
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	if there, err := os.Lstat(path); err != nil || !os.SameFile(held, there) {
		return nil, file.Close()
	}
	if err := file.Truncate(0); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	if _, err := fmt.Fprintln(file, os.Getpid()); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return lock{file}, nil
}

// Close gives the lock up.
func (l lock) Close() error { return errors.Join(os.Remove(l.Name()), l.File.Close()) }
