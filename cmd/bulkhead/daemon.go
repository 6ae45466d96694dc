package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/bulkhead-mesh/bulkhead/daemon"
)

func (a *app) newDaemon() *cobra.Command {
	c := &cobra.Command{
		Use:   "daemon",
		Short: "Run this host: overlay, enforcement, and control where this host has it",
		Long: `Run this host of a mesh until SIGTERM. SIGHUP reads the configuration again, if it is valid. When the daemon
ends, the rules stay in the kernel and go on denying: ` + "`bulkhead down`" + ` removes them.`,
		Example: "  bulkhead daemon --log-level debug",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			load := func() (daemon.Config, error) { return a.config(c) }
			cfg, err := load()
			if err != nil {
				return err
			}
			logger, level, err := newLogger(a.err, cfg)
			if err != nil {
				return err
			}
			return reloading(c.Context(), func(ctx context.Context, reload <-chan struct{}) error {
				return daemon.Run(ctx, daemon.Options{Config: cfg, Load: load, Reload: reload, Logger: logger, Level: level, Version: version()})
			})
		},
	}
	defineSettings(c.Flags(), "interface", "listen", "control-listen", "metrics-listen", "advertise", "log-level", "log-format")
	return c
}

// reloading runs fn with a channel that tells of each SIGHUP.
func reloading(ctx context.Context, fn func(context.Context, <-chan struct{}) error) error {
	ctx, stop := context.WithCancel(ctx)
	signals, reload := make(chan os.Signal, 1), make(chan struct{})
	signal.Notify(signals, syscall.SIGHUP)
	var passing sync.WaitGroup
	passing.Go(func() {
		defer signal.Stop(signals)
		for {
			select {
			case <-signals:
				select {
				case reload <- struct{}{}:
				case <-ctx.Done():
				}
			case <-ctx.Done():
				return
			}
		}
	})
	defer passing.Wait()
	defer stop()
	return fn(ctx, reload)
}

// newLogger writes text to a terminal and JSON otherwise, unless the configuration says which.
func newLogger(w io.Writer, cfg daemon.Config) (*slog.Logger, *slog.LevelVar, error) {
	level := new(slog.LevelVar)
	if err := level.UnmarshalText([]byte(cfg.LogLevel)); err != nil {
		return nil, nil, fmt.Errorf("config: logLevel: %w", err)
	}
	options := &slog.HandlerOptions{Level: level}
	if cfg.LogFormat == "text" || cfg.LogFormat == "auto" && isTerminal(w) {
		return slog.New(slog.NewTextHandler(w, options)), level, nil
	}
	return slog.New(slog.NewJSONHandler(w, options)), level, nil
}
