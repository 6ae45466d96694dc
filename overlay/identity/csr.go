package identity

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
)

const maxCSR = 8 << 10 // bytes of DER

// NewCSR asks for a certificate of id for the key: PKCS #10, DER.
func NewCSR(k Key, id ID) ([]byte, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{id.url()}}, ed25519.PrivateKey(k))
	if err != nil {
		return nil, fmt.Errorf("make certificate request: %w", err)
	}
	return der, nil
}

// ParseCSR returns whom a request is for and its key, which is proven to be held. All else in it is ignored.
func ParseCSR(der []byte) (ID, ed25519.PublicKey, error) {
	id, key, err := parseCSR(der)
	if err != nil {
		return ID{}, nil, fmt.Errorf("parse certificate request: %w", err)
	}
	return id, key, nil
}

func parseCSR(der []byte) (ID, ed25519.PublicKey, error) {
	if len(der) > maxCSR {
		return ID{}, nil, fmt.Errorf("%d bytes, more than %d", len(der), maxCSR)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return ID{}, nil, err
	}
	key, ok := csr.PublicKey.(ed25519.PublicKey)
	if !ok || csr.SignatureAlgorithm != x509.PureEd25519 {
		return ID{}, nil, errors.New("the key is not Ed25519")
	}
	if err := csr.CheckSignature(); err != nil {
		return ID{}, nil, err
	}
	if len(csr.URIs) != 1 {
		return ID{}, nil, fmt.Errorf("%d identities, not one", len(csr.URIs))
	}
	id, err := ParseID(csr.URIs[0].String())
	return id, key, err
}
