package workload

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	moveGroup  = "container-" // begins the names, in RunDir, of cgroups of containers that have none of their own
	moveRounds = 16           // through a container's processes, until none is elsewhere
)

// residence is what was moved of a container.
type residence struct {
	pid, entered int
	fault        error // why not all was moved
}

// moveDir is the cgroup that the watcher makes for a container.
func moveDir(root, id string) string {
	return filepath.Join(root, RunDir, moveGroup+id[:min(12, len(id))])
}

// hasMoved reports whether there are containers into which processes could come that are elsewhere.
func (w *Watcher) hasMoved() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.moved) > 0
}

// settleMoves moves containers of agents that have no cgroup of their own, those that are there already only if all are to
// be swept, and removes the cgroups of those that are gone. It reports whether there is something to look for again.
func (w *Watcher) settleMoves(s *search, all bool) (again bool) {
	for id, c := range s.homeless {
		r, known := s.moved[id]
		if known && !all && r.pid == c.pid && r.entered == c.entered {
			continue
		}
		n, fault := move(s.root, c)
		now := residence{c.pid, c.entered, fault}
		if now.fault != nil && (r.fault == nil || r.fault.Error() != now.fault.Error()) {
			w.options.Logger.Warn("move container into a cgroup of its own", "container", c.name, "error", now.fault)
		}
		if n > 0 {
			w.options.Logger.Info("moved processes of a container into a cgroup of its own: connections from before are not the agent's", "container", c.name, "processes", n)
		}
		again = again || !known || (r.fault == nil) != (now.fault == nil)
		w.mu.Lock()
		w.moved[id] = now
		w.mu.Unlock()
	}
	w.mu.Lock()
	maps.DeleteFunc(w.moved, func(id string, _ residence) bool {
		_, still := s.homeless[id]
		return !still
	})
	w.mu.Unlock()
	keep := make(map[string]bool)
	for id := range s.homeless {
		keep[filepath.Base(moveDir(s.root, id))] = true
	}
	if s.root == "" {
		return again
	}
	runs := filepath.Join(s.root, RunDir)
	for _, name := range s.subdirs(runs) {
		if strings.HasPrefix(name, moveGroup) && !keep[name] {
			// One in which something runs stays: the container's engine is away, or its agent.
			_ = unix.Rmdir(filepath.Join(runs, name))
		}
	}
	return again
}

// move puts all processes of a container into its cgroup, and returns how many it moved. Those that they start meanwhile
// may be elsewhere, so it looks again until none is.
func move(root string, c container) (n int, err error) {
	dir := moveDir(root, c.id)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return 0, fmt.Errorf("make cgroup of container %s: %w", c.name, err)
	}
	host, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return 0, fmt.Errorf("move container %s: %w", c.name, err)
	}
	for range moveRounds {
		all, err := processes()
		if err != nil {
			return n, fmt.Errorf("move container %s: %w", c.name, err)
		}
		outside := 0
		for _, pid := range all.of(c, host) {
			if at, err := groupOf(root, pid); err != nil || at == dir || isBelow(dir, at) {
				continue // it has ended, or is there
			}
			outside++
			err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0)
			if err != nil && !errors.Is(err, unix.ESRCH) {
				return n, fmt.Errorf("move process %d of container %s: %w", pid, c.name, err)
			}
			n++
		}
		if outside == 0 {
			return n, nil
		}
	}
	return n, fmt.Errorf("move container %s: it makes processes faster than they can be moved", c.name)
}
