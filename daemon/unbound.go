package daemon

import (
	"context"
	"fmt"

	"github.com/bulkhead-mesh/bulkhead/overlay"
)

// unbound is in the place of a binding where the kernel offers none: the firewall still judges addresses, and no more.
type unbound struct{ reason error }

func (unbound) Apply(context.Context, overlay.BindingConfig) error { return nil }
func (unbound) Learn(string, []overlay.EgressAllow) error          { return nil }
func (unbound) Drops() (map[string]uint64, error)                  { return nil, nil }
func (unbound) Close() error                                       { return nil }
func (unbound) Route() error                                       { return nil }

// Limits says which agents share what should be theirs alone. One that is the whole host shares with nobody.
func (u unbound) Limits(c overlay.BindingConfig) []string {
	var out []string
	for _, b := range c.Agents {
		if !b.Host {
			out = append(out, fmt.Sprintf("agent %s: any program of this host can use its address, and its egress is not guarded: %v", b.Agent, u.reason))
		}
	}
	return out
}
