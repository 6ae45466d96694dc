package identity_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity/identitytest"
)

var (
	addr4 = netip.MustParseAddr("10.201.0.3")
	addr6 = netip.MustParseAddr("fd12:3456:789a::3")
)

func TestVerifyReadsWhatWasIssued(t *testing.T) {
	ca := identitytest.New(t, mesh)
	labels := map[string]string{"function": "research", "sensitivity": "internal"}
	until := now.Add(identitytest.Life)
	for _, tt := range []struct {
		got  identitytest.Credential
		want identity.Certificate
	}{
		{ca.Host("h1"), identity.Certificate{ID: identity.ID{Mesh: mesh, Kind: identity.KindHost, Name: "h1"}, Claims: identity.Claims{Issued: now, WireGuard: identitytest.WireGuard("h1")}}},
		{ca.Control("h1"), identity.Certificate{ID: identity.ID{Mesh: mesh, Kind: identity.KindHost, Name: "h1"}, Claims: identity.Claims{Issued: now, Control: true, WireGuard: identitytest.WireGuard("h1")}}},
		{ca.Agent("scout", "h2", labels, addr6, addr4), identity.Certificate{
			ID: identity.ID{Mesh: mesh, Kind: identity.KindAgent, Name: "scout"}, Claims: identity.Claims{Issued: now, Host: "h2", Labels: labels},
			Addresses: []netip.Addr{addr4, addr6},
		}},
		{ca.Operator("ann", "admin"), identity.Certificate{ID: identity.ID{Mesh: mesh, Kind: identity.KindOperator, Name: "ann"}, Claims: identity.Claims{Issued: now, Role: "admin"}}},
		{ca.Signer(), identity.Certificate{ID: identity.ID{Mesh: mesh, Kind: identity.KindPolicy, Name: "1"}, Claims: identity.Claims{Issued: now}}},
	} {
		tt.want.NotBefore, tt.want.NotAfter = now.Add(-identity.Skew), until
		tt.want.PublicKey, tt.want.Chain = tt.got.Key.Public(), tt.got.Chain
		got, err := ca.Trust().Verify(tt.got.Chain, tt.want.Kind, now)
		if err != nil {
			t.Errorf("%s: %v", tt.want.ID, err)
			continue
		}
		if diff := cmp.Diff(&tt.want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.want.ID, diff)
		}
	}
}

func TestRenewAtIsTwoThirdsOfTheLife(t *testing.T) {
	c := &identity.Certificate{NotBefore: now, NotAfter: now.Add(24 * time.Hour)}
	if got := c.RenewAt(); !got.Equal(now.Add(16 * time.Hour)) {
		t.Errorf("got %s", got)
	}
}

