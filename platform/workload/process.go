package workload

import (
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
)

// process is what tells whose a process is.
type process struct {
	parent  int
	started uint64 // in ticks since the host's start; tells it from a later one with its number
	space   string // PID namespace
	cgroups string // of all hierarchies
}

// table is all that run, by number.
type table map[int]process

func processes() (table, error) {
	names, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	all := make(table)
	for _, name := range names {
		pid, err := strconv.Atoi(name.Name())
		if err != nil {
			continue
		}
		if p, err := readProcess(pid); err == nil { // else it has ended
			all[pid] = p
		}
	}
	return all, nil
}

func readProcess(pid int) (process, error) {
	dir := "/proc/" + strconv.Itoa(pid)
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return process{}, err
	}
	cgroups, err := os.ReadFile(dir + "/cgroup")
	if err != nil {
		return process{}, err
	}
	space, err := os.Readlink(dir + "/ns/pid")
	if err != nil {
		return process{}, err
	}
	p, err := parseStat(string(stat))
	p.space, p.cgroups = space, string(cgroups)
	return p, err
}

// parseStat reads the state, the parent and the start, which are the first, second and twentieth field after the name.
func parseStat(stat string) (process, error) {
	// The name, in brackets, may hold anything.
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) < 20 {
		return process{}, fmt.Errorf("read state of process: %d fields", len(fields))
	}
	if fields[0] == "Z" || fields[0] == "X" {
		return process{}, fs.ErrNotExist // it has ended, and cannot be moved
	}
	parent, err := strconv.Atoi(fields[1])
	if err != nil {
		return process{}, fmt.Errorf("read parent of process: %w", err)
	}
	started, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return process{}, fmt.Errorf("read start of process: %w", err)
	}
	return process{parent: parent, started: started}, nil
}

// of are the processes of a container: those in its cgroups of version 1, which engines see to, those in its PID namespace,
// and what these started. A container whose first process has ended has none: its number may be another's.
func (t table) of(c container, host string) []int {
	first, runs := t[c.pid]
	if !runs || first.started != c.started {
		return nil
	}
	mine := func(pid int) bool {
		p, ok := t[pid]
		return ok && (pid == c.pid || p.isIn(c.id) || p.space == first.space && p.space != host)
	}
	var out []int
	for pid := range t {
		// Of processes that changed while they were read the chain may be a ring.
		for at, steps := pid, 0; at > 1 && steps <= len(t); at, steps = t[at].parent, steps+1 {
			if mine(at) {
				out = append(out, pid)
				break
			}
		}
	}
	return out
}

// isIn reports whether a process is in a cgroup of a container, by its ID. That of the monitor, which an engine starts
// with each container, is none.
func (p process) isIn(id string) bool {
	for part := range strings.FieldsFuncSeq(p.cgroups, func(r rune) bool { return r == '/' || r == '\n' }) {
		if strings.Contains(part, id) && !strings.Contains(part, "conmon") {
			return true
		}
	}
	return false
}
