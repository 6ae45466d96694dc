package overlay

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
)

const (
	eventQueue   = 256
	hintPause    = 20 * time.Millisecond // between two looks at what hosts say: each costs a new snapshot
	drainAtOnce  = 64                    // events before what they changed is enforced
	pullWorkers  = 6                     // and one that only asks control hosts
	syncInterval = 30 * time.Second      // anti-entropy with one random host; halves to one and a half times of it
	retryApply   = time.Second
	nudgeEvery   = 150 * time.Millisecond
	maxNudges    = 20
	retryDisk    = 2 * time.Second
)

// Options are what a mesh is made from.
type Options struct {
	Mesh, Host string
	Roots      []*x509.Certificate
	Prefixes   []netip.Prefix // of the overlay: no endpoint of a host lies within
	Self       Self
	Store      Store
	Now        func() time.Time
	Logger     *slog.Logger
}

// Drivers are the ports that a running mesh acts through.
type Drivers struct {
	Tunnel   Tunnel
	Firewall Firewall
	Binder   Binder
	Network  Network
	Gossip   Gossip
	Found    map[string]Workload // where the agents' processes are when the mesh starts
	// Void is called after certificates became void: connections of their hosts shall end. It does not block.
	Void func()
}

// Mesh is one host's verified view of the others, and the loop that enforces what follows from it.
// Its methods are safe for concurrent use. Those that report what other hosts do never block: hints of one host
// replace each other, and other events are dropped (counted) when the loop is far behind. This host's own calls wait for
// their turn, which comes first.
type Mesh struct {
	options  Options
	calls    chan func()
	events   chan func()
	hinted   *hinted
	served   *served
	snapshot atomic.Pointer[Snapshot]
	dropped  atomic.Uint64

	changedMu sync.Mutex
	changed   chan struct{}
	stopped   chan struct{} // closed when Run returns

	state // owned by Run
}

// New loads what the store knows. It starts nothing; events queue until Run.
func New(o Options) (*Mesh, error) {
	m := &Mesh{
		options: o,
		calls:   make(chan func()),
		events:  make(chan func(), eventQueue),
		hinted:  newHinted(),
		served:  newServed(),
		changed: make(chan struct{}),
		stopped: make(chan struct{}),
		state:   newState(o),
	}
	if err := m.load(); err != nil {
		return nil, err
	}
	if err := m.acceptSelf(o.Self); err != nil {
		// A host whose certificate ended or was revoked still enforces, and may renew.
		o.Logger.Warn("this host has no valid record", "error", err)
	}
	maps.Copy(m.records, m.staged) // Run stores them
	m.publish()
	return m, nil
}

// Run enforces the stored state at once and every later one, until ctx ends. What is in the kernel stays there.
func (m *Mesh) Run(ctx context.Context, d Drivers) error {
	defer close(m.stopped)
	m.drivers, m.found = d, d.Found
	m.pulls = newPulls(d.Network, m.trusted)
	var workers sync.WaitGroup
	defer workers.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for i := range pullWorkers + 1 {
		workers.Go(func() { m.pulls.work(ctx, i == pullWorkers, m.received) })
	}
	for host := range m.records {
		if host != m.options.Host {
			d.Gossip.Learned(host)
		}
	}
	sync := time.NewTimer(jitter(syncInterval))
	defer sync.Stop()
	timer := time.NewTimer(0)
	defer timer.Stop()
	m.dirty = true
	hinted := m.hinted.wake
	var nudge, disk, listen <-chan time.Time
	for {
		timer.Reset(m.settle(ctx))
		if nudge == nil && m.nudges > 0 {
			nudge = time.After(nudgeEvery)
		}
		if disk == nil && m.storage != nil {
			disk = time.After(retryDisk)
		}
		select {
		case <-ctx.Done():
			return nil
		case call := <-m.calls:
			call()
		case event := <-m.events:
			event()
			m.drain()
		case <-hinted:
			m.acceptHints(m.hinted.take())
			hinted, listen = nil, time.After(hintPause)
		case <-listen:
			hinted = m.hinted.wake
		case <-timer.C:
			m.dirty = true
		case <-nudge:
			nudge = nil
			m.nudge()
		case <-disk:
			disk = nil
			m.retryStore()
		case <-sync.C:
			m.syncRandom()
			sync.Reset(jitter(syncInterval))
		}
	}
}

// drain takes events that wait, so that a burst is stored, planned and applied once; but not beyond a new policy.
func (m *Mesh) drain() {
	for range drainAtOnce {
		if m.newPolicy {
			return
		}
		select {
		case event := <-m.events:
			event()
		default:
			return
		}
	}
}

