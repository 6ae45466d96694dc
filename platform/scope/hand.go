package scope

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/coreos/go-systemd/v22/util"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-mesh/bulkhead/platform/workload"
)

// attempts at making a cgroup, while another run of the agent ends and removes those above it.
const attempts = 16

func enterByHand(root, agent string, pid int) (*Scope, error) {
	s := &Scope{root: root, dir: filepath.Join(root, workload.RunDir, workload.RunGroup(agent), suffix())}
	var err error
	for range attempts {
		if err = os.MkdirAll(s.dir, 0o755); err == nil {
			err = put(s.dir, strconv.Itoa(pid))
		}
		if !gone(err) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(err, s.Remove())
	}
	return s, nil
}

// suffix tells one run from others of its agent.
func suffix() string { return strings.ToLower(rand.Text()[:10]) }

// Remove removes the scope where nothing is in it, and the agent's cgroup with its last one. One that is in use stays.
func (s *Scope) Remove() error {
	if err := remove(s.dir); err != nil {
		return err
	}
	if parent := filepath.Dir(s.dir); filepath.Base(parent) != workload.RunDir {
		return rmdir(parent)
	}
	return nil
}

// remove removes a cgroup with all below it, innermost first, and leaves what somebody uses.
func remove(dir string) error {
	dirs := []string{dir}
	for i := 0; i < len(dirs); i++ {
		entries, err := os.ReadDir(dirs[i])
		if err != nil && !gone(err) {
			return fmt.Errorf("remove %s: %w", dir, err)
		}
		for _, e := range entries {
			if e.IsDir() {
				dirs = append(dirs, filepath.Join(dirs[i], e.Name()))
			}
		}
	}
	for _, d := range slices.Backward(dirs) {
		if err := rmdir(d); err != nil {
			return err
		}
	}
	return nil
}

func rmdir(dir string) error {
	if err := unix.Rmdir(dir); err != nil && !gone(err) && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOTEMPTY) {
		return fmt.Errorf("remove %s: %w", dir, err)
	}
	return nil
}

// Clean removes the empty cgroups that runs left while no daemon was there to remove them. Where systemd runs it does that.
func Clean(root string) error {
	if root == "" || util.IsRunningSystemd() {
		return nil
	}
	top := filepath.Join(root, workload.RunDir)
	entries, err := os.ReadDir(top)
	if gone(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove what runs left: %w", err)
	}
	for _, e := range entries {
		if e.IsDir() && strings.HasPrefix(e.Name(), workload.RunGroup("")) {
			if err := remove(filepath.Join(top, e.Name())); err != nil {
				return err
			}
		}
	}
	return rmdir(top)
}
