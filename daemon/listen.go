package daemon

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/bulkhead-mesh/bulkhead/control/api"
	"github.com/bulkhead-mesh/bulkhead/control/authority"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
	"github.com/bulkhead-mesh/bulkhead/platform"
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
	if err := os.MkdirAll(filepath.Dir(d.config.Socket), 0o700); err != nil {
		return err
	}
	// The state directory's lock is ours, so a socket that is there was left by a daemon that was killed.
	if err := os.Remove(d.config.Socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "unix", d.config.Socket)
	if err != nil {
		return err
	}
	if err := os.Chmod(d.config.Socket, 0o600); err != nil {
		return errors.Join(err, listener.Close())
	}
	return api.Serve(ctx, listener, d.api.Socket(socketPrincipal), d.log)
}

// socketPrincipal is who asks over the socket; the zero principal, which may nothing, for other users.
func socketPrincipal(r *http.Request) authority.Principal {
	conn, ok := r.Context().Value(api.ConnContextKey{}).(*net.UnixConn)
	if !ok {
		return authority.Principal{}
	}
	uid, err := platform.PeerUID(conn)
	if err != nil || (uid != 0 && uid != os.Getuid()) {
		return authority.Principal{}
	}
	return authority.Principal{Name: fmt.Sprintf("local/uid-%d", uid), Role: authority.RoleAdmin, From: "socket"}
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
