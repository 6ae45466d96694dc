package workload

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// RunDir is the cgroup below the root in which each agent has one for what is run in its name.
const RunDir = "bulkhead.slice"

// RunGroup is the name of the cgroup in RunDir of what is run as an agent.
func RunGroup(agent string) string { return "run-" + agent }

// RunScope begins the names of the systemd scopes of what is run as an agent. No agent's name has an underscore.
func RunScope(agent string) string { return runScope + agent + "_" }

const runScope = "bulkhead-run_"

// ID is the number by which the kernel knows a cgroup: its directory's inode.
func ID(dir string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return 0, fmt.Errorf("stat cgroup %s: %w", dir, err)
	}
	return st.Ino, nil
}

// CgroupsOf are the IDs of the cgroups below root that a process is in, outermost first; none where root is empty, or the
// process is elsewhere.
func CgroupsOf(root string, pid int) ([]uint64, error) {
	if root == "" {
		return nil, nil
	}
	root = filepath.Clean(root)
	dir, err := groupOf(root, pid)
	if err != nil || !isBelow(root, dir) {
		return nil, err
	}
	rel, err := filepath.Rel(root, dir)
	if err != nil {
		return nil, err
	}
	var ids []uint64
	at := root
	for name := range strings.SplitSeq(rel, "/") {
		at = filepath.Join(at, name)
		id, err := ID(at)
		if err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	return ids, nil
}

// RunAs is the agent in whose name `bulkhead run` put a process where it is; empty for all else. It says so also of what
// goes on when that agent is no more.
func RunAs(root string, pid int) (string, error) {
	if root == "" {
		return "", nil
	}
	root = filepath.Clean(root)
	dir, err := groupOf(root, pid)
	if err != nil {
		return "", err
	}
	below, ok := strings.CutPrefix(dir, filepath.Join(root, RunDir)+"/")
	if !ok {
		return "", nil
	}
	name, _, _ := strings.Cut(below, "/")
	if agent, ok := strings.CutPrefix(name, RunGroup("")); ok {
		return agent, nil
	}
	if rest, ok := strings.CutPrefix(name, runScope); ok && strings.HasSuffix(name, ".scope") {
		agent, _, _ := strings.Cut(rest, "_")
		return agent, nil
	}
	return "", nil
}

// groupOf is the directory of the cgroup v2 that a process is in; empty for a process of a host that has none.
func groupOf(root string, pid int) (string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return "", err
	}
	mount, err := mountOf(root)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(text)) {
		if p, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::"); ok {
			return filepath.Join(mount, p), nil
		}
	}
	return "", nil
}

// mountOf is where the hierarchy of which root is a part is mounted.
func mountOf(root string) (string, error) {
	dir := root
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return "", err
	}
	for parent := filepath.Dir(dir); parent != dir; parent = filepath.Dir(dir) {
		var up unix.Stat_t
		if err := unix.Stat(parent, &up); err != nil {
			return "", err
		}
		if up.Dev != st.Dev {
			return dir, nil
		}
		dir = parent
	}
	return dir, nil
}

// cgroup is the directory at a path, if it is there. Each one above says when it comes or goes.
func (s *search) cgroup(p string) []claim {
	dir := s.root
	for name := range strings.SplitSeq(strings.Trim(p, "/"), "/") {
		s.watch(dir)
		if dir = filepath.Join(dir, name); !isDir(dir) {
			return nil
		}
	}
	return []claim{{dir, "cgroup " + p}}
}

// units are the cgroups of a unit, or of a template's instances. All that is above them is slices: in a user's own
// manager, which is a service, there may be units of any name.
func (s *search) units(pattern string) []claim {
	var found []claim
	begin, end, template := strings.Cut(pattern, "*")
	for _, dir := range s.sliceDirs() {
		for _, name := range s.subdirs(dir) {
			if name == pattern || template && len(name) >= len(begin)+len(end) && strings.HasPrefix(name, begin) && strings.HasSuffix(name, end) {
				found = append(found, claim{filepath.Join(dir, name), "unit " + name})
			}
		}
	}
	return found
}

// sliceDirs are the root and all slices below it, which are watched. In a slice that a user owns, the user could make
// cgroups of any name: it is none.
func (s *search) sliceDirs() []string {
	if s.slices != nil {
		return s.slices
	}
	var walk func(dir string)
	walk = func(dir string) {
		s.watch(dir)
		s.slices = append(s.slices, dir)
		for _, name := range s.subdirs(dir) {
			if sub := filepath.Join(dir, name); strings.HasSuffix(name, ".slice") && isRoots(sub) {
				walk(sub)
			}
		}
	}
	walk(s.root)
	return s.slices
}

func isRoots(dir string) bool {
	var st unix.Stat_t
	return unix.Stat(dir, &st) == nil && st.Uid == 0
}

// runs are the cgroups of what `bulkhead run` started as an agent.
func (s *search) runs(agent string) []claim {
	if s.root == "" {
		return nil
	}
	s.watch(s.root)
	dir := filepath.Join(s.root, RunDir)
	if !isDir(dir) {
		return nil
	}
	s.watch(dir)
	var found []claim
	for _, name := range s.subdirs(dir) {
		if name == RunGroup(agent) || strings.HasPrefix(name, RunScope(agent)) && strings.HasSuffix(name, ".scope") {
			found = append(found, claim{filepath.Join(dir, name), "what runs as agent " + agent})
		}
	}
	return found
}
