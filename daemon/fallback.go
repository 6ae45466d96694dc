package daemon

import (
	"context"
	"fmt"

	"github.com/bulkhead-mesh/bulkhead/overlay"
	"github.com/bulkhead-mesh/bulkhead/platform"
)

// fallback is in the place of a binding where the kernel offers none: netfilter keeps others from sending from an agent's
// address, as far as it can tell whose a packet is. It chooses no source, sees no listener, and guards no egress.
type fallback struct {
	firewall *platform.Firewall
	root     string // of cgroup v2; empty: there is none
	reason   error
}

// Apply lets agents' processes alone send from their addresses.
func (f *fallback) Apply(ctx context.Context, c overlay.BindingConfig) error {
	var owners []platform.Owner
	for _, b := range c.Agents {
		if b.Host {
			continue
		}
		groups, err := platform.CgroupPaths(f.root, b.Cgroups)
		if err != nil {
			return err
		}
		owners = append(owners, platform.Owner{Addresses: b.Addresses, UIDs: b.UIDs, Groups: groups})
	}
	return f.firewall.SetOwners(ctx, owners)
}

// Limits says, agent by agent, what is not enforced. One that is the whole host shares with nobody.
func (f *fallback) Limits(c overlay.BindingConfig) []string {
	var out []string
	for _, b := range c.Agents {
		if b.Host {
			continue
		}
		text := "its programs must bind its address themselves, other programs can receive on it, and its egress is not guarded"
		if f.root == "" && len(b.UIDs) == 0 {
			text = "nothing can send from its address, because there is no cgroup v2 to tell its programs by"
		}
		out = append(out, fmt.Sprintf("agent %s: %s (%v)", b.Agent, text, f.reason))
	}
	return out
}

// Learn has nothing to open: nothing is closed.
func (f *fallback) Learn(string, []overlay.EgressAllow) error { return nil }

// Route has no marks to route by.
func (f *fallback) Route() error { return nil }

// Drops are the firewall's.
func (f *fallback) Drops() (map[string]uint64, error) { return nil, nil }

// Close leaves the rules.
func (f *fallback) Close() error { return nil }