// What is sent along beside leaf and issuing authority neither hurts nor stays.
func TestVerifyDropsNeedlessCertificates(t *testing.T) {
	other := identitytest.New(t, "other.test")
	for name, extra := range map[string]func(root []byte) []byte{
		"root":          func(root []byte) []byte { return root },
		"foreign root":  func([]byte) []byte { return other.Root.Certificate().Raw },
		"foreign agent": func([]byte) []byte { return other.Host("h1").Chain[0] },
	} {
		ca := identitytest.New(t, mesh)
		chain := ca.Host("h1").Chain
		got, err := ca.Trust().Verify(append(slices.Clone(chain), extra(ca.Root.Certificate().Raw)), identity.KindHost, now)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if diff := cmp.Diff(chain, got.Chain); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// A certificate that is sound but for one thing. Each is signed by an authority that the verifier trusts.
func TestVerifyRefusesLeaf(t *testing.T) {
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	agent, wireguard := identity.Claims{Issued: now, Host: "h1"}, identitytest.WireGuard("h1")
	for name, tt := range map[string]struct {
		change func(t *testing.T, f *forgery)
		kind   identity.Kind // wanted; empty is host
		want   error         // nil is ErrMalformed
	}{
		"two identities": {change: func(t *testing.T, f *forgery) {
			f.leaf.URIs = uris(t, "spiffe://lab.test/host/h1", "spiffe://lab.test/host/h2")
		}},
		"no identity":     {change: func(_ *testing.T, f *forgery) { f.leaf.URIs, f.leaf.DNSNames = nil, []string{"h1.lab.test"} }},
		"not an identity": {change: func(t *testing.T, f *forgery) { f.leaf.URIs = uris(t, "https://lab.test/host/h1") }},
		"deeper path":     {change: func(t *testing.T, f *forgery) { f.leaf.URIs = uris(t, "spiffe://lab.test/host/h1/x") }},
		"escaped name":    {change: func(t *testing.T, f *forgery) { f.leaf.URIs = uris(t, "spiffe://lab.test/host/h%31") }},
		"query":           {change: func(t *testing.T, f *forgery) { f.leaf.URIs = uris(t, "spiffe://lab.test/host/h1?x") }},
		"port":            {change: func(t *testing.T, f *forgery) { f.leaf.URIs = uris(t, "spiffe://lab.test:1/host/h1") }},
		"unknown kind":    {change: func(t *testing.T, f *forgery) { f.leaf.URIs = uris(t, "spiffe://lab.test/root/h1") }},
		"other kind":      {kind: identity.KindOperator, change: func(*testing.T, *forgery) {}, want: identity.ErrForeign},
		"policy by issuing": {kind: identity.KindPolicy, change: func(t *testing.T, f *forgery) {
			f.leaf.URIs, f.leaf.ExtKeyUsage = uris(t, "spiffe://lab.test/policy/1"), nil
			f.claim(t, identity.Claims{Issued: now})
		}, want: identity.ErrForeign},
		"other mesh":      {change: func(t *testing.T, f *forgery) { f.leaf.URIs = uris(t, "spiffe://other.test/host/h1") }, want: identity.ErrForeign},
		"mesh below ours": {change: func(t *testing.T, f *forgery) { f.leaf.URIs = uris(t, "spiffe://x.lab.test/host/h1") }, want: identity.ErrForeign},
		"authority":       {change: func(_ *testing.T, f *forgery) { f.leaf.IsCA = true }},
		"may sign": {change: func(_ *testing.T, f *forgery) {
			f.leaf.KeyUsage |= x509.KeyUsageCertSign
		}},
		"may not sign messages": {change: func(_ *testing.T, f *forgery) { f.leaf.KeyUsage = x509.KeyUsageKeyAgreement }},
		"client only":           {change: func(_ *testing.T, f *forgery) { f.leaf.ExtKeyUsage = f.leaf.ExtKeyUsage[1:] }},
		"any usage":             {change: func(_ *testing.T, f *forgery) { f.leaf.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} }},
		"no usage":              {change: func(_ *testing.T, f *forgery) { f.leaf.ExtKeyUsage = nil }},
		"own usage":             {change: func(_ *testing.T, f *forgery) { f.leaf.UnknownExtKeyUsage = []asn1.ObjectIdentifier{{1, 2, 3}} }},
		"P-256 key":             {change: func(_ *testing.T, f *forgery) { f.leafKey = &p256.PublicKey }},
		"critical extension": {want: identity.ErrForeign, change: func(_ *testing.T, f *forgery) {
			f.leaf.ExtraExtensions = append(f.leaf.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true})
		}},
		"16 KiB": {change: func(_ *testing.T, f *forgery) {
			f.leaf.ExtraExtensions = append(f.leaf.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3}, Value: make([]byte, 16<<10)})
		}},
		"no claims":         {change: func(_ *testing.T, f *forgery) { f.leaf.ExtraExtensions = nil }},
		"claims of 0 bytes": {change: func(_ *testing.T, f *forgery) { f.claimDER(nil) }},
		"issued before it": {change: func(t *testing.T, f *forgery) {
			f.claim(t, identity.Claims{Issued: now.Add(-time.Hour), WireGuard: wireguard})
		}},
		"issued after it": {change: func(t *testing.T, f *forgery) {
			f.claim(t, identity.Claims{Issued: now.Add(25 * time.Hour), WireGuard: wireguard})
		}},
		"host with a host": {change: func(t *testing.T, f *forgery) {
			f.claim(t, identity.Claims{Issued: now, Host: "h1", WireGuard: wireguard})
		}},
		"host with a role": {change: func(t *testing.T, f *forgery) {
			f.claim(t, identity.Claims{Issued: now, Role: "admin", WireGuard: wireguard})
		}},
		"host with labels": {change: func(t *testing.T, f *forgery) {
			f.claim(t, identity.Claims{Issued: now, Labels: map[string]string{"a": "b"}, WireGuard: wireguard})
		}},
		"host without WireGuard key": {change: func(t *testing.T, f *forgery) { f.claim(t, identity.Claims{Issued: now}) }},
		"agent with a WireGuard key": {kind: identity.KindAgent, change: func(t *testing.T, f *forgery) {
			f.agent(t, identity.Claims{Issued: now, Host: "h1", WireGuard: wireguard}, addr4.AsSlice())
		}},
		"host with addresses": {change: func(_ *testing.T, f *forgery) { f.leaf.IPAddresses = []net.IP{addr4.AsSlice()} }},
		"agent without host":  {kind: identity.KindAgent, change: func(t *testing.T, f *forgery) { f.agent(t, identity.Claims{Issued: now}, addr4.AsSlice()) }},
		"agent's host": {kind: identity.KindAgent, change: func(t *testing.T, f *forgery) {
			f.agent(t, identity.Claims{Issued: now, Host: "../h1"}, addr4.AsSlice())
		}},
		"agent's labels": {kind: identity.KindAgent, change: func(t *testing.T, f *forgery) {
			f.agent(t, identity.Claims{Issued: now, Host: "h1", Labels: map[string]string{"": "x"}}, addr4.AsSlice())
		}},
		"agent with control": {kind: identity.KindAgent, change: func(t *testing.T, f *forgery) {
			f.agent(t, identity.Claims{Issued: now, Host: "h1", Control: true}, addr4.AsSlice())
		}},
		"agent without address": {kind: identity.KindAgent, change: func(t *testing.T, f *forgery) { f.agent(t, agent) }},
		"address twice":         {kind: identity.KindAgent, change: func(t *testing.T, f *forgery) { f.agent(t, agent, addr4.AsSlice(), addr4.AsSlice()) }},
		"loopback address":      {kind: identity.KindAgent, change: func(t *testing.T, f *forgery) { f.agent(t, agent, net.IPv4(127, 0, 0, 1)) }},
		"multicast address":     {kind: identity.KindAgent, change: func(t *testing.T, f *forgery) { f.agent(t, agent, net.ParseIP("ff02::1")) }},
		"nine addresses": {kind: identity.KindAgent, change: func(t *testing.T, f *forgery) {
			var ips []net.IP
			for i := range 9 {
				ips = append(ips, net.IPv4(10, 201, 0, byte(i)))
			}
			f.agent(t, agent, ips...)
		}},
		"operator without role": {kind: identity.KindOperator, change: func(t *testing.T, f *forgery) {
			f.leaf.URIs, f.leaf.ExtKeyUsage = uris(t, "spiffe://lab.test/operator/ann"), []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
			f.claim(t, identity.Claims{Issued: now})
		}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newForgery(t)
			if tt.kind == "" {
				tt.kind = identity.KindHost
			}
			if tt.want == nil {
				tt.want = identity.ErrMalformed
			}
			tt.change(t, f)
			chain, trust := f.chain(t)
			if _, err := trust.Verify(chain, tt.kind, now); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// agent makes the leaf that of an agent.
func (f *forgery) agent(t testing.TB, c identity.Claims, ips ...net.IP) {
	t.Helper()
	f.leaf.URIs, f.leaf.IPAddresses = uris(t, "spiffe://lab.test/agent/scout"), ips
	f.claim(t, c)
}

func TestVerifyRefusesChain(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(f *forgery)
		edit   func(t *testing.T, chain [][]byte) [][]byte // of the signed chain
		want   error
	}{
		"empty":              {edit: func(*testing.T, [][]byte) [][]byte { return nil }, want: identity.ErrMalformed},
		"four":               {edit: func(_ *testing.T, c [][]byte) [][]byte { return append(c, c[2]) }, want: identity.ErrMalformed},
		"trailing byte":      {edit: func(_ *testing.T, c [][]byte) [][]byte { return [][]byte{append(c[0], 0), c[1]} }, want: identity.ErrMalformed},
		"no issuing":         {edit: func(_ *testing.T, c [][]byte) [][]byte { return c[:1] }, want: identity.ErrForeign},
		"intermediate first": {edit: func(_ *testing.T, c [][]byte) [][]byte { return [][]byte{c[1], c[0]} }, want: identity.ErrMalformed},
		"root first":         {edit: func(_ *testing.T, c [][]byte) [][]byte { return [][]byte{c[2], c[1], c[0]} }, want: identity.ErrMalformed},
		// The leaf of somebody else, with an own sound certificate beside it.
		"forged leaf first": {edit: func(t *testing.T, c [][]byte) [][]byte {
			forged, _ := newForgery(t).chain(t)
			return [][]byte{forged[0], c[0], c[1]}
		}, want: identity.ErrForeign},
		"issuing of a foreign root": {edit: func(t *testing.T, _ [][]byte) [][]byte {
			foreign, _ := newForgery(t).chain(t)
			return foreign
		}, want: identity.ErrForeign},
		"issuing is no authority": {change: func(f *forgery) {
			f.issuing.IsCA, f.issuing.MaxPathLenZero, f.issuing.PermittedURIDomains, f.issuing.KeyUsage = false, false, nil, x509.KeyUsageDigitalSignature
		}, want: identity.ErrForeign},
		"issuing may not sign":     {change: func(f *forgery) { f.issuing.KeyUsage = x509.KeyUsageCRLSign }, want: identity.ErrForeign},
		"issuing of another mesh":  {change: func(f *forgery) { f.issuing.PermittedURIDomains = []string{"other.test"} }, want: identity.ErrForeign},
		"issuing of two meshes":    {change: func(f *forgery) { f.issuing.PermittedURIDomains = []string{mesh, "other.test"} }, want: identity.ErrForeign},
		"issuing of all meshes":    {change: func(f *forgery) { f.issuing.PermittedURIDomains = nil }, want: identity.ErrForeign},
		"constraint not critical":  {change: func(f *forgery) { f.issuing.PermittedDNSDomainsCritical = false }, want: identity.ErrForeign},
		"issuing of any depth":     {change: func(f *forgery) { f.issuing.MaxPathLenZero, f.issuing.MaxPathLen = false, -1 }, want: identity.ErrForeign},
		"issuing expired":          {change: func(f *forgery) { f.issuing.NotAfter = now.Add(-identity.Skew - time.Second) }, want: identity.ErrForeign},
		"root may not have issued": {change: func(f *forgery) { f.root.MaxPathLen, f.root.MaxPathLenZero = 0, true }, want: identity.ErrForeign},
	} {
		t.Run(name, func(t *testing.T) {
			f := newForgery(t)
			if tt.change != nil {
				tt.change(f)
			}
			chain, trust := f.chain(t)
			if tt.edit != nil {
				chain = tt.edit(t, chain)
			}
			if _, err := trust.Verify(chain, identity.KindHost, now); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// A second intermediate below the issuing authority: refused by the path length of the root, and of issuing.
func TestVerifyRefusesTwoIntermediates(t *testing.T) {
	f := newForgery(t)
	root := create(t, f.root, f.root, f.rootKey.Public(), signer(f.rootKey))
	issuing := create(t, f.issuing, root, f.issuingKey.Public(), signer(f.rootKey))
	below := newForgery(t)
	below.issuing.Subject.CommonName = "below"
	second := create(t, below.issuing, issuing, below.issuingKey.Public(), signer(f.issuingKey))
	leaf := create(t, f.leaf, second, newKey(t).Public(), signer(below.issuingKey))
	trust := &identity.Trust{Mesh: mesh, Roots: []*x509.Certificate{root}}
	_, err := trust.Verify([][]byte{leaf.Raw, second.Raw, issuing.Raw}, identity.KindHost, now)
	if !errors.Is(err, identity.ErrForeign) {
		t.Errorf("got %v, want ErrForeign", err)
	}
}

// The root itself certifies nobody but the signers of policy.
func TestVerifyRefusesHostBelowRoot(t *testing.T) {
	f := newForgery(t)
	root := create(t, f.root, f.root, f.rootKey.Public(), signer(f.rootKey))
	leaf := create(t, f.leaf, root, newKey(t).Public(), signer(f.rootKey))
	trust := &identity.Trust{Mesh: mesh, Roots: []*x509.Certificate{root}}
	if _, err := trust.Verify([][]byte{leaf.Raw}, identity.KindHost, now); !errors.Is(err, identity.ErrForeign) {
		t.Errorf("got %v, want ErrForeign", err)
	}
}

func TestVerifyTrustsNoRootOfTheSystem(t *testing.T) {
	chain, _ := newForgery(t).chain(t)
	if _, err := (&identity.Trust{Mesh: mesh}).Verify(chain, identity.KindHost, now); !errors.Is(err, identity.ErrForeign) {
		t.Errorf("got %v, want ErrForeign", err)
	}
}

func TestVerifyAtTime(t *testing.T) {
	ca := identitytest.New(t, mesh)
	short, err := ca.Root.NewIssuingFor(25*time.Hour, now)
	if err != nil {
		t.Fatal(err)
	}
	ca.Issuing = short
	ca.Now = now.Add(30 * time.Minute)
	chain := ca.Host("h1").Chain
	begin, end := ca.Now.Add(-identity.Skew), ca.Now.Add(identitytest.Life)
	for _, tt := range []struct {
		at   time.Time
		want error
	}{
		{begin.Add(-identity.Skew - time.Second), identity.ErrNotYetValid},
		{begin.Add(-identity.Skew), nil},
		{ca.Now, nil},
		{end.Add(identity.Skew), nil},
		{end.Add(identity.Skew + time.Second), identity.ErrExpired},
		{time.Unix(0, 0), identity.ErrNotYetValid},
		{now.Add(100 * 365 * 24 * time.Hour), identity.ErrExpired},
	} {
		if _, err := ca.Trust().Verify(chain, identity.KindHost, tt.at); !errors.Is(err, tt.want) {
			t.Errorf("at %s: got %v, want %v", tt.at, err, tt.want)
		}
	}
}

func TestRevocation(t *testing.T) {
	ca := identitytest.New(t, mesh)
	host, agent, operator := ca.Host("h2").Chain, ca.Agent("scout", "h2", nil, addr4).Chain, ca.Operator("ann", "viewer").Chain
	second := now.Add(time.Second)
	for _, tt := range []struct {
		id     string
		before time.Time
		void   []string
	}{
		{"host/h2", second, []string{"host", "agent"}}, // with the agents that it carries
		{"host/h2", now, nil},                          // issued at that very time: this is the new one
		{"agent/scout", second, []string{"agent"}},
		{"agent/scout", now, nil},
		{"operator/ann", second, []string{"operator"}},
		{"host/scout", second, nil},
		{"agent/h2", second, nil},
		{"host/h", second, nil},
		{"host/", second, nil},
		{"", second, nil},
		{"spiffe://lab.test/host/h2", second, nil},
	} {
		trust := ca.Trust(identity.Revocation{ID: "host/other", Before: second}, identity.Revocation{ID: tt.id, Before: tt.before})
		var void []string
		for _, c := range []struct {
			kind  identity.Kind
			chain [][]byte
		}{{identity.KindHost, host}, {identity.KindAgent, agent}, {identity.KindOperator, operator}} {
			_, err := trust.Verify(c.chain, c.kind, now)
			if errors.Is(err, identity.ErrRevoked) {
				void = append(void, string(c.kind))
			} else if err != nil {
				t.Errorf("revocation of %q: %v", tt.id, err)
			}
		}
		if diff := cmp.Diff(tt.void, void); diff != "" {
			t.Errorf("revocation of %q before %s (-want +got):\n%s", tt.id, tt.before, diff)
		}
	}
}

func BenchmarkVerify(b *testing.B) {
	ca := identitytest.New(b, mesh)
	chain := ca.Agent("scout", "h2", map[string]string{"function": "research", "sensitivity": "internal"}, addr4, addr6).Chain
	trust := ca.Trust()
	for b.Loop() {
		if _, err := trust.Verify(chain, identity.KindAgent, now); err != nil {
			b.Fatal(err)
		}
	}
}
