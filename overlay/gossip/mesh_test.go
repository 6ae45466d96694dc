package gossip

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/bulkhead-mesh/bulkhead/overlay"
	"github.com/bulkhead-mesh/bulkhead/overlay/overlaytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// mesh is a number of hosts on one network in memory, to be used in a synctest bubble.
type mesh struct {
	t     *testing.T
	net   *overlaytest.Network
	hosts map[string]*host
}

// host runs a Gossip and records what it is told.
type host struct {
	*Gossip
	node *overlaytest.Node
	stop context.CancelFunc
	done chan error

	mu       sync.Mutex
	known    map[string]bool
	hints    map[string]overlay.Hint
	unknown  map[string]string
	liveness []string // "+name" and "-name"
}

func newMesh(t *testing.T) *mesh {
	return &mesh{t: t, net: overlaytest.NewNetwork(), hosts: make(map[string]*host)}
}

// close ends all hosts and gives memberlist's own goroutines the time to notice.
func (m *mesh) close() {
	for name := range m.hosts {
		m.stop(name)
	}
	m.net.Close()
	<-time.After(time.Minute)
}

// start runs a host that knows the others given.
func (m *mesh) start(name string, known ...string) *host {
	ctx, stop := context.WithCancel(m.t.Context())
	h := &host{
		node: m.net.Node(name), stop: stop, done: make(chan error, 1),
		known: make(map[string]bool), hints: make(map[string]overlay.Hint), unknown: make(map[string]string),
	}
	for _, other := range known {
		if other != name {
			h.known[other] = true
		}
	}
	h.Gossip = New(Options{
		Host: name, Network: h.node, Known: h.knows, Candidates: h.candidates,
		OnHint: h.onHint, OnUnknown: h.onUnknown, OnLiveness: h.onLiveness,
		Logger: slog.New(slog.DiscardHandler),
	})
	h.node.OnDatagram(overlay.KindGossip, h.HandleDatagram)
	h.node.OnStream(overlay.KindGossip, h.HandleStream)
	m.hosts[name] = h
	go func() { h.done <- h.Run(ctx) }()
	return h
}

// startAll runs hosts that all know each other, and waits until each sees all.
func (m *mesh) startAll(names ...string) {
	for _, name := range names {
		m.start(name, names...)
	}
	m.eventually(time.Minute, "all hosts see each other", func() bool { return m.complete(names...) })
}

// stop ends a host in an orderly way.
func (m *mesh) stop(name string) {
	h := m.hosts[name]
	delete(m.hosts, name)
	h.stop()
	if err := <-h.done; err != nil {
		m.t.Errorf("Run of %s: %v", name, err)
	}
}

// kill takes a host off the network without a word.
func (m *mesh) kill(name string) {
	m.net.Remove(name)
	m.stop(name)
}

// complete says whether exactly the named hosts see each other, of those that run.
func (m *mesh) complete(names ...string) bool {
	slices.Sort(names)
	for _, name := range names {
		h := m.hosts[name]
		others := slices.DeleteFunc(slices.Clone(names), func(n string) bool { return n == name })
		if h != nil && !slices.Equal(h.Alive(), others) {
			return false
		}
	}
	return true
}

func (m *mesh) eventually(within time.Duration, what string, ok func() bool) {
	m.t.Helper()
	start := time.Now()
	for !ok() {
		if time.Since(start) > within {
			for name, h := range m.hosts {
				m.t.Logf("%s sees %v, refused %v", name, h.Alive(), h.Stats())
			}
			m.t.Fatalf("not within %v: %s", within, what)
		}
		<-time.After(50 * time.Millisecond)
	}
}

func (h *host) knows(name string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.known[name]
}

func (h *host) candidates() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	names := make([]string, 0, len(h.known))
	for name := range h.known {
		names = append(names, name)
	}
	return names
}

func (h *host) onHint(name string, hint overlay.Hint) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.hints[name] = hint
}

func (h *host) onUnknown(name, from string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.unknown[name] = from
}

func (h *host) onLiveness(name string, alive bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	sign := "-"
	if alive {
		sign = "+"
	}
	h.liveness = append(h.liveness, sign+name)
}

func (h *host) hintOf(name string) overlay.Hint {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.hints[name]
}

func (h *host) wasTold(event string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Contains(h.liveness, event)
}

func (h *host) heardOf(name string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.unknown[name]
}

// learn stores a record, as the owner of a Gossip would.
func (h *host) learn(name string) {
	h.mu.Lock()
	h.known[name] = true
	h.mu.Unlock()
	h.Learned(name)
}

func (h *host) forget(name string) {
	h.mu.Lock()
	delete(h.known, name)
	h.mu.Unlock()
	h.Forget(name)
}

func names(n int) []string {
	var out []string
	for i := range n {
		out = append(out, fmt.Sprintf("h%02d", i))
	}
	return out
}
