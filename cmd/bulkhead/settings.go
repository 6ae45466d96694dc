package main

import (
	"errors"
	"fmt"
	"io/fs"
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
	{"agent-socket", "`path` of the daemon's socket for agents", text(func(c *daemon.Config) *string { return &c.AgentSocket })},
	{"spiffe-socket", "`path` of the SPIFFE Workload API", text(func(c *daemon.Config) *string { return &c.SpiffeSocket })},
	{"cgroup-root", "`directory` of cgroup v2 whose processes are this host's", text(func(c *daemon.Config) *string { return &c.CgroupRoot })},
	{"enforcement", "auto, or required: refuse to start where agents cannot be told apart", text(func(c *daemon.Config) *string { return &c.Enforcement })},
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
	return daemon.LoadConfig(a.configFile(c), overrides(c)...)
}

func (a *app) configFile(c *cobra.Command) string {
	if !c.Flags().Changed("config") {
		return os.Getenv("BULKHEAD_CONFIG")
	}
	return a.configPath
}

// overrides are what the environment says, and then what flags say.
func overrides(c *cobra.Command) []func(*daemon.Config) error {
	var all []func(*daemon.Config) error
	override := func(s setting, from, value string) {
		all = append(all, func(cfg *daemon.Config) error {
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
	return all
}

// socket is the path of the local socket. Naming it spares reading the configuration, which not all users may.
func (a *app) socket(c *cobra.Command) (string, error) {
	if flag := c.Flags().Lookup("socket"); flag.Changed {
		return flag.Value.String(), nil
	}
	if path := os.Getenv("BULKHEAD_SOCKET"); path != "" {
		return path, nil
	}
	cfg, err := daemon.LoadPaths(a.configFile(c), overrides(c)...)
	return cfg.Socket, err
}

// forRun is the path of the agents' socket, and of the state directory, which is none of an agent's business. Users who
// may not read the configuration get the usual ones.
func (a *app) forRun(c *cobra.Command) (socket, state string, err error) {
	cfg, err := daemon.LoadPaths(a.configFile(c), overrides(c)...)
	if errors.Is(err, fs.ErrPermission) {
		cfg = daemon.DefaultConfig()
		for _, override := range overrides(c) {
			if err := override(&cfg); err != nil {
				return "", "", err
			}
		}
		err = cfg.Validate()
	}
	return cfg.AgentSocket, cfg.StateDir, err
}
