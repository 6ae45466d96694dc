package workload

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/bulkhead-mesh/bulkhead/overlay"
)

// search is one look at the host.
type search struct {
	root     string
	engines  []*engine
	accounts map[string]account // of users that were looked up before
	moved    map[string]residence
	unmoved  bool // a container without a cgroup of its own will be moved

	slices   []string             // directories in which the system manager's units can be, once asked for
	names    map[string][]string  // of what is in a directory, once asked for
	taken    map[uint64]string    // by cgroup: the agent that has it
	users    map[uint32]string    // by ID: the agent that has it
	dirs     map[string]bool      // those that say when something may change
	homeless map[string]container // containers of agents that have no cgroup of their own, by ID
}

func newSearch(w *Watcher) *search {
	return &search{
		root: w.options.Root, engines: w.engines, accounts: w.users, moved: w.moved,
		taken: make(map[uint64]string), users: make(map[uint32]string), dirs: make(map[string]bool),
		homeless: make(map[string]container), names: make(map[string][]string),
	}
}

// errNoCgroups is why no cgroup is found on an old host.
var errNoCgroups = errors.New("this host has no cgroup v2")

// claim is a cgroup that a match says is the agent's.
type claim struct {
	dir  string
	what string // for people
}

// all finds the agents' processes, and what is in the way. What `bulkhead run` started is the agent's whatever others match;
// of what two agents match, the first by name gets it.
func (s *search) all(matches map[string]overlay.Match) (found map[string]overlay.Workload, problems map[string]string) {
	found, problems = make(map[string]overlay.Workload), make(map[string]string)
	agents := slices.Sorted(maps.Keys(matches))
	for _, agent := range agents {
		load := overlay.Workload{Host: matches[agent].Host}
		s.take(agent, s.runs(agent), &load)
		found[agent] = load
	}
	for _, agent := range agents {
		load := found[agent]
		if err := s.find(agent, matches[agent], &load); err != nil {
			problems[agent] = err.Error()
		}
		slices.Sort(load.Cgroups)
		load.Cgroups = slices.Compact(load.Cgroups)
		found[agent] = load
	}
	return found, problems
}

// find adds to load what a match says. The error says why there is nothing, or not all.
func (s *search) find(agent string, m overlay.Match, load *overlay.Workload) error {
	switch {
	case m.Host:
		return nil
	case m.User != "":
		return s.user(agent, m.User, load)
	case s.root == "":
		return errNoCgroups
	case m.Run:
		if len(load.Cgroups) == 0 {
			return errors.New("nothing runs as the agent now")
		}
		return nil
	case m.Cgroup != "":
		return s.take(agent, s.cgroup(m.Cgroup), load, fmt.Errorf("there is no cgroup %s", m.Cgroup))
	case m.Unit != "":
		return s.take(agent, s.units(m.Unit), load, fmt.Errorf("no unit %s runs", m.Unit))
	case m.Container != nil:
		claims, err := s.containers(*m.Container)
		return errors.Join(s.take(agent, claims, load), err)
	}
	return errors.New("no match is given")
}

// take gives an agent the cgroups that no other has. Where there are none, the error is the one given.
func (s *search) take(agent string, claims []claim, load *overlay.Workload, none ...error) error {
	var faults []error
	for _, c := range claims {
		id, err := ID(c.dir)
		if err != nil {
			continue // gone since
		}
		if other := s.taken[id]; other != "" && other != agent {
			faults = append(faults, fmt.Errorf("%s is agent %s's", c.what, other))
			continue
		}
		s.taken[id] = agent
		load.Cgroups = append(load.Cgroups, id)
		none = nil
	}
	if len(faults) > 0 {
		return errors.Join(faults...)
	}
	return errors.Join(none...)
}

// watch has a directory watched for what comes and goes in it.
func (s *search) watch(dir string) { s.dirs[dir] = true }

// subdirs are the names of the cgroups in one. It is read once for all agents.
func (s *search) subdirs(dir string) []string {
	names, read := s.names[dir]
	if read {
		return names
	}
	entries, _ := os.ReadDir(dir) // an error: it is gone
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	s.names[dir] = names
	return names
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

func isGone(err error) bool { return errors.Is(err, fs.ErrNotExist) }

// isBelow reports whether a directory is one below the root.
func isBelow(root, dir string) bool {
	rel, err := filepath.Rel(root, dir)
	return err == nil && rel != "." && filepath.IsLocal(rel)
}
