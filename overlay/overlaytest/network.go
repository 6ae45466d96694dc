package overlaytest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/bulkhead-mesh/bulkhead/overlay"
)

const (
	maxDatagram   = 1100 // bytes, as overlay.Network promises
	datagramQueue = 4096
)

// ErrUnreachable is what Open returns for a host that is not there or cut off.
var ErrUnreachable = errors.New("host is unreachable")

// Network joins any number of named hosts in memory. Datagrams keep their order between two hosts;
// streams are byte-faithful, with limited buffers and deadlines. It works in a testing/synctest bubble.
type Network struct {
	ctx  context.Context
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu     sync.Mutex
	nodes  map[string]*Node
	groups map[string]int // after Partition; hosts that it did not name are in group 0
	drop   func(from, to string, kind overlay.Kind, payload []byte) bool
	open   map[*link]bool
}

// link is a stream that is in use.
type link struct {
	from, to string
	ends     [2]*Stream
}

// NewNetwork returns an empty network. Close ends it.
func NewNetwork() *Network {
	ctx, stop := context.WithCancel(context.Background())
	return &Network{ctx: ctx, stop: stop, nodes: make(map[string]*Node), open: make(map[*link]bool)}
}

// Close removes all nodes and waits until every handler has returned.
func (n *Network) Close() {
	n.mu.Lock()
	names := make([]string, 0, len(n.nodes))
	for name := range n.nodes {
		names = append(names, name)
	}
	n.mu.Unlock()
	for _, name := range names {
		n.Remove(name)
	}
	n.stop()
	n.wg.Wait()
}

// Node adds a host to the network, in place of one that already has the name.
func (n *Network) Node(name string) *Node {
	n.Remove(name)
	ctx, stop := context.WithCancel(n.ctx)
	node := &Node{
		name: name, net: n, ctx: ctx, stop: stop,
		queue:     make(chan datagram, datagramQueue),
		datagrams: make(map[overlay.Kind]func(string, []byte)),
		streams:   make(map[overlay.Kind]func(context.Context, string, overlay.Stream)),
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.nodes[name] = node
	n.wg.Go(node.receive)
	return node
}

// Remove takes a host off the network, as if its power failed.
func (n *Network) Remove(name string) {
	n.mu.Lock()
	node := n.nodes[name]
	delete(n.nodes, name)
	n.mu.Unlock()
	if node != nil {
		node.stop()
		n.cut(func(from, to string) bool { return from == name || to == name })
	}
}

// Partition splits the network: hosts reach others of their group only. Hosts that no group names are
// a group of their own. Streams between groups break.
func (n *Network) Partition(groups ...[]string) {
	n.mu.Lock()
	n.groups = make(map[string]int)
	for i, group := range groups {
		for _, name := range group {
			n.groups[name] = i + 1
		}
	}
	n.mu.Unlock()
	n.cut(func(from, to string) bool { return !n.connected(from, to) })
}

// Heal ends a partition.
func (n *Network) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.groups = nil
}

// Drop loses the datagrams that lose says yes to; nil loses none. It is called by senders, concurrently.
func (n *Network) Drop(lose func(from, to string, kind overlay.Kind, payload []byte) bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.drop = lose
}

func (n *Network) connected(from, to string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.groups[from] == n.groups[to]
}

// peer returns the node that from reaches by the name to, or nil.
func (n *Network) peer(from *Node, to string) *Node {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.nodes[from.name] != from || n.groups[from.name] != n.groups[to] {
		return nil
	}
	return n.nodes[to]
}

func (n *Network) loses(from, to string, kind overlay.Kind, payload []byte) bool {
	n.mu.Lock()
	drop := n.drop
	n.mu.Unlock()
	return drop != nil && drop(from, to, kind, payload)
}

// cut breaks the streams between pairs of hosts that broken says yes to.
func (n *Network) cut(broken func(from, to string) bool) {
	n.mu.Lock()
	var links []*link
	for l := range n.open {
		links = append(links, l)
	}
	n.mu.Unlock()
	for _, l := range links {
		if broken(l.from, l.to) {
			l.ends[0].abort(ErrUnreachable)
			l.ends[1].abort(ErrUnreachable)
		}
	}
}

// Node is one host's side of a Network; it implements overlay.Network.
type Node struct {
	name  string
	net   *Network
	ctx   context.Context // ends when the node is removed
	stop  context.CancelFunc
	queue chan datagram

	mu        sync.Mutex
	datagrams map[overlay.Kind]func(from string, payload []byte)
	streams   map[overlay.Kind]func(ctx context.Context, from string, s overlay.Stream)
}

var _ overlay.Network = (*Node)(nil)

type datagram struct {
	from    string
	kind    overlay.Kind
	payload []byte
}

// OnDatagram sets the handler of datagrams of one kind. It is called for one datagram after the other.
func (d *Node) OnDatagram(kind overlay.Kind, handle func(from string, payload []byte)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.datagrams[kind] = handle
}

// OnStream sets the handler of incoming streams of one kind. It runs in a goroutine per stream; the
// stream is closed when it returns, and its context ends with the node.
func (d *Node) OnStream(kind overlay.Kind, handle func(ctx context.Context, from string, s overlay.Stream)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.streams[kind] = handle
}

// Send delivers a copy of payload, or loses it without an error.
func (d *Node) Send(host string, kind overlay.Kind, payload []byte) error {
	if len(payload) > maxDatagram {
		return fmt.Errorf("send datagram to %q: %d bytes are more than %d", host, len(payload), maxDatagram)
	}
	peer := d.net.peer(d, host)
	if peer == nil || d.net.loses(d.name, host, kind, payload) {
		return nil
	}
	select {
	case peer.queue <- datagram{d.name, kind, slices.Clone(payload)}:
	default: // a full queue loses, like a network
	}
	return nil
}

// Open starts a stream to host, whose handler runs until it returns or the node is removed.
func (d *Node) Open(ctx context.Context, host string, kind overlay.Kind) (overlay.Stream, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("open stream to %q: %w", host, err)
	}
	peer := d.net.peer(d, host)
	if peer == nil {
		return nil, fmt.Errorf("open stream to %q: %w", host, ErrUnreachable)
	}
	peer.mu.Lock()
	handle := peer.streams[kind]
	peer.mu.Unlock()
	if handle == nil {
		return nil, fmt.Errorf("open stream to %q: nobody handles kind %d", host, kind)
	}
	near, far := Pipe()
	l := &link{d.name, host, [2]*Stream{near, far}}
	if !d.net.start(d, peer, l, func() { handle(peer.ctx, d.name, far) }) {
		return nil, fmt.Errorf("open stream to %q: %w", host, ErrUnreachable)
	}
	return near, nil
}

// start runs a handler for l while both nodes are part of the network.
func (n *Network) start(from, to *Node, l *link, handle func()) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.nodes[from.name] != from || n.nodes[to.name] != to {
		return false
	}
	n.open[l] = true
	n.wg.Go(func() {
		handle()
		_ = l.ends[1].Close()
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.open, l)
	})
	return true
}

func (d *Node) receive() {
	for {
		select {
		case <-d.ctx.Done():
			return
		case m := <-d.queue:
			d.mu.Lock()
			handle := d.datagrams[m.kind]
			d.mu.Unlock()
			if handle != nil {
				handle(m.from, m.payload)
			}
		}
	}
}
