package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/bulkhead-mesh/bulkhead/control/api"
	"github.com/bulkhead-mesh/bulkhead/control/authority"
)

func (a *app) newHost() *cobra.Command {
	return noun("host", "Machines that run the daemon", a.newHostList(), a.newHostShow(), a.newHostRevoke())
}

func (a *app) newHostList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "All hosts", Example: "  bulkhead host list", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return call(a, c, func(ctx context.Context, client *api.Client) ([]api.Host, error) { return client.Hosts(ctx) },
				func(t *table, hosts []api.Host) {
					t.row("HOST", "STATE", "POLICY", "CONTROL", "AGENTS")
					for _, h := range hosts {
						t.row(h.Name, hostState(h), h.Enforced, yes(h.Control), list(h.Agents))
					}
				})
		},
	}
}

func (a *app) newHostShow() *cobra.Command {
	return &cobra.Command{
		Use: "show NAME", Short: "One host", Example: "  bulkhead host show h2", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return call(a, c, func(ctx context.Context, client *api.Client) (api.Host, error) {
				return client.Host(ctx, bare("host", args[0]))
			}, func(t *table, h api.Host) {
				t.row("Host:", h.Name)
				t.row("State:", hostState(h))
				t.row("Policy:", h.Enforced)
				t.row("Control:", yes(h.Control))
				t.row("Agents:", list(h.Agents))
				t.row("Joined:", when(h.Joined))
				t.row("Certificate:", until(h.Expires))
				t.row("Revoked:", when(h.Revoked))
			})
		},
	}
}

func (a *app) newHostRevoke() *cobra.Command {
	var reason string
	var change changeFlags
	c := &cobra.Command{
		Use:   "revoke NAME",
		Short: "Cut a host off: void its certificates, and its agents'",
		Long: `Void all certificates of a host and of the agents on it. Every other host cuts its flows, running ones too. The
host's name stays taken.`,
		Example: "  bulkhead host revoke h3 --reason stolen --wait",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.change(c, change, func(ctx context.Context, client *api.Client) (authority.Change, error) {
				return client.RevokeHost(ctx, bare("host", args[0]), reason)
			})
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "`text` for the audit record and the policy")
	change.define(c, false)
	return c
}

func hostState(h api.Host) string {
	switch {
	case h.Revoked != nil:
		return "revoked"
	case h.Alive:
		return "alive"
	}
	return "away"
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return ""
}
