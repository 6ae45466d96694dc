package main

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/bulkhead-mesh/bulkhead/control/authority"
	"github.com/bulkhead-mesh/bulkhead/deploy/lab"
)

const (
	flowing    = 2 << 20 // bytes: then a download is taken to run
	startsIn   = 10 * time.Second
	cutWithin  = time.Second     // of the change the last byte may come
	listenMore = 2 * time.Second // after that, for bytes that must not come
)

// withdrawRule deletes a rule while the auditor loads from the catalog by it.
func withdrawRule(ctx context.Context, b *board, s *stage) error {
	used := flow{"auditor", "catalog", web}
	change := func() (authority.Change, error) { return s.control.DeleteRule(ctx, withdrawn, 0) }
	if err := b.cut(ctx, s, used, "rule "+withdrawn+" withdrawn", change); err != nil {
		return err
	}
	b.check(s.passes(ctx, false, used), "the auditor cannot connect to the catalog any more")
	kept := flow{"auditor", "vault", postgres}
	b.check(s.passes(ctx, true, kept), "the auditor still works with the vault")
	return ctx.Err()
}

// revokeHost revokes the planner's host while it loads from the catalog.
func revokeHost(ctx context.Context, b *board, s *stage) error {
	used := flow{"planner", "catalog", web}
	planner, catalog := s.agents["planner"], s.agents["catalog"]
	change := func() (authority.Change, error) {
		return s.control.RevokeHost(ctx, planner.node.Name, "shown in the demo")
	}
	if err := b.cut(ctx, s, used, "host "+planner.node.Name+" revoked", change); err != nil {
		return err
	}
	b.check(s.passes(ctx, false, used, flow{"planner", "catalog", postgres}), "the planner reaches nothing any more")
	status, err := catalog.node.Status(ctx)
	if err != nil {
		return err
	}
	known := false
	for _, peer := range status.Peers {
		known = known || peer.Name == planner.node.Name
	}
	b.check(!known, "the catalog's host has no tunnel to %s any more", planner.node.Name)
	b.check(s.passes(ctx, true, flow{"auditor", "vault", postgres}), "the auditor still works with the vault")
	return ctx.Err()
}

// cut makes a change while a download by f runs, and checks when its last byte came.
func (b *board) cut(ctx context.Context, s *stage, f flow, what string, change func() (authority.Change, error)) error {
	load, err := s.load(ctx, f)
	if err != nil {
		return err
	}
	defer load.close()
	err = lab.Eventually(ctx, startsIn, func() error {
		if n, _ := load.received(); n < flowing {
			return fmt.Errorf("the download has carried %d bytes", n)
		}
		return nil
	})
	if err != nil {
		return err
	}
	asked := time.Now()
	before, _ := load.received()
	made, err := change()
	if err != nil {
		return err
	}
	answered := time.Since(asked)
	// Not until the connection ends: what must not come might come after.
	select {
	case <-time.After(time.Until(asked.Add(cutWithin + listenMore))):
	case <-ctx.Done():
		return ctx.Err()
	}
	n, last := load.received()
	b.line("the %s had loaded %s from the %s when the change was asked for", f.from, megabytes(before), f.to)
	b.line("policy version %d, signed and answered after %s", made.Version, milliseconds(answered))
	b.check(last.Before(asked.Add(cutWithin)), "%s: the last byte came %s after the change was asked for (%s in all)",
		what, milliseconds(max(last.Sub(asked), 0)), megabytes(n))
	return nil
}

// transfer is a download that runs.
type transfer struct {
	cancel context.CancelFunc
	reader sync.WaitGroup

	mu   sync.Mutex
	n    int64
	last time.Time // when bytes last came
}

// load starts a download over IPv4.
func (s *stage) load(ctx context.Context, f flow) (*transfer, error) {
	ctx, cancel := context.WithCancel(ctx)
	body, err := s.get(ctx, f, 0, "/download")
	if err != nil {
		cancel()
		return nil, err
	}
	t := &transfer{cancel: cancel}
	t.reader.Go(func() { t.read(body) })
	return t, nil
}

func (t *transfer) read(body io.ReadCloser) {
	defer body.Close()
	buf := make([]byte, chunk)
	for {
		n, err := body.Read(buf)
		if n > 0 {
			t.mu.Lock()
			t.n, t.last = t.n+int64(n), time.Now()
			t.mu.Unlock()
		}
		if err != nil {
			return
		}
	}
}

func (t *transfer) received() (int64, time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.n, t.last
}

func (t *transfer) close() {
	t.cancel()
	t.reader.Wait()
}

func megabytes(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }

func milliseconds(d time.Duration) string { return fmt.Sprintf("%d ms", d.Milliseconds()) }
