package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/bulkhead-mesh/bulkhead/control/api"
	"github.com/bulkhead-mesh/bulkhead/control/authority"
	"github.com/bulkhead-mesh/bulkhead/overlay"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

const (
	matchHelp = "`what` on this host the agent is, like unit=planner.service"
	// approvalPause is how often a pending agent is looked at.
	approvalPause = 100 * time.Millisecond
)

func parseMatch(text string) (overlay.Match, error) {
	match, err := overlay.ParseMatch(text)
	if err != nil {
		return overlay.Match{}, usageError{fmt.Errorf("--match: %w", err)}
	}
	return match, nil
}

func (a *app) newAgentAdd() *cobra.Command {
	var given []string
	var match string
	var wait bool
	var timeout time.Duration
	c := &cobra.Command{
		Use:   "add NAME --match WHAT",
		Short: "Declare an agent of this host",
		Long: `Declare an agent of this host, at once and without touching other agents' flows. It is active if its labels are within
what this host's token granted; otherwise it is pending, and reaches nothing until an operator approves it. Adding an
agent again with another --match moves it to those processes. --match is one of
  unit=NAME                                a systemd unit: worker.service, worker@*.service, batch.slice
  cgroup=/PATH                             below the cgroup v2 root
  container.name=NAME, container.label=KEY=VALUE, container.image=IMAGE
                                           Podman or Docker; several, separated by commas, must all fit
  user=NAME                                a user's name or number
  run                                      only what ` + "`bulkhead run`" + ` starts, which is the agent's in any case
  host                                     all that no other agent is`,
		Example: `  bulkhead agent add plan1 --label function=plan --label sensitivity=internal --match unit=planner.service
  bulkhead agent add web1 --label function=web --match container.name=web,container.label=tier=front --wait`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			d := api.AgentDeclaration{Name: bare("agent", args[0])}
			var err error
			if d.Labels, err = segment.ParseLabels(given); err != nil {
				return usageError{err}
			}
			if match == "" {
				return usageError{errors.New("--match is missing (fix: say which processes the agent is, like --match unit=planner.service)")}
			}
			if d.Match, err = parseMatch(match); err != nil {
				return err
			}
			return call(a, c, func(ctx context.Context, client *api.Client) (api.LocalAgent, error) {
				agent, err := client.AddLocalAgent(ctx, d)
				if err != nil || !wait {
					return agent, err
				}
				return waitActive(ctx, client, agent, timeout)
			}, showAdded)
		},
	}
	flags := c.Flags()
	flags.StringArrayVar(&given, "label", nil, "`key=value`; may be repeated")
	flags.StringVar(&match, "match", "", matchHelp)
	flags.BoolVar(&wait, "wait", false, "wait until it is approved")
	flags.DurationVar(&timeout, "timeout", time.Minute, "how long to --wait")
	return c
}

// waitActive returns when an agent of this host takes part.
func waitActive(ctx context.Context, client *api.Client, agent api.LocalAgent, timeout time.Duration) (api.LocalAgent, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	tick := time.NewTicker(approvalPause)
	defer tick.Stop()
	for agent.State == api.AgentPending || agent.State == api.AgentDeclared {
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return agent, fmt.Errorf("wait for agent %s: %w", agent.Name, ctx.Err())
			}
			return agent, fmt.Errorf("agent %s is still %s (fix: `bulkhead agent approve %s`, as an operator)", agent.Name, agent.State, agent.Name)
		case <-tick.C:
		}
		agents, err := client.LocalAgents(ctx)
		if err != nil && ctx.Err() == nil {
			return agent, err
		}
		for _, now := range agents {
			if now.Name == agent.Name {
				agent = now
			}
		}
	}
	return agent, nil
}

