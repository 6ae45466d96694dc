package main

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/bulkhead-mesh/bulkhead/control/api"
)

func (a *app) newEvents() *cobra.Command {
	return &cobra.Command{
		Use:   "events",
		Short: "What happens from now on, as this host sees it",
		Long: `Print what happens from now on, until interrupted: policy applied, hosts joined, alive or dead, revocations, rules
repaired, records refused. With -o json or yaml, one JSON object per line.`,
		Example: "  bulkhead events -o json",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			client, err := a.connect(c)
			if err != nil {
				return err
			}
			defer client.Close()
			encoder := json.NewEncoder(a.out)
			return client.Events(c.Context(), func(e api.Event) error {
				if a.format != formatTable {
					return encoder.Encode(e)
				}
				_, err := fmt.Fprintf(a.out, "%s  %-15s  %-15s  %s\n", when(&e.Time), oneLine(string(e.Kind)), oneLine(e.Host), oneLine(e.Message))
				return err
			})
		},
	}
}
