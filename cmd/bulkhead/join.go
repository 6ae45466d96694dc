package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bulkhead-mesh/bulkhead/daemon"
)

const maxTokenInput = 64 << 10

func (a *app) newJoin() *cobra.Command {
	var host hostFlags
	c := &cobra.Command{
		Use:   "join TOKEN",
		Short: "Make this machine a host of a mesh",
		Long: `Join the mesh that made the token. Control must prove to be of that mesh before anything is sent to it; keys are
made here and never leave. If anything fails, nothing is left behind. TOKEN can be - to read it from stdin, which
keeps it out of the list of processes. Then run the daemon.`,
		Example: "  bulkhead join bh1.… --name h2 --agent plan1 --label function=plan --label sensitivity=internal",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			cfg, err := a.config(c)
			if err != nil {
				return err
			}
			agents, err := host.agents()
			if err != nil {
				return err
			}
			name, err := host.hostName()
			if err != nil {
				return err
			}
			token := args[0]
			if token == "-" {
				data, err := io.ReadAll(io.LimitReader(a.in, maxTokenInput))
				if err != nil {
					return fmt.Errorf("read token: %w", err)
				}
				token = strings.TrimSpace(string(data))
			}
			joined, err := daemon.Join(c.Context(), daemon.JoinOptions{Config: cfg, Token: token, Name: name,
				Advertise: cfg.Advertise, Agents: agents})
			if err != nil {
				return err
			}
			return a.answer(joined, func(t *table) {
				t.line("Host %s is in mesh %s. Next: bulkhead daemon", joined.Host, joined.Mesh)
			})
		},
	}
	host.define(c)
	return c
}
