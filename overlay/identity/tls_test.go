package identity_test

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity/identitytest"
)

// handshake connects both and returns what each saw of the other's chain, and how each ended.
func handshake(t *testing.T, server, client *tls.Config) (serverErr, clientErr error) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	done := make(chan error, 1)
	go func() {
		done <- func() error {
			conn, err := listener.Accept()
			if err != nil {
				return err
			}
			s := tls.Server(conn, server)
			defer s.Close()
			if err := s.Handshake(); err != nil {
				return err
			}
			_, err = s.Write([]byte("x"))
			return err
		}()
	}()
	conn, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c := tls.Client(conn, client)
	defer c.Close()
	_, clientErr = io.ReadFull(c, make([]byte, 1)) // a refusal of the client certificate arrives after its handshake
	c.Close()
	return <-done, clientErr
}

func source(c identitytest.Credential) func() *tls.Certificate {
	cert := identity.TLSCertificate(c.Key, c.Chain)
	return func() *tls.Certificate { return &cert }
}

func TestTLSIsMutual(t *testing.T) {
	ca := identitytest.New(t, mesh)
	h1, h2 := ca.Host("h1"), ca.Host("h2")
	var seen [2][][]byte
	see := func(i int) func([][]byte) error {
		return func(chain [][]byte) error {
			seen[i] = chain
			_, err := ca.Trust().Verify(chain, identity.KindHost, now)
			return err
		}
	}
	server, client := identity.ServerTLS(source(h1), see(0), "a"), identity.ClientTLS(source(h2), see(1), "a")
	client.ClientSessionCache = tls.NewLRUClientSessionCache(1) // in vain
	for range 2 {
		seen = [2][][]byte{}
		serverErr, clientErr := handshake(t, server, client)
		if serverErr != nil || clientErr != nil {
			t.Fatalf("server: %v, client: %v", serverErr, clientErr)
		}
		if diff := cmp.Diff([2][][]byte{h2.Chain, h1.Chain}, seen); diff != "" {
			t.Error(diff)
		}
	}
}

func TestTLSRefuses(t *testing.T) {
	ca, other := identitytest.New(t, mesh), identitytest.New(t, mesh)
	h1, h2 := source(ca.Host("h1")), source(ca.Host("h2"))
	verify := func(chain [][]byte) error {
		_, err := ca.Trust().Verify(chain, identity.KindHost, now)
		return err
	}
	none := func() *tls.Certificate { return nil }
	// The key of one with the certificate of the other.
	stolen := source(identitytest.Credential{Key: newKey(t), Chain: ca.Host("h2").Chain})
	old := identity.ClientTLS(h2, verify)
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	for name, tt := range map[string]struct {
		server, client *tls.Config
		want           string // who refuses
	}{
		"foreign client":     {identity.ServerTLS(h1, verify), identity.ClientTLS(source(other.Host("h2")), verify), "server"},
		"foreign server":     {identity.ServerTLS(source(other.Host("h1")), verify), identity.ClientTLS(h2, verify), "client"},
		"operator as server": {identity.ServerTLS(source(ca.Operator("ann", "admin")), verify), identity.ClientTLS(h2, verify), "client"},
		"client of no cert":  {identity.ServerTLS(h1, verify), &tls.Config{InsecureSkipVerify: true}, "server"},
		"no own certificate": {identity.ServerTLS(h1, verify), identity.ClientTLS(none, verify), "client"},
		"server without one": {identity.ServerTLS(none, verify), identity.ClientTLS(h2, verify), "server"},
		"stolen certificate": {identity.ServerTLS(h1, verify), identity.ClientTLS(stolen, verify), "server"},
		"TLS 1.2":            {identity.ServerTLS(h1, verify), old, "server"},
		"no common protocol": {identity.ServerTLS(h1, verify, "a"), identity.ClientTLS(h2, verify, "b"), "server"},
		"no protocol":        {identity.ServerTLS(h1, verify, "a"), identity.ClientTLS(h2, verify), "server"},
		"server of none":     {identity.ServerTLS(h1, verify), identity.ClientTLS(h2, verify, "a"), "client"},
	} {
		t.Run(name, func(t *testing.T) {
			serverErr, clientErr := handshake(t, tt.server, tt.client)
			if serverErr == nil || clientErr == nil {
				t.Fatalf("server: %v, client: %v", serverErr, clientErr)
			}
			// Who is told by the other side has an alert, or a closed connection.
			told := func(err error) bool {
				return strings.Contains(err.Error(), "remote error") || errors.Is(err, io.EOF)
			}
			if refuser := map[string]error{"server": serverErr, "client": clientErr}[tt.want]; told(refuser) {
				t.Errorf("the %s did not refuse; server: %v, client: %v", tt.want, serverErr, clientErr)
			}
		})
	}
}
