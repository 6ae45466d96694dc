package main

import (
	"github.com/spf13/cobra"

	"github.com/bulkhead-mesh/bulkhead/daemon"
)

func (a *app) newDown() *cobra.Command {
	c := &cobra.Command{
		Use:   "down",
		Short: "Remove all of Bulkhead's rules, sets and routes from this host",
		Long: `Remove every rule, set and route that Bulkhead made on this host, and nothing else. Keys, certificates and policy
stay in the state directory, so that the daemon can start again. Stop the daemon first.`,
		Example: "  systemctl stop bulkhead && bulkhead down",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := a.config(c)
			if err != nil {
				return err
			}
			logger, _, err := newLogger(a.err, cfg)
			if err != nil {
				return err
			}
			return daemon.Down(c.Context(), cfg, logger)
		},
	}
	defineSettings(c.Flags(), "interface")
	return c
}
