package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/bulkhead-mesh/bulkhead/control/api"
	"github.com/bulkhead-mesh/bulkhead/platform/confine"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

func (a *app) newRun() *cobra.Command {
	var agent string
	var given []string
	c := &cobra.Command{
		Use:   "run --agent NAME -- COMMAND [ARGUMENT]...",
		Short: "Run a command as an agent of this host",
		Long: `Run a command, and all that it starts, as an agent of this host: with the agent's overlay addresses, and without the
capabilities by which it could leave. The agent must be declared on this host, or gets --label and is then declared for
as long as the command runs. Root may run every agent; others those that the configuration gives them (key run of an agent).

Signals are passed on. The exit code is the command's, or 128+N if signal N ended it, or 125 if it did not start.`,
		Example: `  bulkhead run --agent plan1 -- ./planner --once
  bulkhead run --agent probe --label function=test -- curl https://vec1.acme.example.internal/`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if agent == "" {
				return usageError{errors.New("--agent is missing (fix: name the agent that the command shall be)")}
			}
			parsed, err := segment.ParseLabels(given)
			if err != nil {
				return usageError{err}
			}
			socket, state, err := a.forRun(c)
			if err != nil {
				return notStarted{err}
			}
			// Signals are the command's: this program ends after it, not before.
			return runAs(context.WithoutCancel(c.Context()), socket, api.RunRequest{Agent: bare("agent", agent), Labels: parsed},
				confine.Options{Command: args, Hide: []string{state}})
		},
	}
	c.Flags().StringVar(&agent, "agent", "", "`name` of the agent")
	c.Flags().StringArrayVar(&given, "label", nil, "`key=value` of an agent that is not declared yet; may be repeated")
	defineSettings(c.Flags(), "agent-socket")
	c.Flags().SetInterspersed(false) // what follows the command is the command's
	return c
}

// runAs makes this process the agent's, and runs the command in it.
func runAs(ctx context.Context, socket string, r api.RunRequest, command confine.Options) error {
	client, err := api.Dial(api.DialOptions{Socket: socket})
	if err != nil {
		return notStarted{err}
	}
	defer client.Close()
	_, running, err := client.Run(ctx, r)
	if err != nil {
		return notStarted{err}
	}
	defer running.Close() // the connection ends with this process at the latest
	code, err := confine.Run(ctx, command)
	if err != nil {
		return notStarted{err}
	}
	if code != 0 {
		return verdict{code}
	}
	return nil
}
