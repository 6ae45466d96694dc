package daemon

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/bulkhead-mesh/bulkhead/control/api"
	"github.com/bulkhead-mesh/bulkhead/daemon/names"
	"github.com/bulkhead-mesh/bulkhead/daemon/spiffe"
	"github.com/bulkhead-mesh/bulkhead/overlay"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
)

// newAPI makes the API of this host. What needs the authority goes to a control host, if this host may ask there.
func (d *daemon) newAPI() (*api.Server, error) {
	o := api.Options{
		Authority: d.authority, Local: local{d}, Logger: d.log.With("part", "api"), Version: d.options.Version,
		Verify: func(chain [][]byte) (*identity.Certificate, error) {
			cert, err := api.VerifyClient(d.mesh.Trust(), chain, time.Now())
			if err == nil && d.authority != nil { // which knows of revocations first
				return api.VerifyClient(d.authority.Trust(), chain, time.Now())
			}
			return cert, err
		},
	}
	c := d.credentials.get()
	if d.authority == nil && len(c.Control) > 0 && d.hasControl() {
		client, err := d.controlClient(c.Control[0])
		if err != nil {
			return nil, err
		}
		o.Forward = client.Forward(o.Logger)
	}
	return api.New(o), nil
}

// hasControl reports whether this host's certificate carries the control role.
func (d *daemon) hasControl() bool {
	own := d.mesh.Snapshot().Records[d.credentials.get().Host]
	return own != nil && own.HostCert.Control
}

// controlClient calls the control API at addr in this host's name.
func (d *daemon) controlClient(addr string) (*api.Client, error) {
	c := d.credentials.get()
	roots, err := c.roots()
	if err != nil {
		return nil, err
	}
	return api.Dial(api.DialOptions{Server: addr, Certificate: d.credentials.certificate, Mesh: c.Mesh, Roots: roots})
}

// serveSocket serves the local API to root and to the user that the daemon runs as.
func (d *daemon) serveSocket(ctx context.Context) error {
	listener, err := listenUnix(ctx, d.config.Socket, 0o600)
	if err != nil {
		return err
	}
	return api.Serve(ctx, listener, d.api.Socket(d.socketPrincipal), d.log)
}

// serveAgents serves what agents, and those who run them, may ask.
func (d *daemon) serveAgents(ctx context.Context) error {
	listener, err := listenUnix(ctx, d.config.AgentSocket, 0o666)
	if err != nil {
		return err
	}
	bounded := api.BoundAskers(listener, d.asker)
	return api.Serve(ctx, bounded, d.api.Agents(func(r *http.Request) (api.Asker, error) {
		conn, ok := connOf(r)
		if !ok {
			return api.Asker{}, errNoSocket
		}
		return d.asker(conn)
	}), d.log)
}

var errNoSocket = errors.New("no Unix socket")

// asker is the process on the other end of a connection.
func (d *daemon) asker(conn net.Conn) (api.Asker, error) {
	unix, ok := conn.(*net.UnixConn)
	if !ok {
		return api.Asker{}, errNoSocket
	}
	c, err := d.attest(unix)
	verify := func() error { return c.Inspect(unix, func(int) error { return nil }) }
	return api.Asker{PID: c.PID, UID: c.UID, Agent: c.agent, Verify: verify}, err
}

// serveSPIFFE serves the SPIFFE Workload API.
func (d *daemon) serveSPIFFE(ctx context.Context) error {
	listener, err := listenUnix(ctx, d.config.SpiffeSocket, 0o666)
	if err != nil {
		return err
	}
	return spiffe.New(spiffe.Options{
		Mesh: d.credentials.get().Mesh, Listener: listener, Source: svids{d}, Logger: d.log.With("part", "spiffe"),
		Attest: func(conn *net.UnixConn) (string, error) {
			c, err := d.attest(conn)
			return c.agent, err
		},
	}).Run(ctx)
}

// newNames makes what answers the agents' DNS queries, on the overlay.
func (d *daemon) newNames() (*names.Server, error) {
	upstream, err := d.config.upstream()
	if err != nil {
		return nil, err
	}
	var listen []netip.AddrPort
	for _, addr := range overlay.ResolverAddrs(d.credentials.get().Prefixes) {
		listen = append(listen, netip.AddrPortFrom(addr, dnsPort))
	}
	return names.New(names.Options{
		Mesh: d.credentials.get().Mesh, Prefixes: d.credentials.get().Prefixes, Listen: listen, Upstream: upstream, Interface: d.config.Interface,
		Directory: directory{d}, Learn: directory{d}.learn, Logger: d.log.With("part", "names"),
	}), nil
}

const dnsPort = 53

// listenUnix makes a socket at path. The state directory's lock is ours, so one that is there was left by a daemon that
// was killed. Others may enter the directory if the socket is for them.
func listenUnix(ctx context.Context, path string, mode os.FileMode) (net.Listener, error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, err
	}
	if err := makeWay(ctx, path); err != nil {
		return nil, err
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, mode); err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	return listener, nil
}

// makeWay removes the socket that a killed daemon left, and nothing else.
func makeWay(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != os.ModeSocket {
		return fmt.Errorf("%s is there, and is no socket (fix: configure another path, or remove it)", path)
	}
	if conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path); err == nil {
		return errors.Join(fmt.Errorf("another program listens on %s (fix: stop it, or configure another path)", path), conn.Close())
	}
	return os.Remove(path)
}

// serveControl serves the control API. Who asks is judged per request; the certificate shown is this host's,
// with the root that a joiner's token names.
func (d *daemon) serveControl(ctx context.Context) error {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", d.config.ControlListen)
	if err != nil {
		return err
	}
	roots, err := d.credentials.get().roots()
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	config := api.ServerTLS(d.credentials.certificate, roots)
	return api.Serve(ctx, tls.NewListener(api.Bound(listener), config), d.api.Public(), d.log)
}
