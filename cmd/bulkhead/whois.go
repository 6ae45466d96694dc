package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/bulkhead-mesh/bulkhead/control/api"
)

func (a *app) newWhois() *cobra.Command {
	return &cobra.Command{
		Use:     "whois ADDRESS",
		Short:   "Who is behind an overlay address",
		Long:    "Say which agent has an overlay address, as peers and logs show it: with or without a port.",
		Example: "  bulkhead whois 10.201.0.7:51342",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return call(a, c, func(ctx context.Context, client *api.Client) (api.Whois, error) { return client.Whois(ctx, args[0]) },
				func(t *table, who api.Whois) {
					t.row("Agent:", who.Agent)
					t.row("Host:", who.Host)
					t.row("Labels:", labels(who.Labels))
					t.row("Segments:", list(who.Segments))
					t.row("Addresses:", list(who.Addresses))
					t.row("ID:", who.ID)
					t.row("Certificate:", "sha256:"+who.Certificate+" "+until(&who.Expires))
					t.row("Policy:", who.PolicyVersion)
				})
		},
	}
}
