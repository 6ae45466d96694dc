package main

import (
	"errors"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bulkhead-mesh/bulkhead/daemon"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

// hostFlags are what init and join ask about this machine.
type hostFlags struct {
	name   string
	agent  string
	labels []string
	match  string
}

func (f *hostFlags) define(c *cobra.Command) {
	flags := c.Flags()
	flags.StringVar(&f.name, "name", "", "`name` of this host (default: its host name)")
	flags.StringVar(&f.agent, "agent", "", "`name` of the agent on this host; without it the host reaches nothing")
	flags.StringArrayVar(&f.labels, "label", nil, "`key=value` of the agent, like function=plan; may be repeated")
	flags.StringVar(&f.match, "match", "host", matchHelp+"; see `bulkhead agent add --help`")
	defineSettings(flags, "advertise")
}

func (f *hostFlags) agents() ([]daemon.AgentSpec, error) {
	labels, err := segment.ParseLabels(f.labels)
	if err != nil {
		return nil, usageError{err}
	}
	if f.agent != "" {
		match, err := parseMatch(f.match)
		if err != nil {
			return nil, err
		}
		return []daemon.AgentSpec{{Name: bare("agent", f.agent), Labels: labels, Match: match}}, nil
	}
	if len(f.labels) > 0 {
		return nil, usageError{errors.New("--label needs --agent: labels are of agents, not of hosts")}
	}
	return nil, nil
}

// hostName is the name given, or the first part of the machine's.
func (f *hostFlags) hostName() (string, error) {
	if f.name != "" {
		return f.name, nil
	}
	name, err := os.Hostname()
	if err != nil {
		return "", usageError{errors.New("this machine has no host name (fix: give --name)")}
	}
	name, _, _ = strings.Cut(strings.ToLower(name), ".")
	if segment.ValidName(name) != nil {
		return "", usageError{errors.New("this machine's host name cannot be used (fix: give --name, of letters, digits and dashes)")}
	}
	return name, nil
}

func (a *app) newInit() *cobra.Command {
	var mesh string
	var host hostFlags
	c := &cobra.Command{
		Use:   "init --mesh NAME",
		Short: "Start a new mesh, with this machine as its first host and control",
		Long: `Start a new mesh: its certificate authority, its policy key, an empty policy that denies everything, this
host's certificate and an operator credential. An existing mesh is never overwritten. Then run the daemon.`,
		Example: "  bulkhead init --mesh acme.example --name h1 --advertise 192.0.2.1",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if mesh == "" {
				return usageError{errors.New("--mesh is missing (fix: name the mesh, like acme.example)")}
			}
			cfg, err := a.config(c)
			if err != nil {
				return err
			}
			agents, err := host.agents()
			if err != nil {
				return err
			}
			name, err := host.hostName()
			if err != nil {
				return err
			}
			founded, err := daemon.Init(c.Context(), daemon.InitOptions{Config: cfg, Mesh: mesh, Name: name,
				Advertise: cfg.Advertise, Agents: agents})
			if err != nil {
				return err
			}
			return a.answer(founded, func(t *table) {
				t.line("Mesh %s is made, with host %s.\n", founded.Mesh, founded.Host)
				t.row("State:", founded.StateDir)
				t.row("Operator credential:", founded.Operator)
				t.row("Root key:", founded.RootKey)
				t.line("\nMove the root key to a safe place: nothing that runs needs it. Next: bulkhead daemon")
			})
		},
	}
	c.Flags().StringVar(&mesh, "mesh", "", "`name` of the mesh, a trust domain like acme.example")
	host.define(c)
	return c
}
