package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-mesh/bulkhead/overlay"
	"github.com/bulkhead-mesh/bulkhead/platform"
	"github.com/bulkhead-mesh/bulkhead/platform/bind"
	"github.com/bulkhead-mesh/bulkhead/platform/scope"
)

// binder ties agents to processes, in the kernel.
type binder interface {
	overlay.Binder
	Learn(agent, name string, allow []overlay.EgressAllow) error
	Review(keep func(agent, name string, allow overlay.EgressAllow) bool) error // of what was learned
	Restore() (restored bool, err error)                                        // what other programs took away
	Limits(overlay.BindingConfig) []string                                      // what it cannot enforce of that, in words
	Drops() (map[string]uint64, error)
	Route() error // has the routes choose the source of sockets that cannot be told theirs; needs the interface and its addresses
	Close() error
}

// kernelBinder enforces all but what no kernel program can know.
type kernelBinder struct{ *bind.Binding }

// Limits says what a binding to a whole host leaves open.
func (kernelBinder) Limits(overlay.BindingConfig) []string { return nil }

// openBinder prepares what ties agents to their processes, and takes over what an earlier daemon left in the kernel. Where
// there is no such thing, it says why, unless that is not to be borne.
func (d *daemon) openBinder() (missing, err error) {
	root, missing := d.findCgroupRoot()
	if missing == nil {
		missing = bind.Supported(root)
	}
	if missing == nil {
		var b *bind.Binding
		b, missing = bind.Open(bind.Options{
			Root: root, PinDir: pinDir(d.config.Interface), Prefixes: d.credentials.get().Prefixes, Resolvers: overlay.ResolverAddrs(d.credentials.get().Prefixes),
			Interface: d.config.Interface, OwnPorts: d.ownPorts(), Logger: d.log.With("part", "binding"),
		})
		if missing == nil {
			d.cgroupRoot, d.binder = root, kernelBinder{b}
			return nil, scope.Clean(root)
		}
	}
	if d.config.Enforcement == EnforceAll {
		return nil, fmt.Errorf("enforcement is required, and this host cannot tell its agents apart: %w (fix: cgroup v2, bpffs and a kernel of 5.10 or newer; or set enforcement: auto)", missing)
	}
	if platform.CheckCgroup(root) == nil {
		d.cgroupRoot = root
	}
	// What an earlier daemon bound, this one could not tell of changes.
	return missing, bind.Remove(pinDir(d.config.Interface))
}

// findCgroupRoot is the directory of cgroup v2 whose processes are this host's.
func (d *daemon) findCgroupRoot() (string, error) {
	if d.config.CgroupRoot != "" {
		return d.config.CgroupRoot, nil
	}
	return platform.CgroupRoot()
}

// pinDir is where this network namespace's programs stay in the kernel: `down` finds it without any state.
func pinDir(iface string) string {
	var st unix.Stat_t
	if err := unix.Stat("/proc/self/ns/net", &st); err != nil {
		return filepath.Join(bpfDir, iface)
	}
	return filepath.Join(bpfDir, iface+"-"+strconv.FormatUint(st.Ino, 10))
}

const bpfDir = "/sys/fs/bpf/bulkhead"

// ownPorts are those of this host's TCP listeners, which are not for agents.
func (d *daemon) ownPorts() []uint16 {
	var ports []uint16
	for _, addr := range []string{d.config.ControlListen, d.config.MetricsListen} {
		if port, ok := portOf(addr); ok {
			ports = append(ports, port)
		}
	}
	return ports
}

// guardControl keeps agents from the control APIs of other hosts as these come and go, until ctx ends.
func (d *daemon) guardControl(ctx context.Context) error {
	kernel, ok := d.binder.(kernelBinder)
	if !ok {
		<-ctx.Done()
		return nil
	}
	var set []netip.AddrPort
	for {
		changed := d.mesh.Changed()
		if next := d.controlAddresses(); !slices.Equal(next, set) {
			if err := kernel.SetDenied(next); err != nil {
				d.log.Error("keep agents from the control API", "error", err)
			} else {
				set = next
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}

// controlAddresses are where control APIs listen, as far as this host knows.
func (d *daemon) controlAddresses() []netip.AddrPort {
	var out []netip.AddrPort
	for _, s := range d.credentials.get().Control {
		if ap, err := netip.ParseAddrPort(s); err == nil {
			out = append(out, ap)
		}
	}
	port, ok := portOf(d.config.ControlListen)
	for _, r := range d.mesh.Snapshot().Records {
		if !r.HostCert.Control || !ok {
			continue
		}
		for _, e := range r.Endpoints {
			out = append(out, netip.AddrPortFrom(e.Addr(), port))
		}
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	return slices.Compact(out)
}

// portOf is the port of host:port, which Validate has checked.
func portOf(addr string) (uint16, bool) {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return uint16(n), err == nil
}

// follow tells the mesh where the agents' processes are, until ctx ends.
func (d *daemon) follow(ctx context.Context) error {
	d.workloads.Settle(ctx)
	for {
		changed := d.workloads.Changed()
		if err := d.mesh.SetWorkloads(d.workloads.Workloads()); err != nil {
			if errors.Is(err, overlay.ErrStopped) {
				return nil
			}
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}
