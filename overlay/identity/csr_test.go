package identity_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"net"
	"slices"
	"testing"

	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
)

var hostID = identity.ID{Mesh: mesh, Kind: identity.KindHost, Name: "h1"}

func newCSR(t testing.TB, key crypto.Signer, r x509.CertificateRequest) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &r, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestCSRRoundTrip(t *testing.T) {
	key := newKey(t)
	der, err := identity.NewCSR(key, hostID)
	if err != nil {
		t.Fatal(err)
	}
	id, public, err := identity.ParseCSR(der)
	if err != nil || id != hostID || !public.Equal(key.Public()) {
		t.Errorf("got %s, %v", id, err)
	}
}

func TestParseCSRRefuses(t *testing.T) {
	key := newKey(t)
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	one := uris(t, hostID.String())
	sound := newCSR(t, signer(key), x509.CertificateRequest{URIs: one})
	forged := slices.Clone(sound)
	forged[len(forged)-1] ^= 1
	for name, der := range map[string][]byte{
		"nothing":         nil,
		"cut short":       sound[:len(sound)-1],
		"trailing byte":   append(slices.Clone(sound), 0),
		"other signature": forged,
		"P-256":           newCSR(t, p256, x509.CertificateRequest{URIs: one}),
		"no identity":     newCSR(t, signer(key), x509.CertificateRequest{DNSNames: []string{"h1.lab.test"}}),
		"two identities":  newCSR(t, signer(key), x509.CertificateRequest{URIs: uris(t, hostID.String(), "spiffe://lab.test/host/h2")}),
		"no SPIFFE ID":    newCSR(t, signer(key), x509.CertificateRequest{URIs: uris(t, "https://lab.test/host/h1")}),
		"8 KiB":           newCSR(t, signer(key), x509.CertificateRequest{URIs: one, IPAddresses: slices.Repeat([]net.IP{net.IPv6loopback}, 500)}),
	} {
		if id, _, err := identity.ParseCSR(der); err == nil {
			t.Errorf("%s: taken as a request for %s", name, id)
		}
	}
}
