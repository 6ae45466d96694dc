package daemon

import (
	"context"
	"errors"
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
	binder   binder
	name     string
	mtu      int
	prefixes []netip.Prefix
	log      *slog.Logger

	mu    sync.Mutex
	local []netip.Addr // the agents'
	addrs []netip.Addr // and the resolver's, which every host has
	up    bool
}

// Apply is idempotent; the interface is touched only when its addresses change.
func (e *enforcer) Apply(ctx context.Context, c overlay.FirewallConfig) error {
	if err := e.firewall.Apply(ctx, c); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.up && slices.Equal(e.local, c.Local) {
		return nil // the bindings may be others, but no address is
	}
	addrs := slices.Concat(c.Local, overlay.ResolverAddrs(e.prefixes))
	if err := platform.ConfigureLink(e.name, e.mtu, addrs, e.prefixes); err != nil {
		return err
	}
	e.local, e.addrs, e.up = slices.Clone(c.Local), addrs, true
	return e.binder.Route()
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
		if restored, err = e.binder.Restore(); err != nil {
			e.log.Error("what ties agents to their processes is not restored; trying again", "error", err)
		} else if restored {
			e.log.Warn("another program detached what ties agents to their processes; it is put back")
		}
	}
}

func (e *enforcer) restore() (restored bool, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.up {
		return false, nil
	}
	restored, err = platform.RestoreLink(e.name, e.mtu, e.addrs, e.prefixes)
	if restored {
		err = errors.Join(err, e.binder.Route())
	}
	return restored, err
}
