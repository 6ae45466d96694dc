package api

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bulkhead-mesh/bulkhead/control/authority"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity/identitytest"
	"github.com/bulkhead-mesh/bulkhead/overlay/overlaytest"
	"github.com/bulkhead-mesh/bulkhead/overlay/signed"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

const testMesh = "lab.test"

var quiet = slog.New(slog.DiscardHandler)

var root = authority.Principal{Name: "local/root", Role: authority.RoleAdmin, From: "socket"}

// world is a control host with a real authority, served over real TLS on loopback.
type world struct {
	t         *testing.T
	authority *authority.Authority
	local     *fakeLocal
	server    *Server
	address   string
	requests  atomic.Int64                    // that got through TLS
	cert      atomic.Pointer[tls.Certificate] // that it presents
}

// fakeLocal is what a daemon would know.
type fakeLocal struct {
	agents  []segment.Agent
	policy  *signed.VerifiedPolicy
	rollout []RolloutHost
	events  chan Event

	here  []LocalAgent // what LocalAgents says
	added atomic.Pointer[AgentDeclaration]
	fault error // of AddAgent, RemoveAgent and Run
	whois map[netip.Addr]Whois
	knows map[string]string // agent of whom WhoisFor tells it
	enter chan struct{}     // Run waits for it, unless it is nil
	ran   chan Asker        // Run was entered
	ended chan error        // Run has ended, with what its context said
}

func (l *fakeLocal) Status() Status {
	return Status{Mesh: testMesh, Host: "h1", Phase: "ready", Agents: []StatusAgent{}, Peers: []Peer{}, NotEnforced: []string{},
		Drops: map[string]uint64{}, Refused: map[string]uint64{}}
}
func (l *fakeLocal) Agents() []segment.Agent        { return l.agents }
func (l *fakeLocal) Policy() *signed.VerifiedPolicy { return l.policy }
func (l *fakeLocal) SeedRecords() [][]byte          { return [][]byte{[]byte("record")} }

func (l *fakeLocal) LocalAgents() []LocalAgent { return l.here }

func (l *fakeLocal) AddAgent(_ context.Context, d AgentDeclaration) (LocalAgent, error) {
	l.added.Store(&d)
	return LocalAgent{Name: d.Name, State: AgentActive, Labels: d.Labels, Match: d.Match, Source: SourceCLI,
		Addresses: []netip.Addr{}, Segments: []string{}, NotEnforced: []string{}}, l.fault
}

func (l *fakeLocal) RemoveAgent(_ context.Context, name string) error {
	if name != "a1" {
		return &authority.Error{Code: authority.CodeNotFound, Field: "name", Message: "there is none", Fix: "look"}
	}
	return l.fault
}

func (l *fakeLocal) Whois(addr netip.Addr) (Whois, bool) {
	who, ok := l.whois[addr]
	return who, ok
}

func (l *fakeLocal) WhoisFor(agent string, addr netip.Addr) (Whois, bool) {
	who, ok := l.whois[addr]
	return who, ok && (who.Agent == agent || l.knows[agent] == who.Agent)
}

func (l *fakeLocal) Run(ctx context.Context, asker Asker, r RunRequest, entered func(RunScope) error) error {
	if l.fault != nil {
		return l.fault
	}
	if l.enter != nil {
		<-l.enter
	}
	if err := entered(RunScope{Agent: r.Agent, Addresses: []netip.Addr{netip.MustParseAddr("10.201.0.3")}}); err != nil {
		return err
	}
	l.ran <- asker
	<-ctx.Done()
	l.ended <- ctx.Err()
	return nil
}

func (l *fakeLocal) Rollout(version uint64) Rollout {
	return Rollout{Version: version, Hosts: l.rollout, Done: true}
}

