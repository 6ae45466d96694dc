package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"

	"github.com/bulkhead-mesh/bulkhead/platform"
	"github.com/bulkhead-mesh/bulkhead/platform/kv"
)

// Down removes every rule, set and route of ours from the kernel, also where the state directory is damaged or gone.
// The daemon must not be running: it would put them back. Certificates, keys and policy stay in the state directory.
func Down(ctx context.Context, cfg Config, log *slog.Logger) error {
	if err := stillDown(cfg); err != nil {
		return fmt.Errorf("down: %w", err)
	}
	firewall, err := platform.NewFirewall(platform.FirewallOptions{Interface: cfg.Interface, Logger: log})
	if err != nil {
		return fmt.Errorf("down: %w", err)
	}
	if err := firewall.Remove(ctx); err != nil {
		return fmt.Errorf("down: %w", err)
	}
	return nil
}

// stillDown fails if a daemon holds the state.
func stillDown(cfg Config) error {
	store, err := openHost(cfg.StateDir)
	if errors.Is(err, kv.ErrLocked) {
		return err
	}
	if err != nil {
		if errors.Is(err, ErrNoMesh) || errors.Is(err, kv.ErrCorrupt) || errors.Is(err, kv.ErrReadOnly) || errors.Is(err, fs.ErrPermission) {
			return nil
		}
		return err
	}
	return store.Close()
}
