package workload

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/time/rate"
)

// A host may make cgroups by the thousand; what they mean is seen a little later then.
const looksPerSecond, looksAtOnce = 50, 20

// Run watches until ctx ends. It is called once.
func (w *Watcher) Run(ctx context.Context) error {
	notify, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch cgroups: %w", err)
	}
	defer notify.Close()
	engines := crew{engines: w.engines}
	defer engines.stop()
	p := &patrol{Watcher: w, notify: notify, watched: make(map[string]uint64), slow: time.NewTicker(recheck), quick: time.NewTicker(sweep)}
	defer p.slow.Stop()
	defer p.quick.Stop()
	limit := rate.NewLimiter(looksPerSecond, looksAtOnce)
	for ctx.Err() == nil {
		engines.engage(ctx, w.wantsContainers())
		p.follow()
		for !p.wait(ctx) {
		}
		if limit.Wait(ctx) == nil {
			p.drain()
		}
	}
	return nil
}

// patrol is one Run of a watcher.
type patrol struct {
	*Watcher
	notify      *fsnotify.Watcher
	watched     map[string]uint64 // directories, and their numbers
	slow, quick *time.Ticker
	due         bool // processes of moved containers are to be looked for
	full        bool // the kernel has no more watches: what they would say is looked for each second
}

// wait takes one thing that may have happened, and reports whether to look because of it. The end of ctx is one.
func (p *patrol) wait(ctx context.Context) bool {
	select {
	case <-ctx.Done():
	case <-p.wake:
	case event := <-p.notify.Events:
		return p.matters(event)
	case err := <-p.notify.Errors: // events were lost: all is looked for again
		p.options.Logger.Warn("watch cgroups", "error", err)
	case <-p.quick.C:
		p.due = p.hasMoved()
		return p.due || p.full
	case <-p.slow.C:
		p.forgetUsers()
	}
	return true
}

// drain takes the events that wait: one look answers them all.
func (p *patrol) drain() {
	for {
		select {
		case event := <-p.notify.Events:
			p.matters(event)
		default:
			return
		}
	}
}

// matters reports whether to look because of an event. The engines are asked about new cgroups of containers before they
// speak of them.
func (p *patrol) matters(event fsnotify.Event) bool {
	if filepath.Dir(event.Name) == filepath.Dir(passwd) {
		if event.Name == passwd {
			p.forgetUsers()
		}
		return event.Name == passwd
	}
	if id := containerID(filepath.Base(event.Name)); id != "" && event.Has(fsnotify.Create) {
		for _, e := range p.engines {
			e.ask(id)
		}
	}
	return event.Op&(fsnotify.Create|fsnotify.Remove|fsnotify.Rename) != 0 // else: of a file in a cgroup, like cgroup.events
}

// follow looks, and watches the directories in which something could appear; where there are new ones it looks again,
// because something may have appeared before they were watched.
func (p *patrol) follow() {
	wasFull := p.full
	p.full = false
	for again := true; again; {
		s := p.look()
		again = p.settleMoves(s, p.due)
		p.due = false
		for dir := range p.watched {
			if !s.dirs[dir] {
				p.unwatch(dir)
			}
		}
		for dir := range s.dirs {
			added, err := p.watchDir(dir)
			again = again || added
			if err != nil {
				p.full = true
				if !wasFull {
					wasFull = true
					p.options.Logger.Warn("watch cgroups: changes are noticed a second late (fix: raise the sysctl fs.inotify.max_user_watches)", "error", err)
				}
			}
		}
	}
}

// watchDir watches a directory, unless that one is watched already: where one was removed and made again, the watch is of
// the old one, and fsnotify tells of its end only if the one above is not watched.
func (p *patrol) watchDir(dir string) (added bool, err error) {
	id, err := ID(dir) // before the watch: if another comes between, it is seen next time
	if err != nil {
		return false, nil // gone since
	}
	have, watched := p.watched[dir]
	if watched && have == id {
		return false, nil
	}
	if watched {
		p.unwatch(dir)
	}
	if err := p.notify.Add(dir); isGone(err) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	p.watched[dir] = id
	return true, nil
}

func (p *patrol) unwatch(dir string) {
	delete(p.watched, dir)
	_ = p.notify.Remove(dir) // an error: the watch went with the directory
}

// crew are the engines, which are followed for as long as an agent is a container.
type crew struct {
	engines []*engine
	cancel  context.CancelFunc
	running sync.WaitGroup
}

func (c *crew) engage(ctx context.Context, wanted bool) {
	switch {
	case wanted && c.cancel == nil:
		ctx, c.cancel = context.WithCancel(ctx)
		for _, e := range c.engines {
			c.running.Go(func() { e.run(ctx) })
		}
	case !wanted:
		c.stop()
	}
}

func (c *crew) stop() {
	if c.cancel != nil {
		c.cancel()
		c.running.Wait()
		c.cancel = nil
	}
}
