package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/bulkhead-mesh/bulkhead/overlay"
	"github.com/bulkhead-mesh/bulkhead/platform"
	"github.com/bulkhead-mesh/bulkhead/platform/kv"
)

// Fence puts deny into the kernel and ends: before the network is up, so that no agent's packet leaves in clear while
// the daemon has not yet started, or cannot. A daemon that starts later adopts it.
func Fence(ctx context.Context, cfg Config, log *slog.Logger) error {
	store, err := openHost(cfg.StateDir)
	if errors.Is(err, kv.ErrLocked) {
		return nil // a daemon runs: it has begun with this
	}
	if err != nil {
		return fmt.Errorf("fence: %w", err)
	}
	defer store.Close()
	credentials, err := loadCredentials(store)
	if err != nil {
		return fmt.Errorf("fence: %w", err)
	}
	firewall, err := platform.NewFirewall(platform.FirewallOptions{Interface: cfg.Interface, Prefixes: credentials.Prefixes, Resolvers: overlay.ResolverAddrs(credentials.Prefixes), Logger: log})
	if err != nil {
		return fmt.Errorf("fence: %w", err)
	}
	if err := firewall.Fence(ctx); err != nil {
		return fmt.Errorf("fence: %w", err)
	}
	return nil
}
