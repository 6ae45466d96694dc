package daemon

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/bulkhead-mesh/bulkhead/overlay"
	"github.com/bulkhead-mesh/bulkhead/platform"
)

// fallback is in the place of a binding where the kernel offers none: netfilter keeps others from sending from an agent's
// address, as far as it can tell whose a packet is. It chooses no source, sees no listener, and guards no egress.
type fallback struct {
	firewall *platform.Firewall
	root     string // of cgroup v2; empty: there is none
	reason   error
	unnamed  atomic.Pointer[map[string][]string] // agents' cgroups that no rule can name, by agent
}

// Apply lets agents' processes alone send from their addresses.
func (f *fallback) Apply(ctx context.Context, c overlay.BindingConfig) error {
	var ids []uint64
	for _, b := range c.Agents {
		ids = append(ids, b.Cgroups...)
	}
	paths, err := platform.CgroupPaths(f.root, ids)
	if err != nil {
		return err
	}
	var owners []platform.Owner
	unnamed := make(map[string][]string)
	for _, b := range c.Agents {
		if b.Host {
			continue
		}
		o := platform.Owner{Addresses: b.Addresses, UIDs: b.UIDs}
		for _, id := range b.Cgroups {
			switch path, ok := paths[id]; {
			case !ok: // it is gone
			case platform.RuleNames(path):
				o.Groups = append(o.Groups, path)
			default:
				unnamed[b.Agent] = append(unnamed[b.Agent], path)
			}
		}
		owners = append(owners, o)
	}
	f.unnamed.Store(&unnamed)
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
		if unnamed := f.unnamed.Load(); unnamed != nil && len((*unnamed)[b.Agent]) > 0 {
			text += fmt.Sprintf("; what runs in %q cannot send from it, because no rule can name that cgroup", (*unnamed)[b.Agent])
		}
		out = append(out, fmt.Sprintf("agent %s: %s (%v)", b.Agent, text, f.reason))
	}
	return out
}

// Learn has nothing to open: nothing is closed.
func (f *fallback) Learn(string, string, []overlay.EgressAllow) error { return nil }

// Review has nothing to close.
func (f *fallback) Review(func(string, string, overlay.EgressAllow) bool) error { return nil }

// Restore is the firewall's guard's.
func (f *fallback) Restore() (bool, error) { return false, nil }

// Route has no marks to route by.
func (f *fallback) Route() error { return nil }

// Drops are the firewall's.
func (f *fallback) Drops() (map[string]uint64, error) { return nil, nil }

// Close leaves the rules.
func (f *fallback) Close() error { return nil }
