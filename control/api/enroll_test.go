package api

import (
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/bulkhead-mesh/bulkhead/control/authority"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

func enrollRequest(t *testing.T, host string) authority.EnrollRequest {
	t.Helper()
	_, csr := newCSR(t, identity.KindHost, host)
	return authority.EnrollRequest{Host: host, HostCSR: csr, WireGuard: wireguard(host)}
}

func TestEnrollGivesAllThatAHostNeeds(t *testing.T) {
	w := newWorld(t)
	e, err := Enroll(t.Context(), w.token(authority.TokenRequest{}), enrollRequest(t, "h2"))
	if err != nil {
		t.Fatal(err)
	}
	trust := &identity.Trust{Mesh: testMesh, Roots: roots(t, e.Roots)}
	cert, err := trust.Verify(e.HostChain, identity.KindHost, time.Now())
	if err != nil || cert.Name != "h2" {
		t.Errorf("host certificate = %v, %v", cert, err)
	}
	if len(e.Records) != 1 || len(e.Policy) == 0 || len(e.Prefixes) != 2 {
		t.Errorf("records %d, policy %d bytes, prefixes %v", len(e.Records), len(e.Policy), e.Prefixes)
	}
}

// Nothing may reach a server that has not proven to be control of the token's mesh.
func TestEnrollSendsNothingToAStranger(t *testing.T) {
	ours, theirs := newWorld(t), newWorld(t)
	token := ours.token(authority.TokenRequest{})
	token.Addresses = []string{theirs.address}
	_, err := Enroll(t.Context(), token, enrollRequest(t, "h2"))
	if !errors.Is(err, ErrForeign) || errors.Is(err, ErrUnreachable) {
		t.Errorf("Enroll = %v, want ErrForeign", err)
	}
	if n := theirs.requests.Load(); n != 0 {
		t.Errorf("the stranger got %d requests", n)
	}
}

// A host of the right mesh without the control role, even with the right root, is not control.
func TestEnrollRefusesAHostWithoutControl(t *testing.T) {
	w := newWorld(t)
	key, csr := newCSR(t, identity.KindHost, "h2")
	e, err := Enroll(t.Context(), w.token(authority.TokenRequest{}), authority.EnrollRequest{Host: "h2", HostCSR: csr, WireGuard: wireguard("h2")})
	if err != nil {
		t.Fatal(err)
	}
	cert := identity.TLSCertificate(key, e.HostChain)
	w.cert.Store(&cert)
	before := w.requests.Load()
	_, err = Enroll(t.Context(), w.token(authority.TokenRequest{}), enrollRequest(t, "h3"))
	if !errors.Is(err, ErrForeign) || w.requests.Load() != before {
		t.Errorf("Enroll = %v after %d requests, want ErrForeign and none", err, w.requests.Load()-before)
	}
}

func TestEnrollNamesAWrongClock(t *testing.T) {
	w := newWorld(t)
	for _, off := range []time.Duration{-48 * time.Hour, 48 * time.Hour} {
		_, err := enroll(t.Context(), w.token(authority.TokenRequest{}), enrollRequest(t, "h2"), func() time.Time { return time.Now().Add(off) })
		clock, ok := errors.AsType[*ClockError](err)
		if !ok || clock.NotBefore.IsZero() || clock.NotAfter.Before(clock.NotBefore) {
			t.Errorf("Enroll with a clock off by %v = %v, want a ClockError", off, err)
		}
	}
	// Off by less than a certificate's life, only control can tell.
	_, err := enroll(t.Context(), w.token(authority.TokenRequest{}), enrollRequest(t, "h2"), func() time.Time { return time.Now().Add(time.Hour) })
	if p, ok := errors.AsType[*Problem](err); !ok || p.Code != authority.CodeClockSkew {
		t.Errorf("Enroll with a clock an hour off = %v, want %s", err, authority.CodeClockSkew)
	}
}

func TestEnrollTriesEachAddress(t *testing.T) {
	w := newWorld(t)
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	away := closed.Addr().String()
	closed.Close()
	token := w.token(authority.TokenRequest{})
	token.Addresses = []string{away, w.address}
	if _, err := Enroll(t.Context(), token, enrollRequest(t, "h2")); err != nil {
		t.Errorf("Enroll with one address away = %v", err)
	}
	token.Addresses = []string{away}
	if _, err := Enroll(t.Context(), token, enrollRequest(t, "h3")); !errors.Is(err, ErrUnreachable) {
		t.Errorf("Enroll with all addresses away = %v, want ErrUnreachable", err)
	}
}

func TestEnrollRefusalsAreNamed(t *testing.T) {
	w := newWorld(t)
	used := w.token(authority.TokenRequest{Uses: 1})
	if _, err := Enroll(t.Context(), used, enrollRequest(t, "h2")); err != nil {
		t.Fatal(err)
	}
	unknown := w.token(authority.TokenRequest{})
	if err := w.authority.RevokeToken(root, unknown.ID); err != nil {
		t.Fatal(err)
	}
	outside := enrollRequest(t, "h4")
	_, csr := newCSR(t, identity.KindAgent, "spy")
	outside.Agents = []authority.AgentRequest{{Name: "spy", Labels: segment.Labels{"function": "spy"}, CSR: csr}}
	for _, test := range []struct {
		name    string
		token   authority.Token
		request authority.EnrollRequest
		code    string
	}{
		{"used up", used, enrollRequest(t, "h3"), authority.CodeTokenUsed},
		{"unknown", unknown, enrollRequest(t, "h3"), authority.CodeTokenUnknown},
		{"name taken", w.token(authority.TokenRequest{}), enrollRequest(t, "h2"), authority.CodeNameTaken},
		{"outside the grant", w.token(authority.TokenRequest{}), outside, authority.CodeLabelOutsideGrant},
	} {
		_, err := Enroll(t.Context(), test.token, test.request)
		if p, ok := errors.AsType[*Problem](err); !ok || p.Code != test.code || p.Status < 400 {
			t.Errorf("%s: Enroll = %v, want code %s", test.name, err, test.code)
		}
	}
}

func TestRenewNeedsTheHostsOwnCertificate(t *testing.T) {
	w := newWorld(t)
	host := w.join("h2", "plan1", segment.Labels{"function": "plan"})
	_, csr := newCSR(t, identity.KindHost, "h2")
	e, err := host.Renew(t.Context(), authority.RenewRequest{HostCSR: csr})
	if err != nil || len(e.HostChain) == 0 {
		t.Fatalf("Renew = %v, %v", e, err)
	}
	_, other := newCSR(t, identity.KindHost, "h1")
	if _, err := host.Renew(t.Context(), authority.RenewRequest{HostCSR: other}); err == nil {
		t.Error("h2 renewed as h1")
	}
	_, err = w.operator("alice", authority.RoleAdmin).Renew(t.Context(), authority.RenewRequest{HostCSR: csr})
	wantCode(t, err, authority.CodeDenied)
	if _, err := host.Hosts(t.Context()); err == nil {
		t.Error("a host without control read the API")
	}
}

func TestServerPresentsItsRoot(t *testing.T) {
	w := newWorld(t)
	conn, err := tls.Dial("tcp", w.address, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	state := conn.ConnectionState()
	last := state.PeerCertificates[len(state.PeerCertificates)-1]
	if identity.Fingerprint(last) != identity.Fingerprint(w.authority.Roots()[0]) || state.Version != tls.VersionTLS13 {
		t.Errorf("last certificate %v, TLS %x", last.Subject, state.Version)
	}
	old := &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}
	if conn, err := tls.Dial("tcp", w.address, old); err == nil {
		conn.Close()
		t.Error("TLS 1.2 was accepted")
	}
}

func wantCode(t *testing.T, err error, code string) {
	t.Helper()
	if p, ok := errors.AsType[*Problem](err); !ok || p.Code != code {
		t.Errorf("error = %v, want code %s", err, code)
	}
}

func wantStatus(t *testing.T, resp *http.Response, err error, status int) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != status {
		t.Errorf("%s %s = %s, want %d", resp.Request.Method, resp.Request.URL.Path, resp.Status, status)
	}
}
