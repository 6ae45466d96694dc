package authority_test

import (
	"crypto/x509"
	"errors"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-mesh/bulkhead/control/authority"
	"github.com/bulkhead-mesh/bulkhead/overlay"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity/identitytest"
	"github.com/bulkhead-mesh/bulkhead/overlay/overlaytest"
	"github.com/bulkhead-mesh/bulkhead/overlay/signed"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

const mesh = "lab.test"

var (
	admin    = authority.Principal{Name: "local/root", Role: authority.RoleAdmin, From: "socket"}
	operator = authority.Principal{Name: "operator/alice", Role: authority.RoleOperator, From: "192.0.2.7:4242"}
	viewer   = authority.Principal{Name: "operator/victor", Role: authority.RoleViewer, From: "192.0.2.8:4242"}
	start    = time.Date(2026, 3, 1, 12, 0, 0, 250_000_000, time.UTC)
)

// world is a founded mesh with a clock of its own.
type world struct {
	*authority.Authority
	t        testing.TB
	store    *overlaytest.Store
	now      time.Time
	auditAt  string
	kept     uint64
	founding *authority.Founding
}

func newWorld(t testing.TB) *world {
	t.Helper()
	return newWorldIn(t, netip.Prefix{})
}

func newWorldIn(t testing.TB, range4 netip.Prefix) *world {
	t.Helper()
	w := &world{t: t, store: new(overlaytest.Store), now: start, auditAt: filepath.Join(t.TempDir(), "audit.jsonl")}
	var err error
	w.founding, err = authority.Init(w.store, authority.InitOptions{Mesh: mesh, Host: "h1", Range4: range4, Now: w.now})
	if err != nil {
		t.Fatal(err)
	}
	w.open()
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

func (w *world) open() {
	w.t.Helper()
	a, err := authority.Open(w.store, w.options())
	if err != nil {
		w.t.Fatal(err)
	}
	w.Authority = a
}

func (w *world) options() authority.Options {
	return authority.Options{AuditPath: w.auditAt, AuditKept: w.kept, Now: func() time.Time { return w.now },
		ControlAddrs: func() []string { return []string{"192.0.2.1:7443", "[2001:db8::1]:7443"} }}
}

// reopen is a restart of the program.
func (w *world) reopen() {
	w.t.Helper()
	if err := w.Close(); err != nil {
		w.t.Fatal(err)
	}
	w.open()
}

func (w *world) token(r authority.TokenRequest) authority.Token {
	w.t.Helper()
	created, err := w.CreateToken(admin, r)
	if err != nil {
		w.t.Fatal(err)
	}
	token, err := authority.ParseToken(created.Token)
	if err != nil {
		w.t.Fatal(err)
	}
	return token
}

var grant = segment.Labels{"function": "plan", "sensitivity": "internal"}

// wireguard is the public key of a host.
func wireguard(host string) []byte {
	key := identitytest.WireGuard(host)
	return key[:]
}

// joining is a request that Enroll takes.
func (w *world) joining(token authority.Token, host string, agents ...string) authority.EnrollRequest {
	w.t.Helper()
	r := authority.EnrollRequest{TokenID: token.ID, Secret: token.Secret, Host: host, HostCSR: csr(w.t, identity.KindHost, host), WireGuard: wireguard(host), Time: w.now}
	for _, name := range agents {
		r.Agents = append(r.Agents, authority.AgentRequest{Name: name, Labels: grant, CSR: csr(w.t, identity.KindAgent, name)})
	}
	return r
}

// join enrols a host with a token of its own.
func (w *world) join(host string, agents ...string) *authority.Enrollment {
	w.t.Helper()
	e, err := w.Enroll("192.0.2.9:5", w.joining(w.token(authority.TokenRequest{Grant: grant}), host, agents...))
	if err != nil {
		w.t.Fatal(err)
	}
	return e
}

func (w *world) renewing(host string, agents ...string) authority.RenewRequest {
	r := authority.RenewRequest{HostCSR: csr(w.t, identity.KindHost, host), From: "192.0.2.9:5"}
	for _, name := range agents {
		r.Agents = append(r.Agents, authority.AgentRequest{Name: name, CSR: csr(w.t, identity.KindAgent, name)})
	}
	return r
}

// verify judges a chain as a host with the current policy does.
func (w *world) verify(chain [][]byte, kind identity.Kind) (*identity.Certificate, error) {
	return w.Trust().Verify(chain, kind, w.now)
}

func (w *world) mustVerify(chain [][]byte, kind identity.Kind) *identity.Certificate {
	w.t.Helper()
	c, err := w.verify(chain, kind)
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

// dump is everything the store holds but the audit record.
func (w *world) dump() map[string]string {
	w.t.Helper()
	all := map[string]string{}
	err := w.store.View(func(tx overlay.Tx) error {
		for _, bucket := range []string{"authority-hosts", "authority-agents", "authority-operators", "authority-tokens", "authority-policies", "authority-versions"} {
			err := tx.Each(bucket, func(key string, value []byte) error {
				all[bucket+"/"+key] = string(value)
				return nil
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return all
}

// audited are the newest entries in short, oldest first.
func (w *world) audited(n int) []string {
	w.t.Helper()
	entries, err := w.Audit(n)
	if err != nil {
		w.t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, strings.Join([]string{e.Who, e.From, e.Action, e.Target, e.Result}, " "))
	}
	return all
}

func csr(t testing.TB, kind identity.Kind, name string) []byte {
	t.Helper()
	return csrOf(t, identity.ID{Mesh: mesh, Kind: kind, Name: name})
}

func csrOf(t testing.TB, id identity.ID) []byte {
	t.Helper()
	key, err := identity.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	der, err := identity.NewCSR(key, id)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// wantCode fails unless err is a refusal with this code that says what to do.
func wantCode(t testing.TB, err error, code authority.Code) *authority.Error {
	t.Helper()
	refusal, ok := errors.AsType[*authority.Error](err)
	if !ok || refusal.Code != code {
		t.Fatalf("got error %v, want code %s", err, code)
	}
	if refusal.Message == "" || refusal.Fix == "" && len(refusal.Problems) == 0 {
		t.Errorf("refusal %s does not say what is wrong and how to mend it: %+v", code, refusal)
	}
	return refusal
}

func TestInitFoundsAMeshThatDeniesEverything(t *testing.T) {
	w := newWorld(t)
	p := w.Policy()
	if p.Version != 1 || len(p.Parsed.Rules) != 0 || len(p.Parsed.Segments) != 0 || len(p.Revocations) != 0 {
		t.Errorf("policy at the start: %+v", p.Policy)
	}
	if diff := cmp.Diff([]string{"public", "internal", "confidential", "restricted"}, p.Parsed.Scale()); diff != "" {
		t.Error(diff)
	}
	trust := &identity.Trust{Mesh: mesh, Roots: []*x509.Certificate{w.founding.Root}}
	opened, err := signed.OpenPolicy(w.founding.Bundle, trust, w.now)
	if err != nil || opened.Digest != p.Digest {
		t.Errorf("the founding bundle is not the current policy: %v", err)
	}
	if diff := cmp.Diff([]string{"local/init host/h1 init mesh/lab.test done"}, w.audited(10)); diff != "" {
		t.Error(diff)
	}
}

func TestInitRefusesASecondMesh(t *testing.T) {
	w := newWorld(t)
	before := w.dump()
	_, err := authority.Init(w.store, authority.InitOptions{Mesh: "other.test", Host: "h1", Now: w.now})
	if !errors.Is(err, authority.ErrExists) {
		t.Errorf("got %v, want ErrExists", err)
	}
	if diff := cmp.Diff(before, w.dump()); diff != "" {
		t.Error(diff)
	}
}

func TestInitOptions(t *testing.T) {
	for name, o := range map[string]authority.InitOptions{
		"no mesh":       {Host: "h1"},
		"mesh":          {Mesh: "Lab Test", Host: "h1"},
		"no host":       {Mesh: mesh},
		"IPv6 range":    {Mesh: mesh, Host: "h1", Range4: netip.MustParsePrefix("fd00::/48")},
		"tiny range":    {Mesh: mesh, Host: "h1", Range4: netip.MustParsePrefix("10.0.0.0/30")},
		"huge range":    {Mesh: mesh, Host: "h1", Range4: netip.MustParsePrefix("0.0.0.0/0")},
		"unmasked base": {Mesh: mesh, Host: "h1", Range4: netip.MustParsePrefix("10.201.7.1/16")},
	} {
		t.Run(name, func(t *testing.T) {
			o.Now = start
			store := new(overlaytest.Store)
			_, err := authority.Init(store, o)
			wantCode(t, err, authority.CodeInvalid)
			if _, err := authority.Open(store, authority.Options{AuditPath: filepath.Join(t.TempDir(), "audit")}); !errors.Is(err, authority.ErrNoMesh) {
				t.Errorf("a refused init left a mesh: %v", err)
			}
		})
	}
}

func TestOpenOfAnEmptyStore(t *testing.T) {
	_, err := authority.Open(new(overlaytest.Store), authority.Options{AuditPath: filepath.Join(t.TempDir(), "audit")})
	if !errors.Is(err, authority.ErrNoMesh) {
		t.Errorf("got %v, want ErrNoMesh", err)
	}
}

func TestTheRootKeyIsNotInTheStore(t *testing.T) {
	w := newWorld(t)
	pem, err := identity.MarshalKey(w.founding.RootKey)
	if err != nil {
		t.Fatal(err)
	}
	body := strings.Split(string(pem), "\n")[1]
	err = w.store.View(func(tx overlay.Tx) error {
		return tx.Each("authority", func(key string, value []byte) error {
			if strings.Contains(string(value), body) {
				t.Errorf("the root key is in row %s", key)
			}
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestRoles(t *testing.T) {
	roles := []authority.Role{"", "root", authority.RoleViewer, authority.RoleOperator, authority.RoleAdmin}
	for i, has := range roles {
		for j, need := range roles {
			if got, want := has.Allows(need), i >= j && j >= 2; got != want {
				t.Errorf("%q allows %q: %v, want %v", has, need, got, want)
			}
		}
	}
}

// Every change, with the least role that may make it.
func TestEachChangeNeedsItsRole(t *testing.T) {
	w := newWorld(t)
	e := w.join("h2", "a2")
	if _, err := w.Declare(w.mustVerify(e.HostChain, identity.KindHost), declaring(t, segment.Labels{"function": "spy"}, "a3")); err != nil {
		t.Fatal(err)
	}
	key, err := identity.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	changes := []struct {
		name string
		need authority.Role
		do   func(p authority.Principal) error
	}{
		{"join token", authority.RoleOperator, func(p authority.Principal) error { _, err := w.CreateToken(p, authority.TokenRequest{}); return err }},
		{"control token", authority.RoleAdmin, func(p authority.Principal) error {
			_, err := w.CreateToken(p, authority.TokenRequest{Control: true})
			return err
		}},
		{"API token", authority.RoleAdmin, func(p authority.Principal) error {
			_, err := w.CreateToken(p, authority.TokenRequest{Role: authority.RoleViewer})
			return err
		}},
		{"revoke token", authority.RoleOperator, func(p authority.Principal) error {
			return w.RevokeToken(p, w.token(authority.TokenRequest{}).ID)
		}},
		{"revoke control token", authority.RoleAdmin, func(p authority.Principal) error {
			return w.RevokeToken(p, w.token(authority.TokenRequest{Control: true}).ID)
		}},
		{"put", authority.RoleOperator, func(p authority.Principal) error {
			_, err := w.PutPolicy(p, 0, "sensitivity: [low, internal]\n")
			return err
		}},
		{"rollback", authority.RoleOperator, func(p authority.Principal) error { _, err := w.Rollback(p, 1); return err }},
		{"create segment", authority.RoleOperator, func(p authority.Principal) error { _, err := w.CreateSegment(p, 0, planners(t)); return err }},
		{"delete segment", authority.RoleOperator, func(p authority.Principal) error { _, err := w.DeleteSegment(p, 0, "planners"); return err }},
		{"relabel", authority.RoleOperator, func(p authority.Principal) error { _, err := w.Relabel(p, "a2", nil, 0); return err }},
		{"approve", authority.RoleOperator, func(p authority.Principal) error {
			_, err := w.Approve(p, "a3", authority.ApproveRequest{}, 0)
			return err
		}},
		{"revoke agent", authority.RoleOperator, func(p authority.Principal) error { _, err := w.RevokeAgent(p, "a2", ""); return err }},
		{"revoke host", authority.RoleAdmin, func(p authority.Principal) error { _, err := w.RevokeHost(p, "h2", ""); return err }},
		{"issue operator", authority.RoleAdmin, func(p authority.Principal) error {
			_, err := w.IssueOperator(p, "bob", authority.RoleViewer, key.Public(), time.Hour)
			return err
		}},
		{"revoke operator", authority.RoleAdmin, func(p authority.Principal) error { _, err := w.RevokeOperator(p, "bob", ""); return err }},
	}
	for _, c := range changes {
		t.Run(c.name, func(t *testing.T) {
			for _, p := range []authority.Principal{{Name: "nobody"}, viewer, operator, admin} {
				if !p.Role.Allows(c.need) {
					w.now = w.now.Add(time.Minute) // so that no refusal is too many
					before := w.Policy().Version
					refusal := wantCode(t, c.do(p), authority.CodeDenied)
					if w.Policy().Version != before {
						t.Error("a denied change made a version")
					}
					last := w.audited(1)[0]
					if !strings.HasPrefix(last, p.Name+" "+p.From) || !strings.HasSuffix(last, refusal.Code) {
						t.Errorf("a denied attempt is not audited: %s", last)
					}
					continue
				}
				if err := c.do(p); err != nil {
					t.Errorf("%s: %v", p.Role, err)
				}
				break
			}
		})
	}
}

func planners(t testing.TB) segment.Segment {
	t.Helper()
	p, err := segment.Parse([]byte("segments:\n  - name: planners\n    match: {function: plan}\n"))
	if err != nil {
		t.Fatal(err)
	}
	return p.Segments[0]
}
