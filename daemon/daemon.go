package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/bulkhead-mesh/bulkhead/control/api"
	"github.com/bulkhead-mesh/bulkhead/control/authority"
	"github.com/bulkhead-mesh/bulkhead/daemon/names"
	"github.com/bulkhead-mesh/bulkhead/overlay"
	"github.com/bulkhead-mesh/bulkhead/overlay/gossip"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
	"github.com/bulkhead-mesh/bulkhead/overlay/link"
	"github.com/bulkhead-mesh/bulkhead/overlay/signed"
	"github.com/bulkhead-mesh/bulkhead/overlay/tunnel"
	"github.com/bulkhead-mesh/bulkhead/platform"
	"github.com/bulkhead-mesh/bulkhead/platform/kv"
	"github.com/bulkhead-mesh/bulkhead/platform/workload"
)

// Options are what a daemon runs with.
type Options struct {
	Config  Config
	Load    func() (Config, error) // the configuration as it is now, validated
	Reload  <-chan struct{}        // asks for Load
	Logger  *slog.Logger
	Level   *slog.LevelVar // the logger's, so that a reload can change it; nil: it cannot
	Version string
}

// daemon is one host of a mesh, running.
type daemon struct {
	options Options
	config  Config
	log     *slog.Logger
	started time.Time

	lifecycle   lifecycle
	credentials *credentialStore
	store       *kv.Store
	control     *kv.Store            // nil without the control role
	authority   *authority.Authority // nil without the control role
	firewall    *platform.Firewall
	tunnel      *tunnel.Tunnel
	link        *link.Link
	gossip      *gossip.Gossip
	mesh        *overlay.Mesh
	api         *api.Server
	events      *events
	binder      binder
	cgroupRoot  string // of this host's processes; empty without cgroup v2
	workloads   *workload.Watcher
	roster      *roster
	runs        *runs
	names       *names.Server
	firstPolicy *signed.VerifiedPolicy // in force when the daemon started; nil: none
	newPolicy   chan struct{}          // the authority has one
	alone       io.Closer              // nil while another daemon may run here
	stop        context.CancelFunc

	publishError atomic.Pointer[error]    // why the mesh does not take the authority's policy
	renewalError atomic.Pointer[error]    // why certificates are not renewed
	advertise    atomic.Pointer[[]string] // as configured last; the rest of config does not change
	configured   atomic.Pointer[[]AgentConfig]
}

// Run runs the daemon until ctx ends or it is told to go down. The rules stay in the kernel.
func Run(ctx context.Context, o Options) (err error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	d := &daemon{
		options: o, config: o.Config, log: o.Logger, started: time.Now(),
		events: newEvents(), runs: newRuns(ctx), newPolicy: make(chan struct{}, 1), stop: stop,
	}
	d.roster = &roster{daemon: d, wake: make(chan struct{}, 1)}
	d.lifecycle.phase = Starting
	d.advertise.Store(&o.Config.Advertise)
	d.configured.Store(&o.Config.Agents)
	defer func() { err = errors.Join(err, d.close()) }()
	if err := d.open(); err != nil {
		return err
	}
	if d.alone, err = alone(); err != nil {
		return err
	}
	if err := d.fence(ctx); err != nil {
		return err
	}
	if err := d.assemble(); err != nil {
		return err
	}
	return d.serve(ctx)
}

// open reads the state directory: what this host is, and the authority if it has the control role.
func (d *daemon) open() (err error) {
	if d.store, err = openHost(d.config.StateDir); err != nil {
		return err
	}
	if d.credentials, err = newCredentialStore(d.store); err != nil {
		return err
	}
	path := filepath.Join(d.config.StateDir, controlFile)
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if d.control, err = kv.Open(path, openTimeout); errors.Is(err, kv.ErrCorrupt) {
		return fmt.Errorf("open %s: %w (fix: restore the state directory from a backup)", path, err)
	} else if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	d.authority, err = authority.Open(d.control, authority.Options{
		AuditPath: filepath.Join(d.config.StateDir, auditFile),
		Now:       time.Now,
		Logger:    d.log.With("part", "authority"),
		ControlAddrs: func() []string {
			return controlAddrs(d.config, d.credentials.get().Advertise)
		},
	})
	if err != nil {
		return fmt.Errorf("open authority: %w", err)
	}
	d.authority.OnPolicy(func(*signed.VerifiedPolicy) {
		select {
		case d.newPolicy <- struct{}{}:
		default: // publish has not yet seen the one before, and takes the newest
		}
	})
	return nil
}