// settle makes the kernel follow the state and says how long nothing will have to be done.
func (m *Mesh) settle(ctx context.Context) time.Duration {
	m.newPolicy = false
	m.flushRecords()
	if m.dirty {
		m.expire()
		m.plan = m.planner.Plan(m.inputs())
		m.problem = m.apply(ctx)
		m.retryAt = m.options.Now().Add(retryApply)
		m.dirty = false
	}
	m.publish()
	m.announce() // after publish: who hears it asks at once
	m.dismiss()  // last: neither the kernel nor other hosts must wait for connections to close
	if m.problem != nil {
		return max(m.retryAt.Sub(m.options.Now()), time.Millisecond)
	}
	if m.plan.NextChange.IsZero() {
		return time.Hour
	}
	// A little late: at the very moment a certificate is still valid.
	return min(max(m.plan.NextChange.Sub(m.options.Now())+time.Millisecond, time.Millisecond), time.Hour)
}

// apply puts the plan into the kernel: first whose the addresses are, then what may pass, then who may connect, so that
// no address is ever open to all, and a withdrawn flow is dropped before its peer goes.
func (m *Mesh) apply(ctx context.Context) error {
	if err := m.drivers.Binder.Apply(ctx, m.plan.Bindings); err != nil {
		return fmt.Errorf("apply bindings: %w", err)
	}
	if err := m.drivers.Firewall.Apply(ctx, m.plan.Firewall); err != nil {
		return fmt.Errorf("apply firewall: %w", err)
	}
	if err := m.drivers.Tunnel.Apply(ctx, m.plan.Tunnel); err != nil {
		return fmt.Errorf("apply tunnel: %w", err)
	}
	if m.plan.PolicyVersion != m.enforced {
		m.options.Logger.Info("policy enforced", "version", m.plan.PolicyVersion,
			"peers", len(m.plan.Tunnel.Peers), "grants", len(m.plan.Firewall.Allow))
	}
	m.enforced = m.plan.PolicyVersion
	return nil
}

// do queues an event and reports whether there was room.
func (m *Mesh) do(event func()) bool {
	select {
	case m.events <- event:
		return true
	default:
		m.dropped.Add(1)
		return false
	}
}

// deliver queues the event of a worker of the loop, and waits for room.
func (m *Mesh) deliver(ctx context.Context, event func()) {
	select {
	case m.events <- event:
	case <-ctx.Done():
	}
}

// ErrStopped is returned when the loop has ended.
var ErrStopped = errors.New("mesh has stopped")

// SetSelf replaces what this host says about itself. A new record is signed and spread.
func (m *Mesh) SetSelf(s Self) error {
	return m.call(func() error { return m.acceptSelf(s) })
}

// SetWorkloads says where the processes of this host's agents are now.
func (m *Mesh) SetWorkloads(found map[string]Workload) error {
	return m.call(func() error {
		if !maps.EqualFunc(m.found, found, Workload.Equal) {
			m.found, m.dirty = maps.Clone(found), true
		}
		return nil
	})
}

// SubmitPolicy takes a signed policy, verifies it and acts on it; the error says why it was refused.
// A policy that is already held is not an error.
func (m *Mesh) SubmitPolicy(raw []byte) error {
	return m.call(func() error { return m.acceptPolicy(raw, m.options.Host) })
}

// SubmitRecord takes another host's signed record.
func (m *Mesh) SubmitRecord(raw []byte) error {
	return m.call(func() error { return m.acceptRecord(raw, m.options.Host) })
}

// call runs fn in the loop and waits for it; Run must have been called.
func (m *Mesh) call(fn func() error) error {
	done := make(chan error, 1)
	select {
	case m.calls <- func() { done <- fn() }:
	case <-m.stopped:
		return ErrStopped
	}
	select {
	case err := <-done:
		return err
	case <-m.stopped:
		return ErrStopped
	}
}

// Hint reports what host says about itself, over a connection of its own.
func (m *Mesh) Hint(host string, h Hint) { m.hinted.put(host, h, true) }

// Rumour reports what gossip says that host says about itself.
func (m *Mesh) Rumour(host string, h Hint) { m.hinted.put(host, h, false) }

// Unknown reports that from spoke of a host that has no verified record here.
func (m *Mesh) Unknown(host, from string) {
	m.do(func() {
		if m.records[host] == nil {
			m.pulls.want(from, pullRequest{Want: []string{host}, PolicyVersion: m.policyVersion()})
		}
	})
}

// Connected reports an authenticated connection with host: both sides tell each other what they hold.
func (m *Mesh) Connected(host string) {
	m.do(func() {
		m.sendHint(host)
		m.sync(host)
	})
}

// Known reports whether host has a verified record.
func (m *Mesh) Known(host string) bool { return m.Snapshot().Records[host] != nil }

// Trust is what certificates are judged by now.
func (m *Mesh) Trust() *identity.Trust { return m.Snapshot().Trust }

// trusted says whether host has the control role.
func (m *Mesh) trusted(host string) bool {
	r := m.Snapshot().Records[host]
	return r != nil && r.HostCert.Control
}

// Ping returns nil once the loop has taken it.
func (m *Mesh) Ping() error { return m.call(func() error { return nil }) }

// Reapply makes the loop put the plan into the kernel again.
func (m *Mesh) Reapply() { m.do(func() { m.dirty = true }) }

// jitter spreads d over half to one and a half times of it, so that hosts do not act in step.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d) }
