package identity

import (
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"
)

// maxChain has room for a root, which many programs send along. It proves nothing, and is not used.
const maxChain = 3

// Skew is how far the clocks of two hosts may be apart.
const Skew = 2 * time.Minute

// Why a certificate, or what is signed with one, is not believed. Errors wrap one of these.
var (
	ErrMalformed   = errors.New("malformed")
	ErrForeign     = errors.New("not of this mesh")
	ErrExpired     = errors.New("expired")
	ErrNotYetValid = errors.New("not valid yet")
	ErrRevoked     = errors.New("revoked")
)

// Revocation voids the certificates of one identity that were issued before a time. One of a host voids those
// of its agents too.
type Revocation struct {
	ID     string    `json:"id"` // host/NAME, agent/NAME or operator/NAME
	Before time.Time `json:"before"`
	Reason string    `json:"reason,omitempty"`
}

// Trust is what certificates are judged by. It is read only once in use, and then safe for concurrent use.
type Trust struct {
	Mesh        string
	Roots       []*x509.Certificate
	Revocations []Revocation
}

// Verify judges the leaf chain[0], and nothing else, as a certificate of this mesh and kind at now. The chain is
// DER, leaf first. Errors wrap ErrMalformed, ErrForeign, ErrExpired, ErrNotYetValid or ErrRevoked, in this order
// of precedence.
func (t *Trust) Verify(chain [][]byte, kind Kind, now time.Time) (*Certificate, error) {
	if len(chain) == 0 || len(chain) > maxChain {
		return nil, fmt.Errorf("verify certificate: %w: chain of %d", ErrMalformed, len(chain))
	}
	certs := make([]*x509.Certificate, len(chain))
	for i, der := range chain {
		var err error
		if certs[i], err = parseCertificate(der); err != nil {
			return nil, fmt.Errorf("verify certificate: %w", err)
		}
	}
	c, err := describe(certs[0])
	if err != nil {
		return nil, fmt.Errorf("verify certificate: %w", err)
	}
	if c.Mesh != t.Mesh || c.Kind != kind {
		return nil, fmt.Errorf("verify certificate of %s: %w: a %s of %q is wanted", c.ID, ErrForeign, kind, t.Mesh)
	}
	path, err := t.path(certs, c)
	if err != nil {
		return nil, fmt.Errorf("verify certificate of %s: %w", c.ID, err)
	}
	if err := checkTime(path, now); err != nil {
		return nil, fmt.Errorf("verify certificate of %s: %w", c.ID, err)
	}
	if err := t.CheckRevoked(c); err != nil {
		return nil, err
	}
	for _, cert := range path[:len(path)-1] {
		c.Chain = append(c.Chain, cert.Raw)
	}
	return c, nil
}

// CheckRevoked returns an error wrapping ErrRevoked if a revocation voids c.
func (t *Trust) CheckRevoked(c *Certificate) error {
	self := c.Path()
	host := self
	if c.Kind == KindAgent {
		host = string(KindHost) + "/" + c.Host
	}
	for _, r := range t.Revocations {
		if (r.ID == self || r.ID == host) && c.Issued.Before(r.Before) {
			return fmt.Errorf("certificate of %s: %w: those of %s before %s", c.ID, ErrRevoked, r.ID, r.Before.UTC().Format(time.RFC3339))
		}
	}
	return nil
}

// path finds the way from the leaf certs[0] to one of our roots: over one issuing authority, or over none for a
// signer of policy. It is judged as of the leaf's issue, when all of it must have been valid.
func (t *Trust) path(certs []*x509.Certificate, c *Certificate) ([]*x509.Certificate, error) {
	o := x509.VerifyOptions{
		Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(),
		CurrentTime: c.Issued, KeyUsages: usages(c.Kind),
	}
	if o.KeyUsages == nil {
		o.KeyUsages = []x509.ExtKeyUsage{x509.ExtKeyUsageAny}
	}
	for _, root := range t.Roots {
		o.Roots.AddCert(root)
	}
	for _, cert := range certs[1:] {
		o.Intermediates.AddCert(cert)
	}
	paths, err := certs[0].Verify(o)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrForeign, err)
	}
	for _, path := range paths {
		if c.Kind == KindPolicy && len(path) == 2 || c.Kind != KindPolicy && len(path) == 3 && issues(path[1], t.Mesh) {
			return path, nil
		}
	}
	return nil, fmt.Errorf("%w: a %s is not certified by this authority", ErrForeign, c.Kind)
}

// issues says whether cert is an issuing authority that is constrained to mesh.
func issues(cert *x509.Certificate, mesh string) bool {
	return cert.IsCA && cert.MaxPathLen == 0 && cert.MaxPathLenZero && cert.KeyUsage&x509.KeyUsageCertSign != 0 &&
		cert.PermittedDNSDomainsCritical && slices.Equal(cert.PermittedURIDomains, []string{mesh})
}

// checkTime checks that everything on the path is valid at now, give or take Skew.
func checkTime(path []*x509.Certificate, now time.Time) error {
	for _, cert := range path {
		if now.After(cert.NotAfter.Add(Skew)) {
			return fmt.Errorf("%w: %s ended %s, now is %s", ErrExpired, cert.Subject.CommonName, cert.NotAfter.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
		}
		if now.Before(cert.NotBefore.Add(-Skew)) {
			return fmt.Errorf("%w: %s begins %s, now is %s", ErrNotYetValid, cert.Subject.CommonName, cert.NotBefore.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
		}
	}
	return nil
}
