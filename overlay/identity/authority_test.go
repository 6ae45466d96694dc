package identity_test

import (
	"crypto/x509"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity/identitytest"
)

func TestNewRootRefusesMeshName(t *testing.T) {
	for _, name := range []string{"", "Lab.test", "lab/test", "lab..test", "spiffe://lab.test"} {
		if _, err := identity.NewRoot(name, now); err == nil {
			t.Errorf("%q was taken", name)
		}
	}
}

func TestOnlyARootMakesIssuingAuthorities(t *testing.T) {
	ca := identitytest.New(t, mesh)
	if _, err := ca.Issuing.NewIssuing(now); err == nil {
		t.Error("an issuing authority made another")
	}
	for _, life := range []time.Duration{0, -time.Hour, 10*365*24*time.Hour + time.Second} {
		if _, err := ca.Root.NewIssuingFor(life, now); err == nil {
			t.Errorf("an issuing authority was made that lives %s", life)
		}
	}
}

// A loaded authority goes on as the one that was stored, and a loaded root renews the issuing authority.
func TestLoad(t *testing.T) {
	ca := identitytest.New(t, mesh)
	trust, host := ca.Trust(), identity.Request{
		ID: identity.ID{Mesh: mesh, Kind: identity.KindHost, Name: "h1"}, PublicKey: newKey(t).Public(), Life: time.Hour,
		Claims: identity.Claims{WireGuard: identitytest.WireGuard("h1")},
	}
	issuing, err := identity.LoadIssuing(ca.Issuing.Chain(), ca.Issuing.Key())
	if err != nil {
		t.Fatal(err)
	}
	root, err := identity.LoadRoot(ca.Root.Certificate().Raw, ca.Root.Key())
	if err != nil {
		t.Fatal(err)
	}
	later := now.Add(4 * 365 * 24 * time.Hour)
	renewed, err := root.NewIssuing(later)
	if err != nil {
		t.Fatal(err)
	}
	for _, by := range []*identity.Authority{issuing, renewed} {
		chain, err := by.Issue(host, later)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := trust.Verify(chain, identity.KindHost, later); err != nil {
			t.Error(err)
		}
	}
}