// fence puts deny into the kernel before there is an interface, a packet or a peer.
func (d *daemon) fence(ctx context.Context) (err error) {
	missing, err := d.openBinder() // until it is told more, nobody has an address
	if err != nil {
		return fmt.Errorf("fence: %w", err)
	}
	d.firewall, err = platform.NewFirewall(platform.FirewallOptions{
		Interface: d.config.Interface,
		Prefixes:  d.credentials.get().Prefixes,
		Resolvers: overlay.ResolverAddrs(d.credentials.get().Prefixes),
		ByOwner:   missing != nil,
		Logger:    d.log.With("part", "firewall"),
	})
	if err != nil {
		return fmt.Errorf("prepare firewall: %w", err)
	}
	if err := d.firewall.Fence(ctx); err != nil {
		return fmt.Errorf("fence: %w", err)
	}
	if missing != nil {
		d.log.Warn("agents of one host are told apart by netfilter alone, as far as it can; `bulkhead status` says what is not enforced", "reason", missing)
		d.binder = &fallback{firewall: d.firewall, root: d.cgroupRoot, reason: missing}
	}
	d.lifecycle.enter(Fenced, "deny is in the kernel")
	return nil
}

// assemble makes every part. None runs yet.
func (d *daemon) assemble() error {
	c := d.credentials.get()
	roots, err := c.roots()
	if err != nil {
		return err
	}
	self, err := d.self()
	if err != nil {
		return err
	}
	tun, err := platform.OpenTUN(d.config.Interface)
	if err != nil {
		return err
	}
	d.tunnel, err = tunnel.New(tunnel.Options{
		TUN: tun, MTU: d.config.MTU, Port: d.config.Listen, PrivateKey: c.WireGuard,
		Logger: d.log.With("part", "tunnel"),
	})
	if err != nil {
		return err
	}
	d.mesh, err = overlay.New(overlay.Options{
		Mesh: c.Mesh, Host: c.Host, Roots: roots, Prefixes: c.Prefixes, Self: self, Store: d.store, Now: time.Now,
		Logger: d.log.With("part", "mesh"),
	})
	if err != nil {
		return err
	}
	d.firstPolicy = d.mesh.Snapshot().Policy
	d.workloads = workload.New(workload.Options{Root: d.cgroupRoot, Sockets: d.config.ContainerSockets, Logger: d.log.With("part", "workload")})
	d.roster.watch()
	if d.names, err = d.newNames(); err != nil {
		return err
	}
	d.link = link.New(link.Options{
		Conn:        d.tunnel.PacketConn(),
		Certificate: d.credentials.certificate,
		Verify:      d.verifyHost,
		Candidates:  d.candidates,
		OnPath:      d.tunnel.SetPath,
		OnConnect:   func(host string) { d.mesh.Connected(host) },
		Logger:      d.log.With("part", "link"),
	})
	d.gossip = gossip.New(gossip.Options{
		Host: c.Host, Network: d.link, Known: d.mesh.Known, Candidates: d.knownHosts,
		OnHint: d.mesh.Rumour, OnUnknown: d.mesh.Unknown, OnLiveness: d.liveness,
		Logger: d.log.With("part", "gossip"),
	})
	if d.api, err = d.newAPI(); err != nil {
		return err
	}
	d.link.OnDatagram(overlay.KindGossip, d.gossip.HandleDatagram)
	d.link.OnDatagram(overlay.KindHint, d.hint)
	d.link.OnStream(overlay.KindGossip, d.gossip.HandleStream)
	d.link.OnStream(overlay.KindPull, d.mesh.ServePull)
	return nil
}

