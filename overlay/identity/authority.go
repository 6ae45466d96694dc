package identity

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"net/url"
	"time"

	"github.com/bulkhead-mesh/bulkhead/segment"
)

const (
	rootLife = 10 * 365 * 24 * time.Hour
	// IssuingLife is the usual life of an issuing authority.
	IssuingLife = 5 * 365 * 24 * time.Hour
)

// Authority is a certificate that signs others, with its key: the root of a mesh, or an issuing authority.
type Authority struct {
	mesh  string
	cert  *x509.Certificate
	key   Key
	chain [][]byte // what follows a leaf that it signs: nothing for a root
}

// Certificate is the authority's own.
func (a *Authority) Certificate() *x509.Certificate { return a.cert }

// Key is the authority's private key.
func (a *Authority) Key() Key { return a.key }

// Chain is what LoadIssuing takes, and what follows a leaf: DER, without the root. A root has none.
func (a *Authority) Chain() [][]byte { return a.chain }

func (a *Authority) isRoot() bool { return a.chain == nil }

// NewRoot makes the root of a mesh.
func NewRoot(mesh string, now time.Time) (*Authority, error) {
	if err := segment.ParseMeshName(mesh); err != nil {
		return nil, fmt.Errorf("make root authority: %w", err)
	}
	key, err := GenerateKey()
	if err != nil {
		return nil, err
	}
	template := authorityTemplate(mesh, "root", now, rootLife)
	template.MaxPathLen = 1
	cert, err := sign(template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make root authority: %w", err)
	}
	return &Authority{mesh: mesh, cert: cert, key: key}, nil
}

// NewIssuing makes an authority below the root a that certifies identities of its mesh for IssuingLife.
func (a *Authority) NewIssuing(now time.Time) (*Authority, error) {
	return a.NewIssuingFor(IssuingLife, now)
}

// NewIssuingFor is NewIssuing with another life. What it certifies ends before it does.
func (a *Authority) NewIssuingFor(life time.Duration, now time.Time) (*Authority, error) {
	if !a.isRoot() {
		return nil, errors.New("make issuing authority: only a root may")
	}
	template := authorityTemplate(a.mesh, "issuing", now, life)
	if err := a.outlives(template); err != nil {
		return nil, fmt.Errorf("make issuing authority: %w", err)
	}
	key, err := GenerateKey()
	if err != nil {
		return nil, err
	}
	template.MaxPathLenZero = true
	template.PermittedURIDomains = []string{a.mesh}
	template.PermittedDNSDomainsCritical = true // of all name constraints, whatever the field is called
	cert, err := sign(template, a.cert, key.Public(), a.key)
	if err != nil {
		return nil, fmt.Errorf("make issuing authority: %w", err)
	}
	return &Authority{mesh: a.mesh, cert: cert, key: key, chain: [][]byte{cert.Raw}}, nil
}

// LoadIssuing makes an issuing authority of its stored chain and key.
func LoadIssuing(chain [][]byte, key Key) (*Authority, error) {
	if len(chain) != 1 {
		return nil, fmt.Errorf("load issuing authority: %w: chain of %d", ErrMalformed, len(chain))
	}
	a, err := load(chain[0], key)
	if err != nil {
		return nil, fmt.Errorf("load issuing authority: %w", err)
	}
	if !issues(a.cert, a.mesh) {
		return nil, fmt.Errorf("load issuing authority: %w: not constrained to its mesh", ErrMalformed)
	}
	a.chain = chain
	return a, nil
}

// LoadRoot makes a root of its stored certificate (DER) and key.
func LoadRoot(der []byte, key Key) (*Authority, error) {
	a, err := load(der, key)
	if err != nil {
		return nil, fmt.Errorf("load root authority: %w", err)
	}
	if err := a.cert.CheckSignatureFrom(a.cert); err != nil {
		return nil, fmt.Errorf("load root authority: %w: %w", ErrMalformed, err)
	}
	return a, nil
}

