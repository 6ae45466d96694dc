package main

import (
	"context"
	"errors"
	"io/fs"

	"github.com/spf13/cobra"

	"github.com/bulkhead-mesh/bulkhead/control/api"
	"github.com/bulkhead-mesh/bulkhead/control/authority"
)

func (a *app) newWhois() *cobra.Command {
	c := &cobra.Command{
		Use:   "whois ADDRESS",
		Short: "Who is behind an overlay address",
		Long: `Say which agent has an overlay address, as peers and logs show it: with or without a port. An agent may ask about itself and
those that it may reach, or that may reach it.`,
		Example: "  bulkhead whois 10.201.0.7:51342",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return call(a, c, func(ctx context.Context, client *api.Client) (api.Whois, error) {
				return a.whois(ctx, c, client, args[0])
			},
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
	defineSettings(c.Flags(), "agent-socket")
	return c
}

// whois asks where the caller may: an agent has a socket of its own for that.
func (a *app) whois(ctx context.Context, c *cobra.Command, client *api.Client, addr string) (api.Whois, error) {
	who, err := client.Whois(ctx, addr)
	if !errors.Is(err, fs.ErrPermission) && !isDenied(err) || !client.IsLocal() {
		return who, err
	}
	socket, _, problem := a.forRun(c)
	if problem != nil {
		return who, err
	}
	agents, problem := api.Dial(api.DialOptions{Socket: socket})
	if problem != nil {
		return who, err
	}
	defer agents.Close()
	return agents.Whois(ctx, addr)
}

func isDenied(err error) bool {
	p, ok := errors.AsType[*api.Problem](err)
	return ok && p.Code == authority.CodeDenied
}
