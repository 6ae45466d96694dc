package spiffe

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"go.uber.org/goleak"

	"github.com/bulkhead-mesh/bulkhead/overlay/identity/identitytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const mesh = "acme.example"

// issuer certifies agents, as a host's daemon has them.
type issuer struct {
	ca  *identitytest.CA
	jwt *ecdsa.PrivateKey

	mu      sync.Mutex
	svids   map[string]SVID
	gone    map[string]bool
	changed chan struct{}
}

func newIssuer(t *testing.T, agents ...string) *issuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	i := &issuer{ca: identitytest.NewAt(t, mesh, time.Now()), jwt: key, svids: map[string]SVID{}, gone: map[string]bool{}, changed: make(chan struct{})}
	for _, a := range agents {
		i.renew(t, a)
	}
	return i
}

func (i *issuer) renew(t *testing.T, agent string) {
	t.Helper()
	made := i.ca.Agent(agent, "h1", nil, netip.MustParseAddr("10.201.0.1"))
	i.mu.Lock()
	defer i.mu.Unlock()
	i.svids[agent] = SVID{ID: "spiffe://" + mesh + "/agent/" + agent, Chain: made.Chain, Key: ed25519.PrivateKey(made.Key)}
	i.news()
}

func (i *issuer) dismiss(agent string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.gone[agent] = true
	i.news()
}

func (i *issuer) news() {
	close(i.changed)
	i.changed = make(chan struct{})
}

func (i *issuer) SVID(agent string) (SVID, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	s, ok := i.svids[agent]
	if !ok {
		return s, errors.New("none")
	}
	return s, nil
}

func (i *issuer) Bundle() ([][]byte, []JWTKey) {
	return [][]byte{i.ca.Root.Certificate().Raw}, []JWTKey{{ID: "k1", Key: i.jwt.Public()}}
}

func (i *issuer) Changed() <-chan struct{} {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.changed
}

func (i *issuer) SignJWT(_ context.Context, agent string, audience []string) (string, error) {
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: i.jwt}, (&jose.SignerOptions{}).WithType("JWT").WithHeader("kid", "k1"))
	if err != nil {
		return "", err
	}
	return jwt.Signed(signer).Claims(jwt.Claims{
		Subject: "spiffe://" + mesh + "/agent/" + agent, Audience: audience, Expiry: jwt.NewNumericDate(time.Now().Add(time.Minute)),
	}).Serialize()
}

// serve serves the API to one process, which is this agent for as long as the issuer says.
func serve(t *testing.T, i *issuer, agent string) (addr string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := New(Options{Mesh: mesh, Listener: l, Source: i, Logger: slog.New(slog.DiscardHandler), Attest: func(*net.UnixConn) (string, error) {
		i.mu.Lock()
		defer i.mu.Unlock()
		if i.gone[agent] {
			return "", nil
		}
		return agent, nil
	}})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return "unix://" + path
}

func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func x509Source(t *testing.T, addr string) *workloadapi.X509Source {
	t.Helper()
	source, err := workloadapi.NewX509Source(soon(t), workloadapi.WithClientOptions(workloadapi.WithAddr(addr)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := source.Close(); err != nil {
			t.Error(err)
		}
	})
	return source
}

// Two agents with an unmodified client do mutual TLS, each knowing who the other is.
func TestAgentsDoMutualTLS(t *testing.T) {
	i := newIssuer(t, "plan1", "vec1")
	plan1, vec1 := x509Source(t, serve(t, i, "plan1")), x509Source(t, serve(t, i, "vec1"))
	planID, vecID := spiffeid.RequireFromString("spiffe://acme.example/agent/plan1"), spiffeid.RequireFromString("spiffe://acme.example/agent/vec1")
	l, err := spiffetls.ListenWithMode(soon(t), "tcp", "127.0.0.1:0", spiffetls.MTLSServerWithRawConfig(tlsconfig.AuthorizeID(planID), vec1, vec1))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	heard := make(chan string, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			heard <- err.Error()
			return
		}
		defer conn.Close()
		buf := make([]byte, 5)
		if _, err := conn.Read(buf); err != nil {
			heard <- err.Error()
			return
		}
		heard <- string(buf)
	}()
	conn, err := spiffetls.DialWithMode(soon(t), "tcp", l.Addr().String(), spiffetls.MTLSClientWithRawConfig(tlsconfig.AuthorizeID(vecID), plan1, plan1))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if got := <-heard; got != "hello" {
		t.Errorf("the other side heard %q", got)
	}
}

