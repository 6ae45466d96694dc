package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"

	"github.com/bulkhead-mesh/bulkhead/control/api"
	"github.com/bulkhead-mesh/bulkhead/control/authority"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

// rolloutPause is how often hosts are counted: often enough that --wait adds little to what it measures.
const rolloutPause = 50 * time.Millisecond

// changeFlags are those of all commands that change policy.
type changeFlags struct {
	wait    bool
	timeout time.Duration
	match   uint64
}

func (f *changeFlags) define(c *cobra.Command, matches bool) {
	flags := c.Flags()
	flags.BoolVar(&f.wait, "wait", false, "wait until all hosts that are alive enforce it")
	flags.DurationVar(&f.timeout, "timeout", time.Minute, "how long to --wait")
	if matches {
		flags.Uint64Var(&f.match, "if-match", 0, "refuse unless the policy still has this `version`")
	}
}

// change makes a change, prints it, and waits for the hosts if asked to.
func (a *app) change(c *cobra.Command, f changeFlags, make func(context.Context, *api.Client) (authority.Change, error)) error {
	client, err := a.connect(c)
	if err != nil {
		return err
	}
	defer client.Close()
	change, err := make(c.Context(), client)
	if err != nil {
		return err
	}
	if err := a.answer(change, func(t *table) { showChange(t, change) }); err != nil || !f.wait {
		return err
	}
	return a.waitRollout(c.Context(), client, change.Version, f.timeout)
}

func showChange(t *table, change authority.Change) {
	if change.Unchanged {
		t.line("Nothing to change: policy version %d stays.", change.Version)
		return
	}
	t.line("Policy version %d.", change.Version)
	showDifference(t, change.Difference)
	showTests(t, change.Tests, false)
}

func showDifference(t *table, d segment.Difference) {
	showFlows(t, d)
	if len(d.Egress)+len(d.Guards) == 0 {
		return
	}
	if len(d.Gained)+len(d.Lost) > 0 {
		t.line("")
	}
	t.row("EGRESS", "WAS", "IS")
	for _, e := range d.Egress {
		t.row(e.Segment, e.Old, e.New)
	}
	for _, g := range d.Guards {
		t.row("agent/"+g.Agent, g.Old, g.New)
	}
}

func showFlows(t *table, d segment.Difference) {
	if len(d.Gained)+len(d.Lost) == 0 {
		return
	}
	t.row("FLOWS", "FROM", "TO", "PORTS", "RULES")
	for _, g := range d.Gained {
		t.row("gained", g.From, g.To, list(g.Ports), list(g.Rules))
	}
	for _, l := range d.Lost {
		t.row("lost", l.From, l.To, list(l.Ports), list(l.Rules))
	}
}

// showTests prints results of policy tests: all, or those that fail.
func showTests(t *table, tests []segment.TestResult, all bool) {
	failed := 0
	for _, test := range tests {
		if !test.Pass {
			failed++
		}
	}
	if len(tests) == 0 || failed == 0 && !all {
		return
	}
	t.line("%d of %d tests pass.", len(tests)-failed, len(tests))
	for _, test := range tests {
		if mark := "pass"; all || !test.Pass {
			if !test.Pass {
				mark = "FAIL"
			}
			t.row(mark, test.Test.From, test.Test.To, test.Test.Port, "expected "+test.Test.Expect, "got "+test.Got, test.Detail)
		}
	}
}

// waitRollout returns when every host that is alive enforces version.
func (a *app) waitRollout(ctx context.Context, client *api.Client, version uint64, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	progress := a.newProgress(version)
	tick := time.NewTicker(rolloutPause)
	defer tick.Stop()
	var last api.Rollout
	for {
		rollout, err := client.Rollout(ctx, version)
		if err == nil {
			last = rollout
			progress.show(rollout)
			if rollout.Done {
				return progress.end()
			}
		} else if ctx.Err() == nil {
			return errors.Join(err, progress.end())
		}
		select {
		case <-ctx.Done():
			return errors.Join(lagging(ctx, last, version), progress.end())
		case <-tick.C:
		}
	}
}

// lagging names the hosts that were waited for.
func lagging(ctx context.Context, r api.Rollout, version uint64) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return fmt.Errorf("wait for version %d: %w", version, ctx.Err())
	}
	var late []string
	for _, h := range r.Hosts {
		if h.Alive && h.Enforced < version {
			late = append(late, fmt.Sprintf("%s (at %d)", h.Name, h.Enforced))
		}
	}
	return fmt.Errorf("policy version %d is made, but not yet enforced by %s (fix: see `bulkhead status` there; it will be as soon as they can)",
		version, list(late))
}

// progress shows how many hosts enforce a version: a bar on a terminal, lines elsewhere.
type progress struct {
	app     *app
	version uint64
	bar     *progressbar.ProgressBar
	last    string
}

func (a *app) newProgress(version uint64) *progress {
	p := &progress{app: a, version: version}
	if isTerminal(a.err) {
		p.bar = progressbar.NewOptions(1,
			progressbar.OptionSetWriter(a.err),
			progressbar.OptionSetDescription(fmt.Sprintf("hosts that enforce version %d", version)),
			progressbar.OptionShowCount(),
			progressbar.OptionSetWidth(30),
			progressbar.OptionSetPredictTime(false),
		)
	}
	return p
}

func (p *progress) show(r api.Rollout) {
	alive, enforced := 0, 0
	for _, h := range r.Hosts {
		if h.Alive {
			alive++
			if h.Enforced >= p.version {
				enforced++
			}
		}
	}
	line := fmt.Sprintf("%d of %d hosts enforce policy version %d", enforced, alive, p.version)
	if line == p.last {
		return
	}
	p.last = line
	if p.bar == nil {
		fmt.Fprintln(p.app.err, line)
		return
	}
	p.bar.ChangeMax(max(alive, 1))
	// A bar that cannot be drawn is no reason to fail.
	_ = p.bar.Set(enforced)
}

// end leaves the cursor on a line of its own.
func (p *progress) end() error {
	if p.bar == nil {
		return nil
	}
	_, err := fmt.Fprintln(p.app.err)
	return err
}
