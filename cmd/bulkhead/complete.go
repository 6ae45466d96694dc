package main

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/bulkhead-mesh/bulkhead/control/api"
)

// completionTime is how long a shell waits for names.
const completionTime = 2 * time.Second

// completions has shells complete the names of what there is, and values that flags may have.
func (a *app) completions(root *cobra.Command) error {
	agents := names(a, (*api.Client).Agents, func(x api.Agent) string { return x.Name })
	here := names(a, (*api.Client).LocalAgents, func(x api.LocalAgent) string { return x.Name })
	hosts := names(a, (*api.Client).Hosts, func(x api.Host) string { return x.Name })
	segments := names(a, (*api.Client).Segments, func(x api.SegmentView) string { return x.Name })
	for path, complete := range map[string]cobra.CompletionFunc{
		"agent show": agents, "agent revoke": agents, "agent relabel": agents, "agent approve": agents, "policy reach": agents, "agent remove": here,
		"host show": hosts, "host revoke": hosts, "segment show": segments, "segment delete": segments,
	} {
		c, _, err := root.Find(strings.Fields(path))
		if err != nil {
			return err
		}
		c.ValidArgsFunction = complete
	}
	matches := cobra.FixedCompletions([]string{"unit=", "cgroup=/", "container.name=", "container.label=", "container.image=", "user=", "run", "host"},
		cobra.ShellCompDirectiveNoSpace|cobra.ShellCompDirectiveNoFileComp)
	for _, f := range []struct {
		path, flag string
		complete   cobra.CompletionFunc
	}{
		{"", "output", cobra.FixedCompletions([]string{"table", "json", "yaml"}, cobra.ShellCompDirectiveNoFileComp)},
		{"run", "agent", here}, {"agent add", "match", matches}, {"join", "match", matches}, {"init", "match", matches},
		{"segment create", "egress", cobra.FixedCompletions([]string{"none", "host"}, cobra.ShellCompDirectiveNoFileComp)},
		{"rule create", "from", segments}, {"rule create", "to", segments},
	} {
		c, _, err := root.Find(strings.Fields(f.path))
		if err != nil {
			return err
		}
		if err := c.RegisterFlagCompletionFunc(f.flag, f.complete); err != nil {
			return err
		}
	}
	return nil
}

// names asks for what there is; without an answer nothing is completed.
func names[T any](a *app, ask func(*api.Client, context.Context) ([]T, error), nameOf func(T) string) cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		client, err := a.connect(c)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		defer client.Close()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(c.Context()), completionTime)
		defer cancel()
		all, err := ask(client, ctx)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		out := make([]cobra.Completion, len(all))
		for i, x := range all {
			out[i] = nameOf(x)
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}
