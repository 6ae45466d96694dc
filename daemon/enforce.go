package daemon

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/bulkhead-mesh/bulkhead/overlay"
	"github.com/bulkhead-mesh/bulkhead/platform"
)

const guardInterval = time.Second

// enforcer is the overlay's firewall: the kernel's rules first, then the addresses that they guard.
type enforcer struct {
	firewall *platform.Firewall
	name     string
	mtu      int
	prefixes []netip.Prefix
	log      *slog.Logger

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

// guard puts back what other programs take away from the interface, until ctx ends.
func (e *enforcer) guard(ctx context.Context) error {
	ticker := time.NewTicker(guardInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		restored, err := e.restore()
		if err != nil {
			e.log.Error("the interface is not restored; trying again", "error", err)
		} else if restored {
			e.log.Warn("the interface was changed by another program and put back", "interface", e.name)
		}
	}
}

func (e *enforcer) restore() (restored bool, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.up {
		return false, nil
	}
	return platform.RestoreLink(e.name, e.mtu, e.addrs, e.prefixes)
}
