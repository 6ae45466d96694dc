package spiffe

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"go.uber.org/goleak"

	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity/identitytest"
)

func TestMain(m *testing.M) {
	if role := os.Getenv("SPIFFE_TEST_ROLE"); role != "" {
		os.Exit(play(role)) // a process of the tests in process_test.go
	}
	goleak.VerifyTestMain(m)
}

const mesh = "acme.example"

// issuer certifies agents, as a host's daemon has them.
type issuer struct {
	ca *identitytest.CA

	mu      sync.Mutex
	svids   map[string]SVID
	jwt     map[string]*ecdsa.PrivateKey // by key ID
	signer  string                       // ID of the key that signs
	down    error                        // of control
	changed chan struct{}
}

func newIssuer(t *testing.T, agents ...string) *issuer {
	t.Helper()
	i := &issuer{ca: identitytest.NewAt(t, mesh, time.Now()), jwt: map[string]*ecdsa.PrivateKey{}, svids: map[string]SVID{}, changed: make(chan struct{})}
	i.renewJWT(t, "k1")
	for _, a := range agents {
		i.renew(t, a)
	}
	return i
}

// renew gives an agent a new certificate.
func (i *issuer) renew(t *testing.T, agent string) {
	t.Helper()
	made := i.ca.Agent(agent, "h1", map[string]string{"function": "planner", "sensitivity": "internal"}, netip.MustParseAddr("10.201.0.1"), netip.MustParseAddr("fd00::1"))
	i.change(func() {
		i.svids[agent] = SVID{ID: agentID(agent), Chain: made.Chain, Key: ed25519.PrivateKey(made.Key)}
	})
}

// renewJWT signs with a new key from now on. The old one still verifies.
func (i *issuer) renewJWT(t *testing.T, id string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	i.change(func() { i.jwt[id], i.signer = key, id })
}

// change changes something, and says so.
func (i *issuer) change(what func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	what()
	close(i.changed)
	i.changed = make(chan struct{})
}

func (i *issuer) SVID(agent string) (SVID, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	s, ok := i.svids[agent]
	if !ok {
		return s, errors.New("it has no certificate")
	}
	return s, nil
}

func (i *issuer) Bundle() ([][]byte, []JWTKey) {
	i.mu.Lock()
	defer i.mu.Unlock()
	var keys []JWTKey
	for id, k := range i.jwt {
		keys = append(keys, JWTKey{ID: id, Key: k.Public()})
	}
	return [][]byte{i.ca.Root.Certificate().Raw}, keys
}

func (i *issuer) Changed() <-chan struct{} {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.changed
}

func (i *issuer) SignJWT(_ context.Context, agent string, audience []string) (string, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.down != nil {
		return "", i.down
	}
	return sign(i.jwt[i.signer], i.signer, jwt.Claims{Subject: agentID(agent), Audience: audience, Expiry: jwt.NewNumericDate(time.Now().Add(time.Minute))})
}

func sign(key *ecdsa.PrivateKey, id string, claims jwt.Claims) (string, error) {
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, (&jose.SignerOptions{}).WithType("JWT").WithHeader("kid", id))
	if err != nil {
		return "", err
	}
	return jwt.Signed(signer).Claims(claims).Serialize()
}

func agentID(agent string) string {
	return identity.ID{Mesh: mesh, Kind: identity.KindAgent, Name: agent}.String()
}

func spiffeID(agent string) spiffeid.ID { return spiffeid.RequireFromString(agentID(agent)) }

// serve serves the API until the test ends.
func serve(t *testing.T, i *issuer, attest func(*net.UnixConn) (string, error)) workloadapi.ClientOption {
	t.Helper()
	return workloadapi.WithAddr("unix://" + listenFor(t, i, attest))
}

// listenFor serves the API until the test ends, at the path that it returns.
func listenFor(t *testing.T, i *issuer, attest func(*net.UnixConn) (string, error)) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := New(Options{Mesh: mesh, Listener: l, Source: i, Logger: slog.New(slog.DiscardHandler), Attest: attest})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(10 * time.Second):
			t.Error("it does not end with its context")
		}
	})
	return path
}

// badge says which agent the test's own process is.
type badge struct {
	mu    sync.Mutex
	agent string
	err   error
}

func (b *badge) attest(*net.UnixConn) (string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.agent, b.err
}

// become makes the process another agent, which the issuer's watchers hear.
func (b *badge) become(i *issuer, agent string, err error) {
	i.change(func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.agent, b.err = agent, err
	})
}

// serveTo serves the API to one agent.
func serveTo(t *testing.T, i *issuer, agent string) (workloadapi.ClientOption, *badge) {
	t.Helper()
	b := &badge{agent: agent}
	return serve(t, i, b.attest), b
}

// soon is a time by which all is done that this test waits for.
func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func newClient(t *testing.T, addr workloadapi.ClientOption) *workloadapi.Client {
	t.Helper()
	c, err := workloadapi.New(soon(t), addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func x509Source(t *testing.T, addr workloadapi.ClientOption) *workloadapi.X509Source {
	t.Helper()
	source, err := workloadapi.NewX509Source(soon(t), workloadapi.WithClientOptions(addr))
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