func showAdded(t *table, agent api.LocalAgent) {
	t.line("Agent %s is %s.", agent.Name, agent.State)
	if agent.State == api.AgentPending {
		t.line("Its labels are beyond what this host was granted. It reaches nothing until an operator runs: bulkhead agent approve %s", agent.Name)
	}
	t.row("Match:", agent.Match)
	t.row("Labels:", labels(agent.Labels))
	t.row("Addresses:", list(agent.Addresses))
	t.row("Segments:", list(agent.Segments))
	if agent.Problem != "" {
		t.row("Problem:", agent.Problem)
	}
	for _, gap := range agent.NotEnforced {
		t.row("Not enforced:", gap)
	}
}

func showLocalAgents(t *table, agents []api.LocalAgent) {
	t.row("AGENT", "MATCH", "STATE", "PROCESSES", "ADDRESSES", "LABELS", "SEGMENTS", "SOURCE")
	for _, agent := range agents {
		t.row(agent.Name, agent.Match, agent.State, yes(agent.Processes), list(agent.Addresses), labels(agent.Labels), list(agent.Segments), agent.Source)
	}
	for _, agent := range agents {
		if agent.Problem != "" {
			t.line("%s: %s", agent.Name, agent.Problem)
		}
	}
	for _, agent := range agents {
		for _, gap := range agent.NotEnforced {
			t.line("%s: not enforced: %s", agent.Name, gap)
		}
	}
}

func (a *app) newAgentRemove() *cobra.Command {
	return &cobra.Command{
		Use:   "remove NAME",
		Short: "Give an agent of this host up",
		Long: `Give an agent of this host up: what runs as it goes on running, and reaches nothing in the overlay any more. Outside the
overlay it reaches what the host does: if its segment guarded that, end it first. Its name may be taken by another host.
An agent of the configuration file is removed there.`,
		Example: "  bulkhead agent remove plan1",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			name := bare("agent", args[0])
			return call(a, c, func(ctx context.Context, client *api.Client) (map[string]string, error) {
				return map[string]string{"removed": name}, client.RemoveLocalAgent(ctx, name)
			}, func(t *table, _ map[string]string) { t.line("Agent %s is removed.", name) })
		},
	}
}

func (a *app) newAgentApprove() *cobra.Command {
	var given []string
	var match uint64
	c := &cobra.Command{
		Use:   "approve NAME",
		Short: "Let a pending agent take part, or a revoked one again",
		Long: `Let an agent take part whose labels are beyond what its host was granted, or bring one back that was revoked. What is
approved is the agent as it is shown now; with --label, it is refused if these are not its labels.`,
		Example: "  bulkhead agent approve vault1 --label function=vault --label sensitivity=restricted",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			wanted, err := segment.ParseLabels(given)
			if err != nil {
				return usageError{err}
			}
			name := bare("agent", args[0])
			return call(a, c, func(ctx context.Context, client *api.Client) (api.Agent, error) {
				r, err := whatIsApproved(ctx, client, name, wanted)
				if err != nil {
					return api.Agent{}, err
				}
				return client.ApproveAgent(ctx, name, r, match)
			}, showAgent)
		},
	}
	c.Flags().StringArrayVar(&given, "label", nil, "`key=value` that the agent must have; may be repeated")
	c.Flags().Uint64Var(&match, "if-match", 0, "refuse unless the policy still has this `version`")
	return c
}

// whatIsApproved is the agent as it is shown now. A host without the authority sees no pending agents but its own: there the
// labels that are wanted are all there is to go by.
func whatIsApproved(ctx context.Context, client *api.Client, name string, wanted segment.Labels) (authority.ApproveRequest, error) {
	seen, err := client.Agent(ctx, name)
	if p, ok := errors.AsType[*api.Problem](err); ok && p.Code == authority.CodeNotFound {
		if len(wanted) > 0 {
			return authority.ApproveRequest{Labels: wanted}, nil
		}
		p.Fix = "look on the control host that has the authority; elsewhere, say what to approve with --label"
	}
	if err != nil {
		return authority.ApproveRequest{}, err
	}
	if len(wanted) == 0 {
		wanted = seen.Labels
	}
	return authority.ApproveRequest{Host: seen.Host, Labels: wanted}, nil
}
