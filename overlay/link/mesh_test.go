package link

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bulkhead-mesh/bulkhead/overlay"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// authority signs certificates that prove a host by their common name.
type authority struct {
	certificate *x509.Certificate
	key         ed25519.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{certificate, private}
}

func (a *authority) issue(t testing.TB, host string) *tls.Certificate {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: host},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, public, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private}
}

// fleet is some hosts that know each other's addresses and one authority.
type fleet struct {
	t         testing.TB
	authority *authority

	mu        sync.Mutex
	revoked   map[string]bool
	addresses map[string][]netip.AddrPort
}

func newFleet(t testing.TB) *fleet {
	return &fleet{t: t, authority: newAuthority(t), revoked: map[string]bool{}, addresses: map[string][]netip.AddrPort{}}
}

func (f *fleet) verify(chain [][]byte) (string, error) {
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return "", err
	}
	if err := leaf.CheckSignatureFrom(f.authority.certificate); err != nil {
		return "", err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.revoked[leaf.Subject.CommonName] {
		return "", errors.New("revoked")
	}
	return leaf.Subject.CommonName, nil
}

func (f *fleet) candidates(host string) []netip.AddrPort {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.addresses[host]
}

func (f *fleet) announce(host string, addrs ...netip.AddrPort) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.addresses[host] = addrs
}

func (f *fleet) revoke(host string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.revoked[host] = true
}

// member is one link over a socket of its own.
type member struct {
	*Link
	name string
	addr netip.AddrPort
	stop func()

	mu        sync.Mutex
	datagrams []string // "from: text"
	connects  int
	paths     []netip.AddrPort
}

func loopback(t testing.TB) *net.UDPConn {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// start runs a host with a new certificate at a new address, which it announces.
func (f *fleet) start(name string) *member {
	f.t.Helper()
	conn := loopback(f.t)
	m := f.startOn(name, f.authority.issue(f.t, name), conn)
	f.announce(name, m.addr)
	return m
}

func (f *fleet) startOn(name string, certificate *tls.Certificate, conn net.PacketConn) *member {
	f.t.Helper()
	m := &member{name: name, addr: addrPort(conn.LocalAddr())}
	m.Link = New(Options{
		Conn:        conn,
		Certificate: func() *tls.Certificate { return certificate },
		Verify:      f.verify,
		Candidates:  f.candidates,
		OnPath:      m.onPath,
		OnConnect:   m.onConnect,
		Logger:      slog.New(slog.DiscardHandler),
	})
	m.OnDatagram(overlay.KindGossip, m.onDatagram)
	m.OnStream(overlay.KindPull, echo)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- m.Run(ctx) }()
	m.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			f.t.Errorf("run %s: %v", name, err)
		}
	})
	f.t.Cleanup(m.stop)
	until(f.t, name+" runs", func() bool { return m.spawn(func(context.Context) {}) })
	return m
}

func (m *member) onPath(_ string, addr netip.AddrPort) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.paths = append(m.paths, addr)
}

func (m *member) onConnect(string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.connects++
}

func (m *member) onDatagram(host string, payload []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.datagrams = append(m.datagrams, host+": "+string(payload))
}

func (m *member) has(datagram string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Contains(m.datagrams, datagram)
}

// sendUntil repeats a datagram, as gossip does, until it arrives.
func (m *member) sendUntil(t testing.TB, to *member, text string) {
	t.Helper()
	until(t, fmt.Sprintf("%s has %q of %s", to.name, text, m.name), func() bool {
		_ = m.Send(to.name, overlay.KindGossip, []byte(text))
		return to.has(m.name + ": " + text)
	})
}

func echo(_ context.Context, host string, s overlay.Stream) {
	buffer := make([]byte, 4096)
	_, _ = s.Write([]byte(host + " says "))
	for {
		n, err := s.Read(buffer)
		_, _ = s.Write(buffer[:n])
		if err != nil {
			return
		}
	}
}

// until polls a condition for at most twenty seconds.
func until(t testing.TB, what string, condition func() bool) {
	t.Helper()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	deadline := time.After(20 * time.Second)
	for !condition() {
		select {
		case <-ticker.C:
		case <-deadline:
			t.Fatalf("not so after twenty seconds: %s", what)
		}
	}
}

func mustFail(t testing.TB, err error, want string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got error %v, want one with %q", err, want)
	}
}
