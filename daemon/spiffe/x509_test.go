package spiffe

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity/identitytest"
)

// Two agents with an unmodified client do mutual TLS: each side names whom it lets in, and nobody else gets through.
func TestAgentsDoMutualTLS(t *testing.T) {
	i := newIssuer(t, "plan1", "vec1")
	planAddr, _ := serveTo(t, i, "plan1")
	vecAddr, _ := serveTo(t, i, "vec1")
	plan1, vec1 := x509Source(t, planAddr), x509Source(t, vecAddr)
	for _, tt := range []struct {
		name           string
		server, client string // whom the client expects, and the server lets in
		may            bool
	}{
		{"each other", "vec1", "plan1", true}, {"the server expects another", "vec1", "vec1", false}, {"the client expects another", "plan1", "plan1", false},
	} {
		l, err := spiffetls.ListenWithMode(soon(t), "tcp", "127.0.0.1:0", spiffetls.MTLSServerWithRawConfig(tlsconfig.AuthorizeID(spiffeID(tt.client)), vec1, vec1))
		if err != nil {
			t.Fatal(err)
		}
		heard := make(chan string, 1)
		go func() { heard <- hear(l) }()
		said := say(t, l.Addr(), plan1, tt.server)
		if got := <-heard; (got == "hello from "+agentID("plan1")) != tt.may || (said == nil) != tt.may {
			t.Errorf("%s: heard %q, said with %v", tt.name, got, said)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
}

// hear accepts one connection, answers it, and returns what it said and who it is.
func hear(l net.Listener) string {
	conn, err := l.Accept()
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	buf := make([]byte, 5)
	if _, err := io.ReadFull(conn, buf); err != nil {
		return err.Error()
	}
	id, err := spiffetls.PeerIDFromConn(conn)
	if err != nil {
		return err.Error()
	}
	if _, err := conn.Write([]byte("heard")); err != nil {
		return err.Error()
	}
	return string(buf) + " from " + id.String()
}

// say says hello, and waits for the answer.
func say(t *testing.T, addr net.Addr, source *workloadapi.X509Source, expected string) error {
	t.Helper()
	conn, err := spiffetls.DialWithMode(soon(t), "tcp", addr.String(), spiffetls.MTLSClientWithRawConfig(tlsconfig.AuthorizeID(spiffeID(expected)), source, source))
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("hello")); err != nil {
		return err
	}
	_, err = io.ReadFull(conn, make([]byte, 5))
	return err
}

// A certificate of another mesh is not taken, though its agent has the same name.
func TestOtherMeshIsForeign(t *testing.T) {
	addr, _ := serveTo(t, newIssuer(t, "plan1"), "plan1")
	ours := x509Source(t, addr)
	for _, other := range []string{mesh, "other.example"} {
		alien := identitytest.NewAt(t, other, newIssuer(t).ca.Now)
		made := alien.Agent("plan1", "h1", nil, netip.MustParseAddr("10.201.0.1"))
		if _, _, err := x509svid.ParseAndVerify(made.Chain, ours); err == nil {
			t.Errorf("a certificate of another root, for %s, is taken", other)
		}
	}
}

// What is sent is what the source has, in the form of the standard: go-spiffe checks it strictly, and crypto/x509 with all
// of its rules for TLS.
func TestSVIDIsAsTheStandardSays(t *testing.T) {
	i := newIssuer(t, "plan1")
	addr, _ := serveTo(t, i, "plan1")
	c := newClient(t, addr)
	got, err := c.FetchX509Context(soon(t))
	if err != nil {
		t.Fatal(err)
	}
	svid := got.DefaultSVID()
	want := i.svids["plan1"]
	if len(got.SVIDs) != 1 || svid.ID != spiffeID("plan1") || len(svid.Certificates) != 2 || !bytes.Equal(svid.Certificates[0].Raw, want.Chain[0]) {
		t.Fatalf("got %+v", got.SVIDs)
	}
	for _, cert := range svid.Certificates {
		if len(cert.UnhandledCriticalExtensions) > 0 {
			t.Errorf("%s has critical extensions that others do not know: %v", cert.Subject, cert.UnhandledCriticalExtensions)
		}
	}
	if id, _, err := x509svid.Verify(svid.Certificates, got.Bundles); err != nil || id != spiffeID("plan1") {
		t.Errorf("got %v, %v", id, err)
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(i.ca.Root.Certificate())
	between.AddCert(svid.Certificates[1])
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
		if _, err := svid.Certificates[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
			t.Errorf("usage %v: %v", usage, err)
		}
	}
	bundles, err := c.FetchX509Bundles(soon(t))
	if err != nil {
		t.Fatal(err)
	}
	bundle, ok := bundles.Get(spiffeid.RequireTrustDomainFromString(mesh))
	if !ok || bundles.Len() != 1 || !bundle.HasX509Authority(i.ca.Root.Certificate()) || len(bundle.X509Authorities()) != 1 {
		t.Errorf("got %v", bundles.Bundles())
	}
	// The product's own verifier takes what the agent shows.
	if _, err := i.ca.Trust().Verify(want.Chain, identity.KindAgent, i.ca.Now); err != nil {
		t.Error(err)
	}
}

// A renewed certificate reaches the client by itself, and the next handshake uses it.
func TestRotationIsPushed(t *testing.T) {
	i := newIssuer(t, "plan1", "vec1")
	planAddr, _ := serveTo(t, i, "plan1")
	vecAddr, _ := serveTo(t, i, "vec1")
	plan1, vec1 := x509Source(t, planAddr), x509Source(t, vecAddr)
	l, err := tls.Listen("tcp", "127.0.0.1:0", tlsconfig.MTLSServerConfig(vec1, vec1, tlsconfig.AuthorizeID(spiffeID("plan1"))))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for range 10 {
		i.renew(t, "plan1")
		serial := i.svids["plan1"].Chain[0]
		ctx := soon(t)
		for {
			updated := plan1.Updated()
			after, err := plan1.GetX509SVID()
			if err != nil {
				t.Fatal(err)
			}
			if bytes.Equal(after.Certificates[0].Raw, serial) {
				break
			}
			select {
			case <-updated:
			case <-ctx.Done():
				t.Fatal("a renewed certificate was not pushed")
			}
		}
		shown := make(chan []byte, 1)
		go func() {
			conn, err := l.Accept()
			if err != nil {
				shown <- nil
				return
			}
			defer conn.Close()
			if conn.(*tls.Conn).Handshake() != nil {
				shown <- nil
				return
			}
			shown <- conn.(*tls.Conn).ConnectionState().PeerCertificates[0].Raw
			_, _ = conn.Write([]byte("heard"))
		}()
		conn, err := tls.Dial("tcp", l.Addr().String(), tlsconfig.MTLSClientConfig(plan1, plan1, tlsconfig.AuthorizeID(spiffeID("vec1"))))
		if err != nil {
			t.Fatal(err)
		}
		_, readErr := io.ReadFull(conn, make([]byte, 5))
		if err := errors.Join(readErr, conn.Close()); err != nil {
			t.Error(err)
		}
		if !bytes.Equal(<-shown, serial) {
			t.Error("a handshake shows the old certificate")
		}
	}
}

// What did not change is not sent again.
func TestNothingNewIsNotPushed(t *testing.T) {
	i := newIssuer(t, "plan1", "vec1")
	addr, _ := serveTo(t, i, "plan1")
	w := watch(t, newClient(t, addr))
	<-w.updates
	for range 20 {
		i.renew(t, "vec1") // of another agent
	}
	i.renew(t, "plan1")
	if got := <-w.updates; !bytes.Equal(got.DefaultSVID().Certificates[0].Raw, i.svids["plan1"].Chain[0]) {
		t.Error("a needless update")
	}
}
