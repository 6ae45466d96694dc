package main

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	"github.com/bulkhead-mesh/bulkhead/control/api"
)

func (a *app) newStatus() *cobra.Command {
	return &cobra.Command{
		Use:     "status",
		Short:   "Whether this host enforces policy, and what it sees",
		Long:    "Show whether this host is ready or why not, the policy in force and its age, agents, peers, and what was dropped.",
		Example: "  bulkhead status -o json",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return call(a, c, func(ctx context.Context, client *api.Client) (api.Status, error) { return client.Status(ctx) }, showStatus)
		},
	}
}

func showStatus(t *table, s api.Status) {
	t.row("Mesh:", s.Mesh)
	t.row("Host:", s.Host)
	phase := s.Phase
	if s.Reason != "" {
		phase += ": " + s.Reason
	}
	t.row("Phase:", phase)
	policy := "none"
	if s.PolicyVersion > 0 {
		policy = fmt.Sprintf("version %d, %s old", s.PolicyVersion, age(s.PolicyAge))
	}
	t.row("Policy:", policy)
	t.row("Hosts:", fmt.Sprintf("%d alive of %d", s.Hosts.Alive, s.Hosts.Known))
	t.row("Certificate:", until(&s.CertificateExpires))
	if s.Control != nil {
		t.row("Control:", fmt.Sprintf("%s, policy version %d", s.Control.Listen, s.Control.Version))
	}
	t.row("Version:", s.Version)
	for _, gap := range s.NotEnforced {
		t.row("Not enforced:", gap)
	}
	if len(s.Agents) > 0 {
		t.line("")
		t.row("AGENT", "ADDRESSES", "LABELS", "SEGMENTS")
		for _, agent := range s.Agents {
			t.row(agent.Name, list(agent.Addresses), labels(agent.Labels), list(agent.Segments))
		}
	}
	if len(s.Peers) > 0 {
		t.line("")
		t.row("PEER", "PATH", "HANDSHAKE", "RECEIVED", "SENT", "AGENTS")
		for _, p := range s.Peers {
			t.row(p.Name, p.Path, when(p.LastHandshake), bytesOf(p.RxBytes), bytesOf(p.TxBytes), list(p.Agents))
		}
	}
	showCounts(t, "DROPPED", s.Drops)
	showCounts(t, "REFUSED", s.Refused)
}

// showCounts prints counters that are not zero.
func showCounts(t *table, title string, counts map[string]uint64) {
	head := false
	for _, reason := range slices.Sorted(maps.Keys(counts)) {
		if counts[reason] == 0 {
			continue
		}
		if !head {
			t.line("")
			t.row(title, "COUNT")
			head = true
		}
		t.row(reason, counts[reason])
	}
}

// labels prints labels in order of their keys.
func labels(l map[string]string) string {
	var parts []string
	for _, key := range slices.Sorted(maps.Keys(l)) {
		parts = append(parts, key+"="+l[key])
	}
	return list(parts)
}
