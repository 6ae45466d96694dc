package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/bulkhead-mesh/bulkhead/control/api"
	"github.com/bulkhead-mesh/bulkhead/control/authority"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

func (a *app) newAgent() *cobra.Command {
	return noun("agent", "Workloads on hosts: what policy is about", a.newAgentAdd(), a.newAgentRemove(), a.newAgentApprove(),
		a.newAgentList(), a.newAgentShow(), a.newAgentRevoke(), a.newAgentRelabel())
}

func (a *app) newAgentList() *cobra.Command {
	var here bool
	c := &cobra.Command{
		Use: "list", Short: "All agents", Args: cobra.NoArgs,
		Long: `All agents of the mesh. STATE is active, pending (an operator has to approve it) or revoked. Pending ones of other hosts, and
revoked ones, are seen on the host with the authority.

With --here, those of this host alone: what each matches, whether something runs that does, and what this host cannot
enforce of it. STATE may then also be waiting (nothing runs that matches) or declared (control has not answered yet).`,
		Example: "  bulkhead agent list\n  bulkhead agent list --here",
		RunE: func(c *cobra.Command, _ []string) error {
			if here {
				return call(a, c, func(ctx context.Context, client *api.Client) ([]api.LocalAgent, error) {
					return client.LocalAgents(ctx)
				}, showLocalAgents)
			}
			return call(a, c, func(ctx context.Context, client *api.Client) ([]api.Agent, error) { return client.Agents(ctx) },
				func(t *table, agents []api.Agent) {
					t.row("AGENT", "HOST", "ADDRESSES", "LABELS", "SEGMENTS", "STATE")
					for _, agent := range agents {
						t.row(agent.Name, agent.Host, list(agent.Addresses), labels(agent.Labels), list(agent.Segments), agent.State)
					}
				})
		},
	}
	c.Flags().BoolVar(&here, "here", false, "those of this host, and their processes")
	return c
}

func (a *app) newAgentShow() *cobra.Command {
	return &cobra.Command{
		Use: "show NAME", Short: "One agent", Example: "  bulkhead agent show plan1", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return call(a, c, func(ctx context.Context, client *api.Client) (api.Agent, error) {
				return client.Agent(ctx, bare("agent", args[0]))
			}, showAgent)
		},
	}
}

func showAgent(t *table, agent api.Agent) {
	t.row("Agent:", agent.Name)
	t.row("Host:", agent.Host)
	t.row("State:", agent.State)
	t.row("Addresses:", list(agent.Addresses))
	t.row("Labels:", labels(agent.Labels))
	t.row("Segments:", list(agent.Segments))
	t.row("Certificate:", until(agent.Expires))
	t.row("Revoked:", when(agent.Revoked))
}

func (a *app) newAgentRevoke() *cobra.Command {
	var reason string
	var change changeFlags
	c := &cobra.Command{
		Use:   "revoke NAME",
		Short: "Cut an agent off: void its certificates",
		Long: `Void all certificates of an agent. Every host cuts its flows, running ones too, and it gets no new certificate until
it is approved again. An agent that waits for approval is turned down the same way.`,
		Example: "  bulkhead agent revoke plan1 --reason \"prompt injection\" --wait",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.change(c, change, func(ctx context.Context, client *api.Client) (authority.Change, error) {
				return client.RevokeAgent(ctx, bare("agent", args[0]), reason)
			})
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "`text` for the audit record and the policy")
	change.define(c, false)
	return c
}

func (a *app) newAgentRelabel() *cobra.Command {
	var given []string
	var change changeFlags
	c := &cobra.Command{
		Use:   "relabel NAME --label KEY=VALUE",
		Short: "Replace the labels of an agent",
		Long: `Replace all labels of an agent, and so move it between segments. Certificates with the old labels become void, and
its host gets new ones.`,
		Example: "  bulkhead agent relabel plan1 --label function=plan --label sensitivity=public --wait",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if len(given) == 0 {
				return usageError{errors.New("--label is missing (fix: give all labels that the agent shall have)")}
			}
			parsed, err := segment.ParseLabels(given)
			if err != nil {
				return usageError{err}
			}
			return a.change(c, change, func(ctx context.Context, client *api.Client) (authority.Change, error) {
				return client.Relabel(ctx, bare("agent", args[0]), parsed, change.match)
			})
		},
	}
	c.Flags().StringArrayVar(&given, "label", nil, "`key=value`; may be repeated")
	change.define(c, true)
	return c
}