func load(der []byte, key Key) (*Authority, error) {
	cert, err := parseCertificate(der)
	if err != nil {
		return nil, err
	}
	if !cert.IsCA || len(cert.URIs) != 1 {
		return nil, fmt.Errorf("%w: not the certificate of an authority", ErrMalformed)
	}
	if len(key) != ed25519.PrivateKeySize || !key.Public().Equal(cert.PublicKey) {
		return nil, fmt.Errorf("%w: the key is not that of the certificate", ErrMalformed)
	}
	return &Authority{mesh: cert.URIs[0].Host, cert: cert, key: key}, nil
}

// Request says what to certify.
type Request struct {
	ID        ID
	Claims    Claims       // Issued zero is now
	Addresses []netip.Addr // of an agent
	PublicKey ed25519.PublicKey
	Life      time.Duration
}

// Issue certifies an identity and returns its chain: DER, leaf first, without the root. A root certifies signers
// of policy, an issuing authority all else. What Trust.Verify would refuse is not issued.
func (a *Authority) Issue(r Request, now time.Time) ([][]byte, error) {
	leaf, err := a.issue(r, now)
	if err != nil {
		return nil, fmt.Errorf("issue certificate of %s: %w", r.ID, err)
	}
	return append([][]byte{leaf.Raw}, a.chain...), nil
}

func (a *Authority) issue(r Request, now time.Time) (*x509.Certificate, error) {
	if r.ID.Mesh != a.mesh || a.isRoot() != (r.ID.Kind == KindPolicy) {
		return nil, fmt.Errorf("not for the %s authority of %s", a.cert.Subject.CommonName, a.mesh)
	}
	if len(r.PublicKey) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("public key of %d bytes", len(r.PublicKey))
	}
	now = now.UTC().Truncate(time.Second)
	if r.Claims.Issued.IsZero() {
		r.Claims.Issued = now
	}
	claims, err := marshalClaims(r.Claims)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: r.ID.Path()},
		URIs:                  []*url.URL{r.ID.url()},
		NotBefore:             now.Add(-Skew),
		NotAfter:              now.Add(r.Life),
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           usages(r.ID.Kind),
		ExtraExtensions:       []pkix.Extension{{Id: claimsOID, Value: claims}},
	}
	for _, addr := range r.Addresses {
		template.IPAddresses = append(template.IPAddresses, addr.AsSlice())
	}
	if err := a.outlives(template); err != nil {
		return nil, err
	}
	leaf, err := sign(template, a.cert, r.PublicKey, a.key)
	if err != nil {
		return nil, err
	}
	if c, err := describe(leaf); err != nil {
		return nil, err
	} else if c.ID != r.ID {
		return nil, fmt.Errorf("%w: it would be read as %s", ErrMalformed, c.ID)
	}
	return leaf, nil
}

// outlives refuses a certificate that would be valid while a is not.
func (a *Authority) outlives(template *x509.Certificate) error {
	if !template.NotBefore.Add(Skew).Before(template.NotAfter) {
		return errors.New("its life is not positive")
	}
	if template.NotBefore.Before(a.cert.NotBefore) {
		return fmt.Errorf("the authority begins only %s (fix: check the clock)", a.cert.NotBefore.Format(time.RFC3339))
	}
	if template.NotAfter.After(a.cert.NotAfter) {
		return fmt.Errorf("the authority ends before it, %s", a.cert.NotAfter.Format(time.RFC3339))
	}
	return nil
}

func authorityTemplate(mesh, what string, now time.Time, life time.Duration) *x509.Certificate {
	now = now.UTC().Truncate(time.Second)
	return &x509.Certificate{
		Subject:               pkix.Name{Organization: []string{"Bulkhead " + mesh}, CommonName: what},
		URIs:                  []*url.URL{{Scheme: "spiffe", Host: mesh}},
		NotBefore:             now.Add(-Skew),
		NotAfter:              now.Add(life),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
}

func sign(template, parent *x509.Certificate, public ed25519.PublicKey, key Key) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("choose serial number: %w", err)
	}
	template.SerialNumber = serial.Add(serial, big.NewInt(1)) // zero is not allowed
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, ed25519.PrivateKey(key))
	if err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	return parseCertificate(der)
}