func (l *fakeLocal) Events(ctx context.Context) <-chan Event {
	out := make(chan Event)
	var passing = l.events
	go func() {
		defer close(out)
		for {
			select {
			case e := <-passing:
				select {
				case out <- e:
				case <-ctx.Done():
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, local: &fakeLocal{events: make(chan Event)}}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.address = listener.Addr().String()
	w.found()
	w.server = New(Options{
		Authority: w.authority, Local: w.local,
		Verify: func(chain [][]byte) (*identity.Certificate, error) {
			return VerifyClient(w.authority.Trust(), chain, time.Now())
		},
	})
	w.serve(listener, w.server.Public())
	return w
}

// found makes a mesh with the control host h1.
func (w *world) found() {
	w.t.Helper()
	store := new(overlaytest.Store)
	if _, err := authority.Init(store, authority.InitOptions{Mesh: testMesh, Host: "h1", Now: time.Now()}); err != nil {
		w.t.Fatal(err)
	}
	var err error
	w.authority, err = authority.Open(store, authority.Options{AuditPath: filepath.Join(w.t.TempDir(), "audit.log"),
		ControlAddrs: func() []string { return []string{w.address} }})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		if err := w.authority.Close(); err != nil {
			w.t.Error(err)
		}
	})
	key, csr := newCSR(w.t, identity.KindHost, "h1")
	e, err := w.authority.EnrollLocal("h1", csr, wireguard("h1"), nil)
	if err != nil {
		w.t.Fatal(err)
	}
	cert := identity.TLSCertificate(key, e.HostChain)
	w.cert.Store(&cert)
}

// serve answers on listener, over TLS, until the test ends.
func (w *world) serve(listener net.Listener, h http.Handler) {
	w.t.Helper()
	counted := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.requests.Add(1)
		h.ServeHTTP(rw, r)
	})
	config := ServerTLS(w.certificate, w.authority.Roots())
	serveUntilEnd(w.t, tls.NewListener(Bound(listener), config), counted)
}

func serveUntilEnd(t *testing.T, l net.Listener, h http.Handler) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, l, h, quiet) }()
	t.Cleanup(func() {
		stop()
		if err := <-served; err != nil {
			t.Errorf("Serve = %v, want nil on cancellation", err)
		}
	})
}

// wireguard is the public key of a host.
func wireguard(host string) []byte {
	key := identitytest.WireGuard(host)
	return key[:]
}

func newCSR(t *testing.T, kind identity.Kind, name string) (identity.Key, []byte) {
	t.Helper()
	key, err := identity.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := identity.NewCSR(key, identity.ID{Mesh: testMesh, Kind: kind, Name: name})
	if err != nil {
		t.Fatal(err)
	}
	return key, csr
}

// operator is a client with a fresh operator certificate.
func (w *world) operator(name string, role authority.Role) *Client {
	w.t.Helper()
	key, err := identity.GenerateKey()
	if err != nil {
		w.t.Fatal(err)
	}
	chain, err := w.authority.IssueOperator(root, name, role, key.Public(), time.Hour)
	if err != nil {
		w.t.Fatal(err)
	}
	return w.dial(DialOptions{Server: w.address, Credential: &Credential{Key: key, Chain: chain, Roots: w.authority.Roots()}})
}

func (w *world) dial(o DialOptions) *Client {
	w.t.Helper()
	c, err := Dial(o)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(c.Close)
	return c
}

func (w *world) token(r authority.TokenRequest) authority.Token {
	w.t.Helper()
	created, err := w.authority.CreateToken(root, r)
	if err != nil {
		w.t.Fatal(err)
	}
	token, err := authority.ParseToken(created.Token)
	if err != nil {
		w.t.Fatal(err)
	}
	return token
}

// join enrols a host with one agent over the API, and returns a client with the host's certificate.
func (w *world) join(host, agent string, labels segment.Labels) *Client {
	w.t.Helper()
	key, csr := newCSR(w.t, identity.KindHost, host)
	_, agentCSR := newCSR(w.t, identity.KindAgent, agent)
	e, err := Enroll(w.t.Context(), w.token(authority.TokenRequest{Grant: labels}), authority.EnrollRequest{Host: host, HostCSR: csr, WireGuard: wireguard(host),
		Agents: []authority.AgentRequest{{Name: agent, Labels: labels, CSR: agentCSR}}})
	if err != nil {
		w.t.Fatal(err)
	}
	cert := identity.TLSCertificate(key, e.HostChain)
	return w.dial(DialOptions{Server: w.address, Mesh: testMesh, Roots: w.authority.Roots(), Certificate: func() *tls.Certificate { return &cert }})
}

// rawClient is a TLS client that trusts anything: for requests that a Client would not make.
func rawClient(t *testing.T, cert *tls.Certificate) *http.Client {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13}}
	if cert != nil {
		transport.TLSClientConfig.Certificates = []tls.Certificate{*cert}
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func roots(t *testing.T, ders [][]byte) []*x509.Certificate {
	t.Helper()
	var out []*x509.Certificate
	for _, der := range ders {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, cert)
	}
	return out
}

func (w *world) certificate() *tls.Certificate { return w.cert.Load() }
