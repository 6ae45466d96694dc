package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/bulkhead-mesh/bulkhead/daemon"
)

// setting is a key of the configuration that a flag or the environment can override.
type setting struct {
	flag string
	help string
	set  func(*daemon.Config, string) error
}

var settings = []setting{
	{"state-dir", "`directory` of keys, certificates and the last good policy", text(func(c *daemon.Config) *string { return &c.StateDir })},
	{"socket", "`path` of the daemon's local socket", text(func(c *daemon.Config) *string { return &c.Socket })},
	{"interface", "`name` of the overlay interface", text(func(c *daemon.Config) *string { return &c.Interface })},
	{"listen", "UDP `port` for WireGuard and QUIC", port},
	{"control-listen", "TCP `address` of the control API, on control hosts", text(func(c *daemon.Config) *string { return &c.ControlListen })},
	{"metrics-listen", "TCP `address` of the metrics; empty: none", text(func(c *daemon.Config) *string { return &c.MetricsListen })},
	{"log-level", "debug, info, warn or error", text(func(c *daemon.Config) *string { return &c.LogLevel })},
	{"log-format", "auto, text or json", text(func(c *daemon.Config) *string { return &c.LogFormat })},
	{"advertise", "`addresses` at which others reach this host, with or without port, separated by commas (default: its own)", func(c *daemon.Config, value string) error {
		c.Advertise = strings.FieldsFunc(value, func(r rune) bool { return r == ',' || r == ' ' })
		return nil
	}},
}

func text(field func(*daemon.Config) *string) func(*daemon.Config, string) error {
	return func(c *daemon.Config, value string) error {
		*field(c) = value
		return nil
	}
}

func port(c *daemon.Config, value string) error {
	n, err := strconv.ParseUint(value, 10, 16)
	if err != nil {
		return fmt.Errorf("%q is no port (fix: a number from 1 to 65535)", value)
	}
	c.Listen = uint16(n)
	return nil
}

func (s setting) env() string {
	return "BULKHEAD_" + strings.ToUpper(strings.ReplaceAll(s.flag, "-", "_"))
}

// defineSettings adds flags for the named settings. Their values are read by config.
func defineSettings(flags *pflag.FlagSet, names ...string) {
	for _, s := range settings {
		for _, name := range names {
			if s.flag == name {
				flags.String(s.flag, "", s.help+" (or $"+s.env()+")")
			}
		}
	}
}

// config is the configuration: flags over environment over file over defaults.
func (a *app) config(c *cobra.Command) (daemon.Config, error) {
	path := a.configPath
	if !c.Flags().Changed("config") {
		path = os.Getenv("BULKHEAD_CONFIG")
	}
	var overrides []func(*daemon.Config) error
	override := func(s setting, from, value string) {
		overrides = append(overrides, func(cfg *daemon.Config) error {
			if err := s.set(cfg, value); err != nil {
				return fmt.Errorf("%s: %w", from, err)
			}
			return nil
		})
	}
	for _, s := range settings {
		if value := os.Getenv(s.env()); value != "" {
			override(s, s.env(), value)
		}
	}
	for _, s := range settings {
		if flag := c.Flags().Lookup(s.flag); flag != nil && flag.Changed {
			override(s, "--"+s.flag, flag.Value.String())
		}
	}
	return daemon.LoadConfig(path, overrides...)
}

// socket is the path of the local socket. Naming it spares reading the configuration, which not all users may.
func (a *app) socket(c *cobra.Command) (string, error) {
	if flag := c.Flags().Lookup("socket"); flag.Changed {
		return flag.Value.String(), nil
	}
	if path := os.Getenv("BULKHEAD_SOCKET"); path != "" {
		return path, nil
	}
	cfg, err := a.config(c)
	return cfg.Socket, err
}
