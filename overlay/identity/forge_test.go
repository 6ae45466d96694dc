package identity_test

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/url"
	"testing"
	"time"

	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity/identitytest"
)

const mesh = "lab.test"

var now = identitytest.Now

// forgery is a chain that an authority of ours would not make, or not any more: leaf, issuing, root, each as a
// template that tests change before it is signed.
type forgery struct {
	leaf, issuing, root *x509.Certificate

	leafKey    crypto.PublicKey // nil: new
	issuingKey identity.Key
	rootKey    identity.Key
	trust      *identity.Trust // nil: root
}

func newForgery(t testing.TB) *forgery {
	t.Helper()
	authority := func(name string) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, URIs: uris(t, "spiffe://"+mesh),
			NotBefore: now.Add(-time.Hour), NotAfter: now.Add(1000 * time.Hour),
			IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		}
	}
	f := &forgery{root: authority("root"), issuing: authority("issuing"), issuingKey: newKey(t), rootKey: newKey(t)}
	f.root.MaxPathLen = 1
	f.issuing.MaxPathLenZero, f.issuing.PermittedURIDomains, f.issuing.PermittedDNSDomainsCritical = true, []string{mesh}, true
	f.leaf = &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "host/h1"}, URIs: uris(t, "spiffe://"+mesh+"/host/h1"),
		NotBefore: now.Add(-identity.Skew), NotAfter: now.Add(identitytest.Life),
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	f.claim(t, identity.Claims{Issued: now, WireGuard: identitytest.WireGuard("h1")})
	return f
}

// claim replaces the leaf's claims.
func (f *forgery) claim(t testing.TB, c identity.Claims) {
	t.Helper()
	der, err := identity.MarshalClaims(c)
	if err != nil {
		t.Fatal(err)
	}
	f.claimDER(der)
}

func (f *forgery) claimDER(der []byte) {
	f.leaf.ExtraExtensions = []pkix.Extension{{Id: identity.ClaimsOID, Value: der}}
}

// chain signs all three and returns leaf, issuing, root, and who trusts the root.
func (f *forgery) chain(t testing.TB) ([][]byte, *identity.Trust) {
	t.Helper()
	if f.leafKey == nil {
		f.leafKey = newKey(t).Public()
	}
	root := create(t, f.root, f.root, f.rootKey.Public(), signer(f.rootKey))
	issuing := create(t, f.issuing, root, f.issuingKey.Public(), signer(f.rootKey))
	leaf := create(t, f.leaf, issuing, f.leafKey, signer(f.issuingKey))
	if f.trust == nil {
		f.trust = &identity.Trust{Mesh: mesh, Roots: []*x509.Certificate{root}}
	}
	return [][]byte{leaf.Raw, issuing.Raw, root.Raw}, f.trust
}

func create(t testing.TB, template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func newKey(t testing.TB) identity.Key {
	t.Helper()
	key, err := identity.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func uris(t testing.TB, texts ...string) []*url.URL {
	t.Helper()
	var all []*url.URL
	for _, text := range texts {
		u, err := url.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, u)
	}
	return all
}

func signer(k identity.Key) crypto.Signer { return ed25519.PrivateKey(k) }
