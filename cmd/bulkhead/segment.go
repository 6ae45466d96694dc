package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bulkhead-mesh/bulkhead/control/api"
	"github.com/bulkhead-mesh/bulkhead/control/authority"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

func (a *app) newSegment() *cobra.Command {
	return noun("segment", "Named sets of agents, chosen by their labels",
		a.newSegmentList(), a.newSegmentShow(), a.newSegmentCreate(), a.newSegmentDelete())
}

func (a *app) newSegmentList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "All segments, and the agents in them", Example: "  bulkhead segment list", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return call(a, c, func(ctx context.Context, client *api.Client) ([]api.SegmentView, error) { return client.Segments(ctx) },
				func(t *table, segments []api.SegmentView) {
					t.row("SEGMENT", "MATCH", "AGENTS", "DESCRIPTION")
					for _, s := range segments {
						t.row(s.Name, match(s.Match), list(s.Agents), s.Description)
					}
				})
		},
	}
}

func (a *app) newSegmentShow() *cobra.Command {
	return &cobra.Command{
		Use: "show NAME", Short: "One segment, and the agents in it", Example: "  bulkhead segment show planners", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return call(a, c, func(ctx context.Context, client *api.Client) (api.SegmentView, error) {
				return client.Segment(ctx, bare("segment", args[0]))
			}, func(t *table, s api.SegmentView) {
				t.row("Segment:", s.Name)
				t.row("Description:", s.Description)
				t.row("Match:", match(s.Match))
				t.row("Egress:", s.Egress)
				t.row("Agents:", list(s.Agents))
			})
		},
	}
}

func (a *app) newSegmentCreate() *cobra.Command {
	var matches, outside []string
	var description string
	var change changeFlags
	c := &cobra.Command{
		Use:   "create NAME --match KEY=VALUE",
		Short: "Add a segment to the policy",
		Long: `Add a segment to the policy. An agent is in it if its labels meet every --match: equality, one of several values
(the same key again), or for sensitivity a bound: <, <=, > or >=. With --egress, its agents reach nothing outside the
overlay (none) but what is listed: DESTINATION=PORTS, where DESTINATION is a CIDR, a DNS name or *.example.com.`,
		Example: `  bulkhead segment create planners --match function=plan --match "sensitivity<=internal"
  bulkhead segment create tools --match function=search --match function=browse
  bulkhead segment create callers --match function=call --egress api.example.com=tcp/443 --egress 203.0.113.0/24=tcp/443,icmp`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			selector, err := parseMatches(matches)
			if err != nil {
				return usageError{err}
			}
			guard, err := parseEgress(outside)
			if err != nil {
				return usageError{err}
			}
			s := segment.Segment{Name: bare("segment", args[0]), Description: description, Match: selector, Egress: guard}
			return a.change(c, change, func(ctx context.Context, client *api.Client) (authority.Change, error) {
				return client.CreateSegment(ctx, s, change.match)
			})
		},
	}
	c.Flags().StringArrayVar(&matches, "match", nil, "`condition` on a label, like function=plan; may be repeated")
	c.Flags().StringArrayVar(&outside, "egress", nil, "`what` its agents reach outside the overlay: host, none, or DESTINATION=PORTS, which may be repeated")
	c.Flags().StringVar(&description, "description", "", "`text` for people")
	change.define(c, true)
	return c
}

func (a *app) newSegmentDelete() *cobra.Command {
	var change changeFlags
	c := &cobra.Command{
		Use: "delete NAME", Short: "Remove a segment that no rule uses", Example: "  bulkhead segment delete planners", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.change(c, change, func(ctx context.Context, client *api.Client) (authority.Change, error) {
				return client.DeleteSegment(ctx, bare("segment", args[0]), change.match)
			})
		},
	}
	change.define(c, true)
	return c
}

// parseMatches turns conditions like function=plan and sensitivity<=internal into a selector, by its JSON form.
func parseMatches(conditions []string) (segment.Selector, error) {
	var selector segment.Selector
	if len(conditions) == 0 {
		return selector, errors.New("--match is missing (fix: say which labels the agents have, like function=plan)")
	}
	fields := map[string]any{}
	for _, condition := range conditions {
		at := strings.IndexAny(condition, "<>=")
		if at < 1 {
			return selector, fmt.Errorf("--match %q is no condition (fix: write it like function=plan)", condition)
		}
		key, value := strings.TrimSpace(condition[:at]), strings.TrimSpace(strings.TrimPrefix(condition[at:], "="))
		switch before := fields[key].(type) {
		case nil:
			fields[key] = value
		case string:
			fields[key] = []string{before, value}
		case []string:
			fields[key] = append(before, value)
		}
	}
	data, err := json.Marshal(fields)
	if err != nil {
		return selector, err
	}
	if err := json.Unmarshal(data, &selector); err != nil {
		return selector, fmt.Errorf("--match: %w", err)
	}
	return selector, nil
}

// parseEgress turns host, none, or items like api.example.com=tcp/443 into a guard.
func parseEgress(items []string) (g segment.Guard, err error) {
	for _, item := range items {
		to, ports, listed := strings.Cut(item, "=")
		switch {
		case listed:
			rule := segment.EgressRule{To: to}
			for p := range strings.SplitSeq(ports, ",") {
				allow, err := segment.ParsePorts(strings.TrimSpace(p))
				if err != nil {
					return g, fmt.Errorf("--egress %q: %w", item, err)
				}
				rule.Allow = append(rule.Allow, allow)
			}
			g.Rules = append(g.Rules, rule)
		case item == segment.GuardHost || item == segment.GuardNone:
			g.Mode = item
		default:
			return g, fmt.Errorf("--egress %q is no egress (fix: write host, none, or something like api.example.com=tcp/443)", item)
		}
	}
	if g.Mode != "" && len(items) > 1 {
		return g, fmt.Errorf("--egress %s stands alone (fix: leave it out, or the rest)", g.Mode)
	}
	return g, nil
}

// match prints a selector the way parseMatches reads it.
func match(s segment.Selector) string {
	data, err := json.Marshal(s)
	if err != nil {
		return err.Error()
	}
	var fields map[string]any
	if err := json.Unmarshal(data, &fields); err != nil {
		return string(data)
	}
	var parts []string
	for key, value := range fields {
		switch v := value.(type) {
		case []any:
			parts = append(parts, key+" in ("+list(v)+")")
		default:
			text := fmt.Sprint(v)
			if !strings.HasPrefix(text, "<") && !strings.HasPrefix(text, ">") {
				text = "=" + text
			}
			parts = append(parts, key+text)
		}
	}
	slices.Sort(parts)
	return list(parts)
}
