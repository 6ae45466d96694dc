package lab

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// cgroup is a directory of the cgroup v2 hierarchy, below labCgroups.
type cgroup string

const labCgroups = "bulkhead-lab"

// unifiedRoot is where cgroup v2 is mounted.
func unifiedRoot() (string, error) {
	f, err := os.Open("/proc/self/mounts")
	if err != nil {
		return "", err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) > 2 && fields[2] == "cgroup2" {
			return fields[1], nil
		}
	}
	return "", errors.New("cgroup v2 is not mounted")
}

// newCgroup makes the group of a host, by the name of its namespace.
func newCgroup(name string) (cgroup, error) {
	root, err := unifiedRoot()
	if err != nil {
		return "", err
	}
	g := cgroup(filepath.Join(root, labCgroups, name))
	for range 3 { // a world that ends may remove the directory above just now
		if err = os.MkdirAll(string(g), 0o755); !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	return g, err
}

func mkdirAll(path string) error { return os.MkdirAll(path, 0o755) }

// below is a group within this one; the group itself for none.
func (g cgroup) below(path string) cgroup { return cgroup(filepath.Join(string(g), path)) }

func (g cgroup) path() string { return string(g) }

// removeCgroups ends what runs in the groups of a world, and removes them.
func removeCgroups(world string) error {
	root, err := unifiedRoot()
	if err != nil {
		return err
	}
	groups, err := filepath.Glob(filepath.Join(root, labCgroups, world+"-*"))
	if err != nil {
		return err
	}
	// Container engines make the same groups in the older hierarchies, where there are some.
	older, err := filepath.Glob(filepath.Join(filepath.Dir(root), "*", labCgroups, world+"-*"))
	if err != nil {
		return err
	}
	for _, g := range older {
		if !slices.Contains(groups, g) {
			groups = append(groups, g)
		}
	}
	for _, g := range groups {
		err = errors.Join(err, removeCgroup(g))
		_ = os.Remove(filepath.Dir(g)) // unless other worlds have theirs there
	}
	return err
}

// removeCgroup removes a group with all below it. The kernel has a last process for a moment after it was killed.
func removeCgroup(path string) error {
	kill, err := os.OpenFile(filepath.Join(path, "cgroup.kill"), os.O_WRONLY, 0)
	if err == nil {
		_, err = kill.WriteString("1")
		err = errors.Join(err, kill.Close())
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // the older hierarchies have no such file
		return fmt.Errorf("end cgroup: %w", err)
	}
	var dirs []string
	err = filepath.WalkDir(path, func(name string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, name)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	if err != nil {
		return err
	}
	slices.Reverse(dirs) // the innermost first
	for _, dir := range dirs {
		if err := awaitEmpty(dir); err != nil {
			return err
		}
		if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove cgroup: %w", err)
		}
	}
	return nil
}

// awaitEmpty waits until no process is in a group.
func awaitEmpty(dir string) error {
	events, err := os.Open(filepath.Join(dir, "cgroup.events"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer events.Close()
	buf := make([]byte, 256)
	for range 100 {
		n, err := events.ReadAt(buf, 0)
		if errors.Is(err, unix.ENODEV) || strings.Contains(string(buf[:n]), "populated 0") {
			return nil
		}
		// The kernel marks the file when its content changes.
		if _, err := unix.Poll([]unix.PollFd{{Fd: int32(events.Fd()), Events: unix.POLLPRI}}, 100); err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
	return fmt.Errorf("cgroup %s does not empty", dir)
}
