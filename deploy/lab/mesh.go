package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/bulkhead-mesh/bulkhead/control/api"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

const (
	poll    = 50 * time.Millisecond
	patient = 60 * time.Second // for what a busy machine may be slow at
)

// Mesh is a world whose hosts run bulkhead.
type Mesh struct {
	World  *World
	Switch *Switch // that all hosts are connected to
	Hosts  []*Node // the first has the control role
	Binary string
	Dir    string // holds each host's state directory and socket
}

// Node is a host of a mesh with its agent.
type Node struct {
	*Host
	Agent  string // empty for none
	Labels segment.Labels
	Daemon *Process
	Disk   *Disk  // nil: the state directory is one of this machine
	Config string // content of the configuration file, at the next start of the daemon

	mesh *Mesh
}

// Spec describes a node.
type Spec struct {
	Agent  string
	Labels segment.Labels
	Config string // content of its configuration file
}

// NewMesh makes a world with a host for each spec, named h1 and so on, founds a mesh on the first, joins the
// others, and waits until all are ready.
func NewMesh(ctx context.Context, binary string, specs ...Spec) (m *Mesh, err error) {
	binary, err = filepath.Abs(binary)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "bulkhead-lab-")
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o711); err != nil { // agents of other users ask on sockets in it
		return nil, err
	}
	m = &Mesh{Binary: binary, Dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.Close())
		}
	}()
	if m.World, err = New(filepath.Join(dir, "logs")); err != nil {
		return m, err
	}
	if m.Switch, err = m.World.AddSwitch("switch"); err != nil {
		return m, err
	}
	for i, spec := range specs {
		host, err := m.World.AddHost(fmt.Sprintf("h%d", i+1))
		if err != nil {
			return m, err
		}
		if _, err := m.Switch.Connect(host, hostPrefixes(i+1)...); err != nil {
			return m, err
		}
		m.Hosts = append(m.Hosts, &Node{Host: host, Agent: spec.Agent, Labels: spec.Labels, Config: spec.Config, mesh: m})
	}
	if err := m.found(ctx); err != nil {
		return m, err
	}
	for _, n := range m.Hosts[1:] {
		if err := m.join(ctx, n); err != nil {
			return m, err
		}
	}
	for _, n := range m.Hosts {
		if err := n.Ready(ctx); err != nil {
			return m, err
		}
	}
	return m, m.Settled(ctx)
}

// hostPrefixes are the underlay addresses of the host with this number.
func hostPrefixes(number int) []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix(fmt.Sprintf("192.168.77.%d/24", number)), netip.MustParsePrefix(fmt.Sprintf("fd77::%x/64", number)),
	}
}

func (m *Mesh) found(ctx context.Context) error {
	first := m.Hosts[0]
	args := []string{"init", "--mesh", "lab.test", "--name", first.Name, "--advertise", first.Addresses()[0].String()}
	if _, err := first.Run(ctx, append(args, first.identity()...)...); err != nil {
		return err
	}
	if err := first.StartDaemon(); err != nil {
		return err
	}
	return first.Ready(ctx)
}

func (m *Mesh) join(ctx context.Context, n *Node) error {
	args := []string{"token", "create", "--ttl", "10m", "-o", "json"}
	var grants []string
	for k, v := range n.Labels {
		grants = append(grants, k+"="+v)
	}
	if len(grants) > 0 {
		args = append(args, "--grant", strings.Join(grants, ","))
	}
	out, err := m.Hosts[0].Run(ctx, args...)
	if err != nil {
		return err
	}
	var created struct{ Token string }
	if err := json.Unmarshal(out, &created); err != nil {
		return fmt.Errorf("read token: %w", err)
	}
	if _, err := n.Run(ctx, append([]string{"join", created.Token, "--name", n.Name}, n.identity()...)...); err != nil {
		return err
	}
	return n.StartDaemon()
}

func (n *Node) identity() []string {
	if n.Agent == "" {
		return nil
	}
	args := []string{"--agent", n.Agent}
	for k, v := range n.Labels {
		args = append(args, "--label", k+"="+v)
	}
	return args
}

// StateDir is where the node keeps its state.
func (n *Node) StateDir() string { return filepath.Join(n.mesh.Dir, n.Name) }

