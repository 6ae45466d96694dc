package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/bulkhead-mesh/bulkhead/control/api"
	"github.com/bulkhead-mesh/bulkhead/control/authority"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

func (a *app) newPolicyApply() *cobra.Command {
	var file string
	var change changeFlags
	c := &cobra.Command{
		Use:   "apply -f FILE",
		Short: "Replace the policy",
		Long: `Replace the policy with a document. It is refused if it has errors or its tests fail, or if somebody else changed
the policy meanwhile. With --wait, end when all hosts that are alive enforce it.`,
		Example: `  bulkhead policy apply -f policy.yaml --wait
  bulkhead policy show | sed s/tcp.80/tcp.443/ | bulkhead policy apply -f -`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			document, err := a.readDocument(file)
			if err != nil {
				return err
			}
			return a.change(c, change, func(ctx context.Context, client *api.Client) (authority.Change, error) {
				match := change.match
				if match == 0 {
					current, err := client.Policy(ctx)
					if err != nil {
						return authority.Change{}, err
					}
					match = current.Version
				}
				return client.PutPolicy(ctx, document, match)
			})
		},
	}
	defineFile(c, &file)
	change.define(c, true)
	return c
}

func (a *app) newPolicyCheck() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "check -f FILE",
		Short: "What applying a policy would do: errors, tests, who gains and loses what",
		Long: `Say what applying a document would do, and change nothing: its errors, the result of its tests, the flows gained
and lost, and whom the agents concerned could then get to. Exit code 5 if tests fail, 1 if there are errors.`,
		Example: "  bulkhead policy check -f policy.yaml",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			check, err := a.checkDocument(c, file)
			if err != nil {
				return err
			}
			if err := a.answer(check, func(t *table) { showCheck(t, check) }); err != nil {
				return err
			}
			return checkVerdict(check)
		},
	}
	defineFile(c, &file)
	return c
}

func (a *app) newPolicyDiff() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "diff -f FILE",
		Short: "Flows that applying a policy would allow and withdraw",
		Long: `Show the flows between agents that applying a document would allow (gained) and withdraw (lost), against the policy in
force, and the segments and agents that may reach something else outside the overlay than before.`,
		Example: "  bulkhead policy diff -f policy.yaml",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			check, err := a.checkDocument(c, file)
			if err != nil {
				return err
			}
			if len(check.Problems) > 0 {
				return problems(check.Problems)
			}
			return a.answer(check.Difference, func(t *table) {
				if len(check.Difference.Gained)+len(check.Difference.Lost) == 0 {
					t.line("No flow changes against policy version %d.", check.Version)
				}
				showDifference(t, check.Difference)
			})
		},
	}
	defineFile(c, &file)
	return c
}

func (a *app) checkDocument(c *cobra.Command, file string) (api.Check, error) {
	document, err := a.readDocument(file)
	if err != nil {
		return api.Check{}, err
	}
	client, err := a.connect(c)
	if err != nil {
		return api.Check{}, err
	}
	defer client.Close()
	return client.CheckPolicy(c.Context(), document)
}

func showCheck(t *table, check api.Check) {
	for _, p := range check.Problems {
		t.line("%s", p)
	}
	if len(check.Problems) > 0 {
		return
	}
	if check.Unchanged {
		t.line("It is policy version %d: nothing would change.", check.Version)
	} else {
		t.line("Against policy version %d:", check.Version)
	}
	showDifference(t, check.Difference)
	showTests(t, check.Tests, true)
	for _, reach := range check.Reach {
		t.line("\n%s could get to %d agents:", reach.Agent, len(reach.Reached))
		showReached(t, reach.Reached)
	}
}

// checkVerdict is the exit code of a check whose answer was given.
func checkVerdict(check api.Check) error {
	switch {
	case len(check.Problems) > 0:
		return verdict{exitError}
	case !check.OK:
		return verdict{exitTestsFailed}
	}
	return nil
}

// problems is the error of a document that cannot be compared.
func problems(list []segment.Problem) error { return &segment.PolicyError{Problems: list} }
