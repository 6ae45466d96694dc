package gossip

import (
	"context"
	"maps"
	"slices"
	"sync"

	"github.com/hashicorp/memberlist"

	"github.com/bulkhead-mesh/bulkhead/overlay"
)

const maxNotices = 4096 // unknown hosts that the owner has not been told of yet

// notices collects what memberlist says about hosts and tells it to the owner. memberlist calls in with
// its locks held, so it only leaves marks here; several marks for one host become one notice.
type notices struct {
	self string
	opts *Options
	wake chan struct{}

	mu      sync.Mutex
	members map[string]*overlay.Hint // that memberlist takes for alive, and their last hint or nil
	told    map[string]bool          // hosts that the owner takes for alive
	changed map[string]bool          // hosts to tell of; true: the hint too
	unknown map[string]string        // host mentioned, and who mentioned it
}

var _ memberlist.EventDelegate = (*notices)(nil)

func newNotices(opts *Options) *notices {
	return &notices{
		self: opts.Host, opts: opts, wake: make(chan struct{}, 1),
		members: make(map[string]*overlay.Hint), told: make(map[string]bool),
		changed: make(map[string]bool), unknown: make(map[string]string),
	}
}

func (n *notices) NotifyJoin(node *memberlist.Node)   { n.member(node) }
func (n *notices) NotifyUpdate(node *memberlist.Node) { n.member(node) }

func (n *notices) member(node *memberlist.Node) {
	if node.Name == n.self {
		return
	}
	var hint *overlay.Hint
	if h, err := overlay.ParseHint(node.Meta); err == nil {
		hint = &h
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.members[node.Name] = hint
	n.markLocked(node.Name, true)
}

func (n *notices) NotifyLeave(node *memberlist.Node) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.members, node.Name)
	n.markLocked(node.Name, false)
}

// recheck makes the owner hear of host again if that is due, after it became or ceased to be known.
func (n *notices) recheck(host string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.markLocked(host, true)
}

// mention reports a host that is not known. When too many wait, it is lost; it will be mentioned again.
func (n *notices) mention(host, from string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.unknown) < maxNotices {
		n.unknown[host] = from
	}
	n.wakeUp()
}

// reset forgets all members when memberlist ends. The owner, who ended it, is not told.
func (n *notices) reset() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.members)
	clear(n.told)
	clear(n.changed)
}

func (n *notices) markLocked(host string, hint bool) {
	n.changed[host] = n.changed[host] || hint
	n.wakeUp()
}

func (n *notices) wakeUp() {
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

func (n *notices) isMember(host string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	_, ok := n.members[host]
	return ok
}

func (n *notices) alive() []string {
	n.mu.Lock()
	hosts := slices.Sorted(maps.Keys(n.members))
	n.mu.Unlock()
	return slices.DeleteFunc(hosts, func(h string) bool { return !n.opts.Known(h) })
}

// run tells the owner until ctx ends.
func (n *notices) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-n.wake:
			n.deliver()
		}
	}
}

// deliver calls the owner without holding the lock. Only one goroutine may call it at a time.
func (n *notices) deliver() {
	n.mu.Lock()
	changed, unknown := n.changed, n.unknown
	n.changed, n.unknown = make(map[string]bool), make(map[string]string)
	n.mu.Unlock()
	for _, host := range slices.Sorted(maps.Keys(changed)) {
		n.tell(host, changed[host])
	}
	for _, host := range slices.Sorted(maps.Keys(unknown)) {
		n.opts.OnUnknown(host, unknown[host])
	}
}

func (n *notices) tell(host string, withHint bool) {
	known := n.opts.Known(host)
	n.mu.Lock()
	hint, member := n.members[host]
	alive := known && member
	news := alive != n.told[host]
	if alive {
		n.told[host] = true
	} else {
		delete(n.told, host)
	}
	n.mu.Unlock()
	if news {
		n.opts.OnLiveness(host, alive)
	}
	if alive && withHint && hint != nil {
		n.opts.OnHint(host, *hint)
	}
}
