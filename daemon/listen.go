package daemon

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
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

const (
	headerTimeout = 5 * time.Second
	drainTimeout  = 2 * time.Second
	maxHeader     = 16 << 10
)

// newAPI makes the API of this host. What needs the authority goes to a control host, if this host may ask there.
func (d *daemon) newAPI() (*api.Server, error) {
	o := api.Options{
		Authority: d.authority, Local: local{d}, Logger: d.log.With("part", "api"), Version: d.options.Version,
		Verify: d.verifyClient,
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

// verifyClient judges the certificate of an API client: an operator's or a host's.
func (d *daemon) verifyClient(chain [][]byte) (*identity.Certificate, error) {
	trust := d.mesh.Trust()
	cert, err := trust.Verify(chain, identity.KindOperator, time.Now())
	if errors.Is(err, identity.ErrForeign) {
		return trust.Verify(chain, identity.KindHost, time.Now())
	}
	return cert, err
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
	return serveHTTP(ctx, &http.Server{
		Handler:     d.api.Socket(socketPrincipal),
		ConnContext: withPeer,
	}, listener, d.log)
}

type peerKey struct{}

// withPeer remembers which user is on the other end of a connection.
func withPeer(ctx context.Context, c net.Conn) context.Context {
	if unix, ok := c.(*net.UnixConn); ok {
		if uid, err := platform.PeerUID(unix); err == nil {
			return context.WithValue(ctx, peerKey{}, uid)
		}
	}
	return ctx
}

// socketPrincipal is who asks over the socket; the zero principal, which may nothing, for other users.
func socketPrincipal(r *http.Request) authority.Principal {
	uid, ok := r.Context().Value(peerKey{}).(int)
	if !ok || (uid != 0 && uid != os.Getuid()) {
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
	config := &tls.Config{
		MinVersion:             tls.VersionTLS13,
		ClientAuth:             tls.RequestClientCert,
		SessionTicketsDisabled: true,
		NextProtos:             []string{"h2", "http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			cert := *d.credentials.certificate()
			cert.Certificate = append(cert.Certificate[:len(cert.Certificate):len(cert.Certificate)], d.credentials.get().Roots...)
			return &cert, nil
		},
	}
	return serveHTTP(ctx, &http.Server{Handler: d.api.Public()}, tls.NewListener(listener, config), d.log)
}

// serveHTTP serves until ctx ends, then lets requests that run finish for a moment.
func serveHTTP(ctx context.Context, server *http.Server, listener net.Listener, log *slog.Logger) error {
	server.ReadHeaderTimeout = headerTimeout
	server.MaxHeaderBytes = maxHeader
	server.ErrorLog = slog.NewLogLogger(log.Handler(), slog.LevelDebug)
	server.BaseContext = func(net.Listener) context.Context { return ctx } // ends event streams
	drained := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		deadline, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
		defer cancel()
		err := server.Shutdown(deadline)
		if errors.Is(err, context.DeadlineExceeded) {
			err = server.Close()
		}
		drained <- err
	})
	err := server.Serve(listener)
	if stop() || !errors.Is(err, http.ErrServerClosed) {
		return errors.Join(err, server.Close())
	}
	return <-drained
}
