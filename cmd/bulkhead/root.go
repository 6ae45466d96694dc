package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bulkhead-mesh/bulkhead/control/api"
	"github.com/bulkhead-mesh/bulkhead/daemon"
)

// stdio is where a command reads and writes.
type stdio struct {
	in       io.Reader
	out, err io.Writer
}

// app is what all commands share.
type app struct {
	stdio
	format     string // table, json or yaml
	json       bool   // short for format json
	configPath string
	server     string
	credential string
	ran        bool // a command ran: what failed before is usage
}

// run runs one command line and returns its exit code.
func run(ctx context.Context, args []string, s stdio) int {
	a := &app{stdio: s}
	root := a.newRoot()
	root.SetArgs(args)
	root.SetIn(s.in)
	root.SetOut(s.out)
	root.SetErr(s.err)
	command, err := root.ExecuteContextC(ctx)
	if err != nil && !a.ran {
		err = usageError{err}
	}
	a.complain(command, err)
	return exitCode(err)
}

// complain says on stderr what went wrong.
func (a *app) complain(command *cobra.Command, err error) {
	if err == nil {
		return
	}
	if _, ok := errors.AsType[verdict](err); ok {
		return
	}
	fmt.Fprintf(a.err, "bulkhead: %s\n", printable(err.Error()))
	if _, ok := errors.AsType[usageError](err); ok {
		fmt.Fprintf(a.err, "See `%s --help`.\n", command.CommandPath())
	}
}

func (a *app) newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "bulkhead",
		Short: "Segmented WireGuard mesh for fleets of agents",
		Long: `Bulkhead joins the agents on your hosts into one WireGuard overlay, divided into segments by function and
sensitivity. What no rule allows is denied, on every host.

Start a mesh:     bulkhead init --mesh acme.example, then bulkhead daemon
Add a host:       bulkhead token create there, bulkhead join TOKEN here, then bulkhead daemon
Add an agent:     bulkhead agent add NAME --label function=plan --match unit=planner.service
Allow a flow:     bulkhead segment create, bulkhead rule create, or bulkhead policy apply -f policy.yaml
See what is:      bulkhead status, bulkhead policy explain agent/a agent/b tcp/443`,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE:          func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	flags := root.PersistentFlags()
	flags.StringVarP(&a.format, "output", "o", "table", "`format` of the answer: table, json or yaml (or $BULKHEAD_OUTPUT)")
	flags.BoolVar(&a.json, "json", false, "same as --output json")
	flags.StringVar(&a.configPath, "config", "", "configuration `file` (or $BULKHEAD_CONFIG; default "+daemon.DefaultConfigPath+", if there is one)")
	flags.StringVar(&a.server, "server", "", "`address` of control, like 192.0.2.1:7443, instead of the local socket (or $BULKHEAD_SERVER)")
	flags.StringVar(&a.credential, "credential", "", "`file` with an operator certificate and key, or with an API token (or $BULKHEAD_CREDENTIAL)")
	defineSettings(flags, "state-dir", "socket")

	root.AddGroup(
		&cobra.Group{ID: "host", Title: "This host:"},
		&cobra.Group{ID: "mesh", Title: "The mesh:"},
	)
	host, mesh := []*cobra.Command{a.newInit(), a.newJoin(), a.newDaemon(), a.newFence(), a.newDown(), a.newStatus(), a.newRun()},
		[]*cobra.Command{a.newToken(), a.newHost(), a.newAgent(), a.newSegment(), a.newRule(), a.newPolicy(), a.newWhois(), a.newAudit(), a.newEvents()}
	for _, c := range host {
		c.GroupID = "host"
	}
	for _, c := range mesh {
		c.GroupID = "mesh"
	}
	root.AddCommand(host...)
	root.AddCommand(mesh...)
	root.AddCommand(a.newVersion(), newExitCodesTopic())
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	if err := a.completions(root); err != nil {
		panic(err) // a command or flag that is not there
	}
	a.observe(root)
	return root
}

// observe notes when a command starts, and checks the flags that all commands share.
func (a *app) observe(c *cobra.Command) {
	for _, sub := range c.Commands() {
		a.observe(sub)
	}
	inner := c.RunE
	if inner == nil {
		return
	}
	c.RunE = func(c *cobra.Command, args []string) error {
		a.ran = true
		if err := a.checkFormat(c); err != nil {
			return err
		}
		return inner(c, args)
	}
}

// noun is a command that only holds others.
func noun(use, short string, verbs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	c.AddCommand(verbs...)
	return c
}

// connect makes a client for the local socket, or for --server with --credential.
func (a *app) connect(c *cobra.Command) (*api.Client, error) {
	server, credential := a.server, a.credential
	if !c.Flags().Changed("server") {
		server = os.Getenv("BULKHEAD_SERVER")
	}
	if !c.Flags().Changed("credential") {
		credential = os.Getenv("BULKHEAD_CREDENTIAL")
	}
	if server == "" && credential == "" {
		socket, err := a.socket(c)
		if err != nil {
			return nil, err
		}
		return api.Dial(api.DialOptions{Socket: socket})
	}
	if credential == "" {
		return nil, usageError{errors.New("--server needs --credential (fix: name the file of an operator credential or API token)")}
	}
	loaded, err := api.LoadCredential(credential)
	if err != nil {
		return nil, err
	}
	client, err := api.Dial(api.DialOptions{Server: server, Credential: loaded})
	if err != nil {
		return nil, usageError{err}
	}
	return client, nil
}

// call connects, asks, and prints the answer.
func call[T any](a *app, c *cobra.Command, ask func(context.Context, *api.Client) (T, error), show func(*table, T)) error {
	client, err := a.connect(c)
	if err != nil {
		return err
	}
	defer client.Close()
	answer, err := ask(c.Context(), client)
	if err != nil {
		return err
	}
	return a.answer(answer, func(t *table) { show(t, answer) })
}

// bare drops the "kind/" that people may write before a name.
func bare(kind, name string) string { return strings.TrimPrefix(name, kind+"/") }
