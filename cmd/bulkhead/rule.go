package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/bulkhead-mesh/bulkhead/control/api"
	"github.com/bulkhead-mesh/bulkhead/control/authority"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

func (a *app) newRule() *cobra.Command {
	return noun("rule", "What agents of one segment may open to another", a.newRuleList(), a.newRuleCreate(), a.newRuleDelete())
}

func (a *app) newRuleList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "All rules", Example: "  bulkhead rule list", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return call(a, c, func(ctx context.Context, client *api.Client) ([]segment.Rule, error) { return client.Rules(ctx) },
				func(t *table, rules []segment.Rule) {
					t.row("RULE", "FROM", "TO", "ALLOW", "UNTIL", "CROSSES")
					for _, r := range rules {
						t.row(r.Name, r.From, r.To, list(r.Allow), when(r.Until), r.Crosses)
					}
				})
		},
	}
}

func (a *app) newRuleCreate() *cobra.Command {
	var rule segment.Rule
	var allow []string
	var until string
	var change changeFlags
	c := &cobra.Command{
		Use:   "create NAME --from SEGMENT --to SEGMENT --allow PORTS",
		Short: "Add a rule to the policy",
		Long: `Let agents of one segment open ports of agents of another. Replies pass, new connections the other way do not.
Between segments that can differ in sensitivity, --crosses must say why data may pass.`,
		Example: `  bulkhead rule create plan-uses-tools --from planners --to tools --allow tcp/443,icmp --wait
  bulkhead rule create debug --from planners --to vectors --allow tcp/6333-6334 --crosses "incident 7" --until 2h`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			rule.Name, rule.From, rule.To = bare("rule", args[0]), bare("segment", rule.From), bare("segment", rule.To)
			if rule.From == "" || rule.To == "" || len(allow) == 0 {
				return usageError{errors.New("--from, --to and --allow are needed")}
			}
			for _, text := range allow {
				ports, err := segment.ParsePorts(text)
				if err != nil {
					return usageError{fmt.Errorf("--allow: %w", err)}
				}
				rule.Allow = append(rule.Allow, ports)
			}
			end, err := parseUntil(until, time.Now())
			if err != nil {
				return usageError{err}
			}
			rule.Until = end
			return a.change(c, change, func(ctx context.Context, client *api.Client) (authority.Change, error) {
				return client.CreateRule(ctx, rule, change.match)
			})
		},
	}
	flags := c.Flags()
	flags.StringVar(&rule.From, "from", "", "`segment` that opens connections")
	flags.StringVar(&rule.To, "to", "", "`segment` that they are opened to")
	flags.StringSliceVar(&allow, "allow", nil, "`ports` like tcp/443, udp/53, tcp/6333-6334 or icmp, separated by commas")
	flags.StringVar(&rule.Crosses, "crosses", "", "`reason` why data may pass between sensitivities")
	flags.StringVar(&until, "until", "", "`time` when the rule ends, like 2027-01-31T00:00:00Z or 2h from now")
	change.define(c, true)
	return c
}

func (a *app) newRuleDelete() *cobra.Command {
	var change changeFlags
	c := &cobra.Command{
		Use: "delete NAME", Short: "Remove a rule; flows that it allowed stop", Example: "  bulkhead rule delete debug --wait", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.change(c, change, func(ctx context.Context, client *api.Client) (authority.Change, error) {
				return client.DeleteRule(ctx, bare("rule", args[0]), change.match)
			})
		},
	}
	change.define(c, true)
	return c
}

// parseUntil reads a time or a duration from now; nil for none.
func parseUntil(text string, now time.Time) (*time.Time, error) {
	if text == "" {
		return nil, nil
	}
	if d, err := time.ParseDuration(text); err == nil && d > 0 {
		end := now.Add(d).UTC().Truncate(time.Second)
		return &end, nil
	}
	end, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return nil, fmt.Errorf("--until %q is no time (fix: write it like 2027-01-31T00:00:00Z or 2h)", text)
	}
	return &end, nil
}
