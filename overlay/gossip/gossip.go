// Package gossip answers who is probably alive and spreads hints. hashicorp/memberlist does both, over
// connections that prove the sender's name. It does not defend against its own members, so an inspecting
// layer lets only well-formed messages about known hosts through to it: nobody can announce, move or
// remove another host, and a claim that another is dead only makes each host look for itself.
package gossip

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
	"golang.org/x/sync/errgroup"

	"github.com/bulkhead-mesh/bulkhead/overlay"
)

const (
	leaveTimeout    = time.Second
	announceTimeout = 200 * time.Millisecond // until the next change may follow; it spreads on without us
)

// Options are what a Gossip needs; all fields are required. Known and Candidates are called often and
// from several goroutines, never with locks held. The On functions are called one at a time.
type Options struct {
	Host       string                            // this host's name
	Network    overlay.Network                   // carries packets and streams of overlay.KindGossip
	Known      func(host string) bool            // whether a verified record of another host is stored
	Candidates func() []string                   // all hosts that are Known
	OnHint     func(host string, h overlay.Hint) // a host claims h of itself
	OnUnknown  func(host, from string)           // from speaks of, or is, a host that is not Known
	OnLiveness func(host string, alive bool)     // a host probably came or went
	Logger     *slog.Logger
}

// Gossip implements overlay.Gossip. Its methods may be called at any time, also while Run does not run.
type Gossip struct {
	opts        Options
	inspector   *inspector
	asked       asked
	refusals    *refusals
	mentions    *mentions
	notices     *notices
	joins       *joins
	accusations *accusations
	senders     *senders
	delegate    delegate
	announce    chan struct{}
	running     atomic.Pointer[transport]
	tune        func(*memberlist.Config) // of tests: shorter times
}

var _ overlay.Gossip = (*Gossip)(nil)

// New returns a Gossip that does nothing until Run.
func New(opts Options) *Gossip {
	g := &Gossip{
		opts:        opts,
		refusals:    newRefusals(opts.Logger),
		mentions:    newMentions(),
		joins:       newJoins(),
		accusations: newAccusations(),
		senders:     newSenders(),
		announce:    make(chan struct{}, 1),
		tune:        func(*memberlist.Config) {},
	}
	g.notices = newNotices(&g.opts)
	g.inspector = &inspector{
		self:   opts.Host,
		known:  opts.Known,
		asked:  func(seq uint32, from string) bool { return g.asked.due(seq, from, time.Now()) },
		now:    time.Now,
		states: func() int { return len(opts.Candidates()) + spareStates },
	}
	return g
}

// Run takes part in gossip until ctx ends, then tells the others that this host leaves. It returns an
// error only if it cannot start.
func (g *Gossip) Run(ctx context.Context) error {
	background, stop := context.WithCancel(context.WithoutCancel(ctx)) // outlives ctx by the leave
	defer stop()
	t := g.newTransport(background, stop)
	members, err := memberlist.Create(g.config(t))
	if err != nil {
		return fmt.Errorf("start gossip: %w", err)
	}
	if err := g.startIncarnation(t); err != nil {
		_ = members.Shutdown()
		return fmt.Errorf("start gossip: %w", err)
	}
	g.running.Store(t)

	tasks, working := errgroup.WithContext(ctx)
	tasks.Go(func() error { return g.notices.run(working) })
	tasks.Go(func() error { return g.announceLoop(working, members) })
	tasks.Go(func() error { return g.joins.rejoin(working, g.absent) })
	for range joinWorkers {
		tasks.Go(func() error { return g.joins.work(working, func(host string) { g.join(members, host) }) })
	}
	for range checkWorkers {
		tasks.Go(func() error {
			return g.accusations.work(working, func(c accusation) { g.check(members, t, c) })
		})
	}
	<-ctx.Done()
	if err := members.Leave(leaveTimeout); err != nil {
		g.opts.Logger.Debug("leave gossip", "error", err)
	}
	g.running.Store(nil)
	shutdownErr := members.Shutdown()
	t.conns.Wait()
	err = tasks.Wait()
	g.notices.reset()
	if err == nil {
		err = shutdownErr
	}
	return err
}

// Stats returns how many messages were refused, by reason.
func (g *Gossip) Stats() map[string]uint64 { return g.refusals.stats() }

// Announce replaces what this host says about itself.
func (g *Gossip) Announce(h overlay.Hint) {
	if err := g.delegate.set(h); err != nil {
		g.opts.Logger.Error("announce hint", "error", err)
		return
	}
	select {
	case g.announce <- struct{}{}:
	default:
	}
}

// announceLoop spreads the newest hint; what changes meanwhile goes out together.
func (g *Gossip) announceLoop(ctx context.Context, members *memberlist.Memberlist) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-g.announce:
			_ = members.UpdateNode(announceTimeout) // its only error is the timeout
		}
	}
}

// Learned lets host take part: its record is verified and stored, so Known says yes to it by now.
func (g *Gossip) Learned(host string) {
	from, message := g.mentions.take(host)
	if message != nil && from != host {
		g.packet(from, message)
	}
	if from == host || g.joins.isWanted(host) {
		g.joins.add(host) // it was refused, or asked for, when we did not know it
	}
	g.notices.recheck(host)
}

// Forget ends host's part: its certificate is void, so Known says no to it by now.
func (g *Gossip) Forget(host string) {
	g.senders.forget(host)
	g.accusations.forget(host)
	g.notices.recheck(host)
}

// Alive returns the other known hosts that probably live, sorted.
func (g *Gossip) Alive() []string { return g.notices.alive() }

// Join asks for a full exchange with each host, in the background; with an unknown one as soon as it is Learned.
func (g *Gossip) Join(hosts []string) {
	for _, host := range hosts {
		switch {
		case host == g.opts.Host:
		case g.opts.Known(host):
			g.joins.add(host)
		default:
			g.joins.want(host)
		}
	}
}

func (g *Gossip) join(members *memberlist.Memberlist, host string) {
	if !g.opts.Known(host) {
		g.joins.want(host)
		return
	}
	if _, err := members.Join([]string{host + "/" + hostPort(host)}); err != nil {
		g.opts.Logger.Debug("join host", "host", host, "error", err)
	}
}

// check looks whether an accused host answers. If it does, it is told of the accusation: the accuser
// may be cut off from it and would hear its answer through others.
func (g *Gossip) check(members *memberlist.Memberlist, t *transport, c accusation) {
	_, err := members.Ping(c.host, addr(c.host))
	g.accusations.heard(c.host, err == nil, time.Now())
	if err == nil {
		g.refusals.add(c.from, reasonContradicted, c.message)
		_, _ = t.WriteToAddress(c.message, memberlist.Address{Name: c.host})
		return
	}
	t.deliver(c.from, c.message)
}

// absent returns the known hosts that are not alive.
func (g *Gossip) absent() []string {
	alive := g.Alive()
	return slices.DeleteFunc(slices.Clone(g.opts.Candidates()), func(host string) bool {
		_, found := slices.BinarySearch(alive, host)
		return found || host == g.opts.Host
	})
}
