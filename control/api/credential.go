package api

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/bulkhead-mesh/bulkhead/control/authority"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
)

const (
	pemCertificate = "CERTIFICATE"
	pemKey         = "PRIVATE KEY"
	maxCredential  = 64 << 10
)

// Credential is what a client proves itself with, and what it knows control by. It holds a key and a chain, or a
// token.
type Credential struct {
	Key   identity.Key // of the first certificate of Chain
	Chain [][]byte     // DER, leaf first, without the root
	Roots []*x509.Certificate
	Token *authority.Token // an API bearer token
}

// Marshal is the file form of a credential with a key: PEM, the chain, the roots, then the key.
func (c *Credential) Marshal() ([]byte, error) {
	var b bytes.Buffer
	for _, der := range c.Chain {
		b.Write(pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: der}))
	}
	for _, root := range c.Roots {
		b.Write(pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: root.Raw}))
	}
	key, err := identity.MarshalKey(c.Key)
	if err != nil {
		return nil, fmt.Errorf("marshal credential: %w", err)
	}
	b.Write(key)
	return b.Bytes(), nil
}

// LoadCredential reads a file that holds what Marshal made, or an API token.
func LoadCredential(path string) (*Credential, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read credential: %w", err)
	}
	c, err := ParseCredential(data)
	if err != nil {
		return nil, fmt.Errorf("read credential %s: %w", path, err)
	}
	return c, nil
}

// ParseCredential parses what Marshal made, or an API token.
func ParseCredential(data []byte) (*Credential, error) {
	if len(data) > maxCredential {
		return nil, fmt.Errorf("it has more than %d bytes", maxCredential)
	}
	if text := strings.TrimSpace(string(data)); !strings.HasPrefix(text, "-----") {
		token, err := authority.ParseToken(text)
		if err != nil {
			return nil, errors.New("it is neither PEM nor an API token")
		}
		return &Credential{Token: &token}, nil
	}
	c := new(Credential)
	found := false
	for len(bytes.TrimSpace(data)) > 0 {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			return nil, errors.New("it is not PEM throughout")
		}
		switch block.Type {
		case pemCertificate:
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, fmt.Errorf("parse certificate: %w", err)
			}
			if bytes.Equal(cert.RawIssuer, cert.RawSubject) {
				c.Roots = append(c.Roots, cert)
			} else {
				c.Chain = append(c.Chain, cert.Raw)
			}
		case pemKey:
			key, err := identity.ParseKey(pem.EncodeToMemory(block))
			if err != nil {
				return nil, errors.New("its private key cannot be parsed") // the cause could quote it
			}
			c.Key, found = key, true
		default:
			return nil, fmt.Errorf("it holds a %s", block.Type)
		}
	}
	if !found || len(c.Chain) == 0 || len(c.Roots) == 0 {
		return nil, errors.New("it needs a certificate chain, the root and the private key")
	}
	return c, nil
}
