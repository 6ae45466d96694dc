package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/bulkhead-mesh/bulkhead/control/api"
	"github.com/bulkhead-mesh/bulkhead/control/authority"
	"github.com/bulkhead-mesh/bulkhead/deploy/lab"
	"github.com/bulkhead-mesh/bulkhead/segment"

	"golang.org/x/sync/errgroup"
)

const (
	changeHosts = 20
	restBetween = 250 * time.Millisecond // between changes, so that each starts from a mesh at rest
	waitPause   = 50 * time.Millisecond  // between two questions of `--wait`

	targetMedian = 300 * time.Millisecond
	targetP99    = 800 * time.Millisecond
)

// workersPolicy makes every host a peer of every other.
const workersPolicy = `
segments:
  - {name: workers, match: {function: work, sensitivity: internal}}
rules:
  - {name: base, from: workers, to: workers, allow: [tcp/8000, icmp]}
`

// changed is the rule that is created and deleted in turn: 380 flows between 20 agents, at every host 38 in both
// families.
var changed = segment.Rule{
	Name: "changed", From: "workers", To: "workers", Allow: []segment.Ports{{Proto: segment.TCP, First: 9000, Last: 9000}},
}

// enforcement is a host's own word that a policy version is in its kernel.
type enforcement struct {
	host    int
	version uint64
	at      time.Time // when it arrived here
}

// watcher listens to the events of every host over the host's own socket. A daemon sends one when it has put a policy
// version into the kernel, so nobody has to be asked again and again, which would cost the hosts time.
type watcher struct {
	group    *errgroup.Group
	stop     context.CancelFunc
	enforced chan enforcement
	ended    <-chan struct{} // a stream has ended, or all were stopped
}

func newWatcher(ctx context.Context, m *lab.Mesh) (*watcher, error) {
	ctx, stop := context.WithCancel(ctx)
	group, ctx := errgroup.WithContext(ctx)
	w := &watcher{group: group, stop: stop, enforced: make(chan enforcement, 64*len(m.Hosts)), ended: ctx.Done()}
	listening := make(chan struct{}, len(m.Hosts))
	for i, node := range m.Hosts {
		group.Go(func() error { return w.listen(ctx, i, node, listening) })
	}
	for range m.Hosts {
		select {
		case <-listening:
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), w.close())
		}
	}
	return w, nil
}

// listen passes on what one host says. Its first event only tells that it listens.
func (w *watcher) listen(ctx context.Context, host int, node *lab.Node, listening chan<- struct{}) error {
	client := dialNode(node)
	defer client.Close()
	first := true
	err := client.Events(ctx, func(e api.Event) error {
		at := time.Now()
		if first {
			first = false
			listening <- struct{}{}
		}
		if e.Kind != api.EventPolicyApplied {
			return nil
		}
		select {
		case w.enforced <- enforcement{host, e.Version, at}:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	if ctx.Err() != nil {
		return nil // by close, or because another stream ended
	}
	return fmt.Errorf("listen to %s: %w", node.Name, err)
}

func (w *watcher) close() error {
	w.stop()
	return w.group.Wait()
}

// all waits until every one of the hosts has said that it enforces version, and returns when the last did.
func (w *watcher) all(ctx context.Context, hosts int, version uint64) (last time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	done := make(map[int]bool, hosts)
	for len(done) < hosts {
		select {
		case e := <-w.enforced:
			if e.version >= version {
				done[e.host], last = true, e.at
			}
		case <-w.ended:
			return last, errors.New("a host's events have ended")
		case <-ctx.Done():
			return last, fmt.Errorf("only %d of %d hosts enforce policy version %d: %w", len(done), hosts, version, ctx.Err())
		}
	}
	return last, nil
}

// measureChange changes the policy again and again, and takes the time until the last host enforces it.
func measureChange(ctx context.Context, s settings, p *progress, r *report) (err error) {
	specs := make([]lab.Spec, changeHosts)
	for i := range specs {
		specs[i] = lab.Spec{Agent: fmt.Sprintf("worker%d", i+1), Labels: segment.Labels{"function": "work", "sensitivity": "internal"}}
	}
	p.say("change: found a mesh of %d hosts", changeHosts)
	m, err := lab.NewMesh(ctx, s.binary, specs...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	if err := m.Apply(ctx, workersPolicy); err != nil {
		return err
	}
	w, err := newWatcher(ctx, m)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	control := dialNode(m.Hosts[0])
	defer control.Close()
	var enforced, told []time.Duration
	for i := range s.changes {
		p.say("change: %d of %d", i+1, s.changes)
		one, err := changeOnce(ctx, control, w, i%2 == 0)
		if err != nil {
			return err
		}
		enforced, told = append(enforced, one.enforced), append(told, one.told)
		if err := rest(ctx, restBetween); err != nil {
			return err
		}
	}
	r.Change = &change{
		Hosts: changeHosts, Changes: s.changes,
		Median: quantile(enforced, 0.5), P99: quantile(enforced, 0.99), Worst: quantile(enforced, 1),
		WaitMedian: quantile(told, 0.5), WaitP99: quantile(told, 0.99),
	}
	r.Change.Met = r.Change.Median <= targetMedian && r.Change.P99 <= targetP99
	return agree(ctx, m)
}

// oneChange is how long after the call to the API began the last host enforced, and `--wait` would have ended.
type oneChange struct{ enforced, told time.Duration }

func changeOnce(ctx context.Context, control *api.Client, w *watcher, create bool) (one oneChange, err error) {
	begin := time.Now()
	var made authority.Change
	if create {
		made, err = control.CreateRule(ctx, changed, 0)
	} else {
		made, err = control.DeleteRule(ctx, changed.Name, 0)
	}
	if err != nil {
		return one, fmt.Errorf("change the policy: %w", err)
	}
	group, groupCtx := errgroup.WithContext(ctx)
	group.Go(func() error {
		last, err := w.all(groupCtx, changeHosts, made.Version)
		one.enforced = last.Sub(begin)
		return err
	})
	group.Go(func() error {
		err := awaitRollout(groupCtx, control, made.Version)
		one.told = time.Since(begin)
		return err
	})
	return one, group.Wait()
}

// awaitRollout does what `--wait` does.
func awaitRollout(ctx context.Context, control *api.Client, version uint64) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		rollout, err := control.Rollout(ctx, version)
		if err != nil {
			return err
		}
		if rollout.Done {
			return nil
		}
		if err := rest(ctx, waitPause); err != nil {
			return fmt.Errorf("wait for policy version %d: %w", version, err)
		}
	}
}

// agree holds the events against every host's status.
func agree(ctx context.Context, m *lab.Mesh) error {
	var version uint64
	for i, node := range m.Hosts {
		status, err := node.Status(ctx)
		if err != nil {
			return err
		}
		if i == 0 {
			version = status.PolicyVersion
		}
		if status.PolicyVersion != version {
			return fmt.Errorf("%s enforces policy version %d at the end, %s %d", node.Name, status.PolicyVersion, m.Hosts[0].Name, version)
		}
	}
	return nil
}

// rest waits for d.
func rest(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
