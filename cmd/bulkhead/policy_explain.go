package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/bulkhead-mesh/bulkhead/control/api"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

func (a *app) newPolicyExplain() *cobra.Command {
	return &cobra.Command{
		Use:   "explain SRC DST PORT",
		Short: "Whether one agent may open a port of another, and why",
		Long: `Say whether agent SRC may open PORT of agent DST, by which rule and policy version; for a deny, the nearest rule and
what is missing. Exit code 4 if the answer is deny.`,
		Example: "  bulkhead policy explain agent/plan1 agent/vec1 tcp/5432",
		Args:    cobra.ExactArgs(3),
		RunE: func(c *cobra.Command, args []string) error {
			if _, err := segment.ParsePort(args[2]); err != nil {
				return usageError{err}
			}
			denied := false
			err := call(a, c, func(ctx context.Context, client *api.Client) (api.Explanation, error) {
				e, err := client.Explain(ctx, args[0], args[1], args[2])
				denied = e.Verdict != "allow"
				return e, err
			}, showExplanation)
			if err == nil && denied {
				return verdict{exitDenied}
			}
			return err
		},
	}
}

func showExplanation(t *table, e api.Explanation) {
	t.line("%s: %s to %s of %s", e.Verdict, e.From, e.Port, e.To)
	t.row("Policy version:", e.PolicyVersion)
	if e.Rule != "" {
		t.row("Rule:", e.Rule)
	}
	t.row("Reason:", e.Reason)
	t.row("From segments:", list(e.FromSegments))
	t.row("To segments:", list(e.ToSegments))
	if e.Nearest != "" {
		t.row("Nearest rule:", e.Nearest)
	}
	for _, missing := range e.Missing {
		t.row("Missing:", missing)
	}
}

func (a *app) newPolicyReach() *cobra.Command {
	return &cobra.Command{
		Use:   "reach AGENT",
		Short: "Whom an agent can get to, directly and through others",
		Long: `Show every agent that AGENT can get to, directly and by way of others: what is at stake if it is taken over, its
blast radius.`,
		Example: "  bulkhead policy reach agent/plan1",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return call(a, c, func(ctx context.Context, client *api.Client) (api.Reach, error) { return client.Reach(ctx, args[0]) },
				func(t *table, r api.Reach) {
					t.line("%s can get to %d agents (policy version %d).", r.Agent, len(r.Reached), r.PolicyVersion)
					showReached(t, r.Reached)
				})
		},
	}
}

func showReached(t *table, reached []segment.Reached) {
	if len(reached) == 0 {
		return
	}
	t.row("AGENT", "HOPS", "VIA", "PORTS", "RULES")
	for _, r := range reached {
		t.row(r.Agent, r.Hops, list(r.Via), list(r.Ports), list(r.Rules))
	}
}