// Socket is the path of the node's local API.
func (n *Node) Socket() string { return filepath.Join(n.mesh.Dir, n.Name+".sock") }

// StartDaemon starts the node's daemon and does not wait for it.
func (n *Node) StartDaemon() (err error) {
	program, args := n.mesh.Binary, []string{"--state-dir", n.StateDir(), "--socket", n.Socket(), "daemon"}
	if n.Config != "" {
		if err := n.WriteConfig(); err != nil {
			return err
		}
		args = append(args, "--config", n.configPath())
	}
	if n.Disk != nil {
		program, args = n.Disk.command(program, args...)
	}
	n.Daemon, err = n.Start("daemon", program, args...)
	return err
}

func (n *Node) configPath() string { return filepath.Join(n.mesh.Dir, n.Name+".yaml") }

// WriteConfig writes the configuration file, for the daemon's next start or reload.
func (n *Node) WriteConfig() error { return os.WriteFile(n.configPath(), []byte(n.Config), 0o600) }

// ExitError is a bulkhead command that failed.
type ExitError struct {
	Args   []string
	Code   int
	Stderr string
}

// Error says which command failed and what it said.
func (e *ExitError) Error() string {
	return fmt.Sprintf("bulkhead %s: exit code %d: %s", strings.Join(e.Args, " "), e.Code, strings.TrimSpace(e.Stderr))
}

// Run runs a bulkhead command as the node's local operator and returns its standard output. The error is an
// *ExitError, with the output, if the command failed.
func (n *Node) Run(ctx context.Context, args ...string) ([]byte, error) {
	out, err := n.Host.Run(ctx, n.mesh.Binary, append([]string{"--state-dir", n.StateDir(), "--socket", n.Socket()}, args...)...)
	if err == nil && out.Code != 0 {
		err = &ExitError{Args: args, Code: out.Code, Stderr: out.Stderr}
	}
	return []byte(out.Stdout), err
}

// Status is the node's own.
func (n *Node) Status(ctx context.Context) (s api.Status, err error) {
	out, err := n.Run(ctx, "status", "-o", "json")
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal(out, &s)
}

// Ready waits until the node's phase is ready.
func (n *Node) Ready(ctx context.Context) error {
	err := Eventually(ctx, patient, func() error {
		select {
		case <-n.Daemon.Done():
			return fmt.Errorf("the daemon of %s has ended", n.Name)
		default:
		}
		s, err := n.Status(ctx)
		if err == nil && s.Phase != "ready" {
			err = fmt.Errorf("%s is %s: %s", n.Name, s.Phase, s.Reason)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("%w; its log ends with:\n%s", err, n.Daemon.Log())
	}
	return nil
}

// Settled waits until every host knows every other and believes it alive.
func (m *Mesh) Settled(ctx context.Context) error {
	return Eventually(ctx, patient, func() error {
		for _, n := range m.Hosts {
			s, err := n.Status(ctx)
			if err != nil {
				return err
			}
			if s.Hosts.Known != len(m.Hosts) || s.Hosts.Alive != len(m.Hosts) {
				return fmt.Errorf("%s knows %d hosts, %d alive, of %d", n.Name, s.Hosts.Known, s.Hosts.Alive, len(m.Hosts))
			}
		}
		return nil
	})
}

// Apply applies a policy document on the first host and waits until all live hosts enforce it.
func (m *Mesh) Apply(ctx context.Context, document string) error {
	return m.Submit(ctx, document, "--wait")
}

// Submit applies a policy document on the first host, with more flags.
func (m *Mesh) Submit(ctx context.Context, document string, flags ...string) error {
	path := filepath.Join(m.Dir, "policy.yaml")
	if err := os.WriteFile(path, []byte(document), 0o600); err != nil {
		return err
	}
	_, err := m.Hosts[0].Run(ctx, append([]string{"policy", "apply", "-f", path}, flags...)...)
	return err
}

// Close ends the daemons and removes the world.
func (m *Mesh) Close() error {
	var err error
	if m.World != nil {
		err = m.World.Close()
	}
	return errors.Join(err, os.RemoveAll(m.Dir))
}

// Eventually calls check until it returns nil, at most for patience; then its last error is returned.
func Eventually(ctx context.Context, patience time.Duration, check func() error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-tick.C:
		}
	}
}
