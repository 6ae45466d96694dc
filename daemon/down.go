package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"

	"github.com/bulkhead-mesh/bulkhead/platform"
	"github.com/bulkhead-mesh/bulkhead/platform/bind"
	"github.com/bulkhead-mesh/bulkhead/platform/kv"
	"github.com/bulkhead-mesh/bulkhead/platform/scope"
)

// Down removes every rule, set, route and open flow of ours from the kernel, also where the state directory is damaged
// or gone, and the socket that a killed daemon left. The daemon must not be running: it would put them back.
// Certificates, keys and policy stay in the state directory.
func Down(ctx context.Context, cfg Config, log *slog.Logger) error {
	if err := stillDown(cfg); err != nil {
		return fmt.Errorf("down: %w", err)
	}
	others, err := alone()
	if err != nil {
		return fmt.Errorf("down: %w", err)
	}
	defer others.Close()
	firewall, err := platform.NewFirewall(platform.FirewallOptions{Interface: cfg.Interface, Logger: log})
	if err != nil {
		return fmt.Errorf("down: %w", err)
	}
	if err := firewall.Remove(ctx); err != nil {
		return fmt.Errorf("down: %w", err)
	}
	// After the firewall, which lets nothing pass for as long as it stands.
	if err := bind.Remove(pinDir(cfg.Interface)); err != nil {
		return fmt.Errorf("down: %w", err)
	}
	if err := cleanRuns(cfg); err != nil {
		return fmt.Errorf("down: %w", err)
	}
	for _, path := range []string{cfg.Socket, cfg.AgentSocket, cfg.SpiffeSocket} {
		if err := removeSocket(path); err != nil {
			return fmt.Errorf("down: %w", err)
		}
	}
	return nil
}

// cleanRuns removes the cgroups that runs left; those in which something runs stay.
func cleanRuns(cfg Config) error {
	root := cfg.CgroupRoot
	if root == "" {
		var err error
		if root, err = platform.CgroupRoot(); err != nil {
			return nil // there are none
		}
	}
	return scope.Clean(root)
}

// removeSocket removes nothing else than a socket.
func removeSocket(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.Mode().Type() != fs.ModeSocket {
		return nil
	}
	if err != nil {
		return err
	}
	return os.Remove(path)
}

// runDir is where daemons of this machine find each other, whatever their state and sockets are.
const runDir = "/run/bulkhead"

// alone sees to it that no other daemon changes this network namespace's rules.
func alone() (io.Closer, error) {
	l, err := platform.Alone(runDir)
	if errors.Is(err, fs.ErrPermission) { // of a user who may not write there, it cannot be told
		return io.NopCloser(nil), nil
	}
	return l, err
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