func TestLoadRefuses(t *testing.T) {
	ca, other := identitytest.New(t, mesh), identitytest.New(t, mesh)
	issuing, root, host := ca.Issuing.Chain(), ca.Root.Certificate().Raw, ca.Host("h1")
	for name, err := range map[string]error{
		"issuing without chain":   second(identity.LoadIssuing(nil, ca.Issuing.Key())),
		"issuing with long chain": second(identity.LoadIssuing(append(issuing, root), ca.Issuing.Key())),
		"issuing with other key":  second(identity.LoadIssuing(issuing, other.Issuing.Key())),
		"issuing without key":     second(identity.LoadIssuing(issuing, nil)),
		"issuing that is a root":  second(identity.LoadIssuing([][]byte{root}, ca.Root.Key())),
		"issuing that is a leaf":  second(identity.LoadIssuing(host.Chain[:1], host.Key)),
		"issuing that is none":    second(identity.LoadIssuing([][]byte{{1, 2}}, ca.Issuing.Key())),
		"root with other key":     second(identity.LoadRoot(root, other.Root.Key())),
		"root that is issuing":    second(identity.LoadRoot(issuing[0], ca.Issuing.Key())),
	} {
		if !errors.Is(err, identity.ErrMalformed) {
			t.Errorf("%s: got %v, want ErrMalformed", name, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func TestIssueRefuses(t *testing.T) {
	ca := identitytest.New(t, mesh)
	key := newKey(t).Public()
	id := func(kind identity.Kind, name string) identity.ID {
		return identity.ID{Mesh: mesh, Kind: kind, Name: name}
	}
	sound := identity.Request{
		ID: id(identity.KindHost, "h1"), Claims: identity.Claims{WireGuard: identitytest.WireGuard("h1")}, PublicKey: key, Life: time.Hour,
	}
	for name, tt := range map[string]struct {
		change func(r *identity.Request)
		by     *identity.Authority // nil: issuing
		at     time.Duration       // from now
	}{
		"another mesh":                 {change: func(r *identity.Request) { r.ID.Mesh = "other.test" }},
		"a name with a path":           {change: func(r *identity.Request) { r.ID.Name = "h1/../h2" }},
		"an unknown kind":              {change: func(r *identity.Request) { r.ID.Kind = "root" }},
		"a host, by the root":          {by: ca.Root, change: func(*identity.Request) {}},
		"a policy, by issuing":         {change: func(r *identity.Request) { r.ID = id(identity.KindPolicy, "1") }},
		"no key":                       {change: func(r *identity.Request) { r.PublicKey = nil }},
		"no life":                      {change: func(r *identity.Request) { r.Life = 0 }},
		"more life than issuer":        {change: func(r *identity.Request) { r.Life = identity.IssuingLife + time.Second }},
		"before the issuer":            {change: func(*identity.Request) {}, at: -time.Second},
		"a host with a role":           {change: func(r *identity.Request) { r.Claims.Role = "admin" }},
		"a host without WireGuard key": {change: func(r *identity.Request) { r.Claims.WireGuard = [32]byte{} }},
		"an agent with a WireGuard key": {change: func(r *identity.Request) {
			r.ID, r.Addresses, r.Claims.Host = id(identity.KindAgent, "scout"), []netip.Addr{addr4}, "h1"
		}},
		"an operator with a WireGuard key": {change: func(r *identity.Request) {
			r.ID, r.Claims.Role = id(identity.KindOperator, "ann"), "admin"
		}},
		"an agent of no host": {change: func(r *identity.Request) {
			r.Claims.WireGuard = [32]byte{}
			r.ID, r.Addresses = id(identity.KindAgent, "scout"), []netip.Addr{addr4}
		}},
		"an agent nowhere": {change: func(r *identity.Request) {
			r.ID, r.Claims = id(identity.KindAgent, "scout"), identity.Claims{Host: "h1"}
		}},
		"an issue after its end": {change: func(r *identity.Request) {
			r.Claims.Issued = now.Add(2 * time.Hour)
		}},
		"claims of 16 KiB": {change: func(r *identity.Request) {
			r.ID, r.Addresses = id(identity.KindAgent, "scout"), []netip.Addr{addr4}
			r.Claims = identity.Claims{Host: "h1", Labels: map[string]string{"function": strings.Repeat("x", 16<<10)}}
		}},
	} {
		by := tt.by
		if by == nil {
			by = ca.Issuing
		}
		r := sound
		tt.change(&r)
		if _, err := by.Issue(r, now.Add(tt.at)); err == nil {
			t.Errorf("%s was certified", name)
		}
	}
	if _, err := ca.Issuing.Issue(sound, now); err != nil {
		t.Errorf("the sound request was refused: %v", err)
	}
}

// Two meshes of one name do not trust each other.
func TestFingerprintTellsRootsApart(t *testing.T) {
	a, b := identitytest.New(t, mesh), identitytest.New(t, mesh)
	if identity.Fingerprint(a.Root.Certificate()) == identity.Fingerprint(b.Root.Certificate()) {
		t.Error("two roots have one fingerprint")
	}
	if _, err := a.Trust().Verify(b.Host("h1").Chain, identity.KindHost, now); !errors.Is(err, identity.ErrForeign) {
		t.Errorf("got %v, want ErrForeign", err)
	}
	both := a.Trust()
	both.Roots = append([]*x509.Certificate{b.Root.Certificate()}, both.Roots...)
	for _, ca := range []*identitytest.CA{a, b} {
		if _, err := both.Verify(ca.Host("h1").Chain, identity.KindHost, now); err != nil {
			t.Errorf("while a root is replaced both count: %v", err)
		}
	}
}