func TestRotationIsPushed(t *testing.T) {
	i := newIssuer(t, "plan1")
	source := x509Source(t, serve(t, i, "plan1"))
	before, err := source.GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	for range 10 {
		updated := source.Updated()
		select { // none may be left over
		case <-updated:
		default:
		}
		i.renew(t, "plan1")
		select {
		case <-updated:
		case <-soon(t).Done():
			t.Fatal("a renewed certificate was not pushed")
		}
		after, err := source.GetX509SVID()
		if err != nil {
			t.Fatal(err)
		}
		if after.Certificates[0].SerialNumber.Cmp(before.Certificates[0].SerialNumber) == 0 {
			t.Fatal("the certificate is the old one")
		}
		before = after
	}
}

func TestJWT(t *testing.T) {
	i := newIssuer(t, "plan1")
	addr := serve(t, i, "plan1")
	source, err := workloadapi.NewJWTSource(soon(t), workloadapi.WithClientOptions(workloadapi.WithAddr(addr)))
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	svid, err := source.FetchJWTSVID(soon(t), jwtsvid.Params{Audience: "vec1"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := jwtsvid.ParseAndValidate(svid.Marshal(), source, []string{"vec1"}); err != nil {
		t.Error(err)
	}
	valid, err := workloadapi.ValidateJWTSVID(soon(t), svid.Marshal(), "vec1", workloadapi.WithAddr(addr))
	if err != nil || valid.ID.String() != "spiffe://acme.example/agent/plan1" {
		t.Errorf("got %v, %v", valid, err)
	}
	if _, err := workloadapi.ValidateJWTSVID(soon(t), svid.Marshal(), "other", workloadapi.WithAddr(addr)); err == nil {
		t.Error("a token for another audience is valid")
	}
	if _, err := source.FetchJWTSVID(soon(t), jwtsvid.Params{Audience: "vec1", Subject: spiffeid.RequireFromString("spiffe://acme.example/agent/vec1")}); err == nil {
		t.Error("an agent gets another's token")
	}
}

// A process that is no agent gets nothing, and one that ceases to be one loses what it had.
func TestStrangersGetNothing(t *testing.T) {
	i := newIssuer(t, "plan1")
	addr := serve(t, i, "plan1")
	client, err := workloadapi.New(soon(t), workloadapi.WithAddr(addr))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	w := &watcher{first: make(chan struct{}), faults: make(chan error, 16)}
	watched := make(chan error, 1)
	ctx, stop := context.WithCancel(soon(t))
	go func() { watched <- client.WatchX509Context(ctx, w) }()
	<-w.first
	i.dismiss("plan1")
	if err := <-w.faults; !strings.Contains(err.Error(), "PermissionDenied") {
		t.Errorf("the stream of a process that is no agent any more ends with %v", err)
	}
	stop()
	<-watched // the client tries again for ever
	if _, err := client.FetchX509SVID(soon(t)); err == nil || !strings.Contains(err.Error(), "PermissionDenied") {
		t.Errorf("got %v", err)
	}
	if _, err := client.FetchJWTBundles(soon(t)); err == nil || !strings.Contains(err.Error(), "PermissionDenied") {
		t.Errorf("got %v", err)
	}
}

type watcher struct {
	once   sync.Once
	first  chan struct{}
	faults chan error
}

func (w *watcher) OnX509ContextUpdate(*workloadapi.X509Context) { w.once.Do(func() { close(w.first) }) }
func (w *watcher) OnX509ContextWatchError(err error)            { w.faults <- err }

// The chain that is sent is one that standard verification takes.
func TestChainVerifies(t *testing.T) {
	i := newIssuer(t, "plan1")
	source := x509Source(t, serve(t, i, "plan1"))
	svid, err := source.GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(i.ca.Root.Certificate())
	for _, c := range svid.Certificates[1:] {
		between.AddCert(c)
	}
	if _, err := svid.Certificates[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		t.Error(err)
	}
	if _, ok := svid.PrivateKey.(crypto.Signer); !ok {
		t.Error("no key")
	}
}