// serve runs all parts until ctx ends or one of them fails.
func (d *daemon) serve(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	runIn := func(ctx context.Context, name string, fn func(context.Context) error) {
		group.Go(func() error {
			if err := fn(ctx); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			return nil
		})
	}
	run := func(name string, fn func(context.Context) error) { runIn(ctx, name, fn) }
	// The network outlives gossip, which says goodbye over it.
	network, stopNetwork := context.WithCancel(context.WithoutCancel(ctx))
	defer stopNetwork()
	runIn(network, "tunnel", d.tunnel.Run)
	runIn(network, "link", d.link.Run)
	run("gossip", func(ctx context.Context) error {
		defer stopNetwork()
		return d.gossip.Run(ctx)
	})
	enforcer := &enforcer{
		firewall: d.firewall, binder: d.binder, name: d.config.Interface, mtu: d.config.MTU, prefixes: d.credentials.get().Prefixes,
		log: d.log.With("part", "interface"),
	}
	run("mesh", func(ctx context.Context) error {
		// What the kernel has from before stays as it is until containers are known again.
		d.workloads.Settle(ctx)
		return d.mesh.Run(ctx, overlay.Drivers{
			Tunnel: d.tunnel, Firewall: enforcer, Binder: d.binder, Network: d.link, Gossip: d.gossip, Void: d.link.Recheck,
			Found: d.workloads.Workloads(),
		})
	})
	run("workloads", d.workloads.Run)
	run("bindings", d.follow)
	run("agents", d.roster.run)
	run("control guard", d.guardControl)
	run("agent socket", d.serveAgents)
	run("SPIFFE", d.serveSPIFFE)
	run("names", d.names.Run)
	run("egress", d.reviewNames)
	run("interface", enforcer.guard)
	run("firewall", func(ctx context.Context) error { return d.firewall.Guard(ctx, d.drifted) })
	run("renewal", d.renew)
	run("publication", d.publish)
	run("supervision", d.supervise)
	run("local socket", d.serveSocket)
	if d.authority != nil {
		run("control API", d.serveControl)
	}
	if d.config.MetricsListen != "" {
		run("metrics", d.serveMetrics)
	}
	return group.Wait()
}

// close releases what open took. The fence stays.
func (d *daemon) close() error {
	var err error
	if d.tunnel != nil {
		d.tunnel.Close()
	}
	if d.binder != nil {
		err = errors.Join(err, d.binder.Close())
	}
	if d.authority != nil {
		err = errors.Join(err, d.authority.Close())
	}
	if d.control != nil {
		err = errors.Join(err, d.control.Close())
	}
	if d.store != nil {
		err = errors.Join(err, d.store.Close())
	}
	if d.alone != nil {
		err = errors.Join(err, d.alone.Close())
	}
	return err
}

// self is this host's own record with the endpoints that it has now.
func (d *daemon) self() (overlay.Self, error) {
	c := d.credentials.get()
	cfg := d.config
	cfg.Advertise = *d.advertise.Load()
	eps, err := advertised(cfg, c.Advertise)
	if err != nil {
		return overlay.Self{}, err
	}
	public, err := tunnel.PublicKey(c.WireGuard)
	if err != nil {
		return overlay.Self{}, err
	}
	return c.self(public, eps)
}

// verifyHost judges the certificate of a connection by what is believed now.
func (d *daemon) verifyHost(chain [][]byte) (string, error) {
	cert, err := d.mesh.Trust().Verify(chain, identity.KindHost, time.Now())
	if err != nil {
		return "", err
	}
	return cert.Name, nil
}

// candidates are the addresses at which host may be reached, by its own signed word.
func (d *daemon) candidates(host string) []netip.AddrPort {
	if r := d.mesh.Snapshot().Records[host]; r != nil {
		return r.Endpoints
	}
	return nil
}

func (d *daemon) knownHosts() []string {
	var hosts []string
	own := d.credentials.get().Host
	for host := range d.mesh.Snapshot().Records {
		if host != own {
			hosts = append(hosts, host)
		}
	}
	return hosts
}

// hint takes what a connected host says about itself.
func (d *daemon) hint(host string, payload []byte) {
	h, err := overlay.ParseHint(payload)
	if err != nil {
		d.log.Debug("refused hint", "peer", host, "error", err)
		return
	}
	d.mesh.Hint(host, h)
}
