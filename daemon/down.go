package daemon

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/bulkhead-mesh/bulkhead/platform"
)

// Down removes every rule, set and route of ours from the kernel. The daemon must not be running: it would
// put them back. Certificates, keys and policy stay in the state directory.
func Down(ctx context.Context, cfg Config, log *slog.Logger) (err error) {
	store, err := openHost(cfg.StateDir)
	if err != nil {
		return fmt.Errorf("down: %w", err)
	}
	defer store.Close()
	credentials, err := loadCredentials(store)
	if err != nil {
		return fmt.Errorf("down: %w", err)
	}
	firewall, err := platform.NewFirewall(platform.FirewallOptions{Interface: cfg.Interface, Prefixes: credentials.Prefixes, Logger: log})
	if err != nil {
		return fmt.Errorf("down: %w", err)
	}
	if err := firewall.Remove(ctx); err != nil {
		return fmt.Errorf("down: %w", err)
	}
	return nil
}
