package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/bulkhead-mesh/bulkhead/control/api"
	"github.com/bulkhead-mesh/bulkhead/control/authority"
)

func (a *app) newAudit() *cobra.Command {
	var limit int
	c := &cobra.Command{
		Use:     "audit",
		Short:   "Who changed what, from where, with what result",
		Long:    "Show the newest entries of the audit record, oldest first. Refused attempts are in it, too.",
		Example: "  bulkhead audit --limit 20",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return call(a, c, func(ctx context.Context, client *api.Client) ([]authority.AuditEntry, error) {
				return client.Audit(ctx, limit)
			}, func(t *table, entries []authority.AuditEntry) {
				t.row("TIME", "WHO", "FROM", "ACTION", "TARGET", "VERSION", "RESULT", "DETAIL")
				for _, e := range entries {
					var version any = ""
					if e.Version != 0 {
						version = e.Version
					}
					t.row(when(&e.Time), e.Who, e.From, e.Action, e.Target, version, e.Result, e.Detail)
				}
			})
		},
	}
	c.Flags().IntVar(&limit, "limit", 100, "how many `entries`, at most 10000")
	return c
}
