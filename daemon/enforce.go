package daemon

import (
	"context"
	"net/netip"
	"slices"
	"sync"

	"github.com/bulkhead-mesh/bulkhead/overlay"
	"github.com/bulkhead-mesh/bulkhead/platform"
)

// enforcer is the overlay's firewall: the kernel's rules first, then the addresses that they guard.
type enforcer struct {
	firewall *platform.Firewall
	name     string
	mtu      int
	prefixes []netip.Prefix

	mu    sync.Mutex
	addrs []netip.Addr
	up    bool
}

// Apply is idempotent; the interface is touched only when its addresses change.
func (e *enforcer) Apply(ctx context.Context, c overlay.FirewallConfig) error {
	if err := e.firewall.Apply(ctx, c); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.up && slices.Equal(e.addrs, c.Local) {
		return nil
	}
	if err := platform.ConfigureLink(e.name, e.mtu, c.Local, e.prefixes); err != nil {
		return err
	}
	e.addrs, e.up = slices.Clone(c.Local), true
	return nil
}
