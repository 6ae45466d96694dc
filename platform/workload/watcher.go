package workload

import (
	"context"
	"log/slog"
	"maps"
	"path/filepath"
	"sync"
	"time"

	"github.com/bulkhead-mesh/bulkhead/overlay"
)

const (
	recheck = 30 * time.Second // until all is looked for again, whatever was noticed
	sweep   = time.Second      // until late processes of moved containers are moved, if there are such containers
	settle  = time.Second      // that Settle waits at most
)

// Options say where to look.
type Options struct {
	Root    string   // directory of cgroup v2; empty where there is none
	Sockets []string // APIs of container engines; those that are not there are waited for
	Logger  *slog.Logger
}

// Watcher follows the processes of agents. Its methods are safe for concurrent use.
type Watcher struct {
	options Options
	engines []*engine
	wake    chan struct{} // something may have changed

	mu       sync.Mutex
	matches  map[string]overlay.Match
	found    map[string]overlay.Workload
	problems map[string]string
	changed  chan struct{}
	users    map[string]account
	moved    map[string]residence // containers that were moved, by ID
}

// New makes a watcher of nothing. It starts nothing.
func New(o Options) *Watcher {
	if o.Root != "" {
		o.Root = filepath.Clean(o.Root)
	}
	w := &Watcher{
		options: o, wake: make(chan struct{}, 1), changed: make(chan struct{}),
		matches: map[string]overlay.Match{}, found: map[string]overlay.Workload{}, problems: map[string]string{},
		users: make(map[string]account), moved: make(map[string]residence),
	}
	for _, path := range o.Sockets {
		w.engines = append(w.engines, newEngine(path, o.Root, o.Logger, w.nudge))
	}
	return w
}

// Set replaces what is looked for: a match for each agent, by name. What can be seen at once is seen when it returns.
func (w *Watcher) Set(matches map[string]overlay.Match) {
	w.mu.Lock()
	w.matches = maps.Clone(matches)
	w.mu.Unlock()
	w.look()
	w.nudge() // there may be more to watch
}

// Workloads is where the agents' processes are now, by name.
func (w *Watcher) Workloads() map[string]overlay.Workload {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.found)
}

// Problems says, by agent, why nothing is found for it, or not all.
func (w *Watcher) Problems() map[string]string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.problems)
}

// Changed is closed when Workloads may be others than those taken after this call.
func (w *Watcher) Changed() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.changed
}

// Settle waits, while Run runs, until container engines that are there have been asked once, if an agent is a container,
// and what they said is found, but no longer than a second.
func (w *Watcher) Settle(ctx context.Context) {
	if !w.wantsContainers() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	for _, e := range w.engines {
		select {
		case <-e.asked:
		case <-ctx.Done():
		}
	}
	for {
		changed := w.Changed()
		if !w.look().unmoved {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

func (w *Watcher) wantsContainers() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, m := range w.matches {
		if m.Container != nil {
			return w.options.Root != ""
		}
	}
	return false
}

func (w *Watcher) nudge() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// look finds all agents' processes.
func (w *Watcher) look() *search {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := newSearch(w)
	found, problems := s.all(w.matches)
	if !maps.EqualFunc(found, w.found, overlay.Workload.Equal) {
		w.found = found
		close(w.changed)
		w.changed = make(chan struct{})
	}
	w.problems = problems
	return s
}
