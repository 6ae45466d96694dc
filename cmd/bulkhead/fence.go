package main

import (
	"github.com/spf13/cobra"

	"github.com/bulkhead-mesh/bulkhead/daemon"
)

func (a *app) newFence() *cobra.Command {
	c := &cobra.Command{
		Use:   "fence",
		Short: "Put deny into the kernel and end, as at boot before the network is up",
		Long: `Put the rules into the kernel that deny every overlay packet, and end. The unit bulkhead-fence.service does so at
boot, before the network is up: no agent's packet leaves in clear before the daemon runs. ` + "`bulkhead down`" + ` removes them.`,
		Example: "  bulkhead fence",
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
			return daemon.Fence(c.Context(), cfg, logger)
		},
	}
	defineSettings(c.Flags(), "interface")
	return c
}
