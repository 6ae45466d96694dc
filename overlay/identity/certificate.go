package identity

import (
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"
)

const (
	maxCertificate = 16 << 10 // bytes of DER
	maxAddresses   = 8
)

// Certificate is what a verified leaf says.
type Certificate struct {
	ID
	Claims
	Addresses           []netip.Addr // overlay addresses of an agent, IPv4 first
	NotBefore, NotAfter time.Time
	PublicKey           ed25519.PublicKey
	Chain               [][]byte // DER, leaf first, without the root
}

// RenewAt is two thirds of the certificate's life.
func (c *Certificate) RenewAt() time.Time {
	return c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) * 2 / 3)
}

// Fingerprint is the SHA-256 of a root certificate, as tokens carry it.
func Fingerprint(root *x509.Certificate) [32]byte { return sha256.Sum256(root.Raw) }

// parseCertificate takes only what an authority of ours could have made: small, and Ed25519 throughout. Other
// algorithms would let a stranger choose how long a signature takes to check.
func parseCertificate(der []byte) (*x509.Certificate, error) {
	if len(der) > maxCertificate {
		return nil, fmt.Errorf("%w: certificate of %d bytes", ErrMalformed, len(der))
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if cert.PublicKeyAlgorithm != x509.Ed25519 || cert.SignatureAlgorithm != x509.PureEd25519 {
		return nil, fmt.Errorf("%w: not Ed25519", ErrMalformed)
	}
	return cert, nil
}

// usages are the extended key usages of a kind: exactly these.
func usages(kind Kind) []x509.ExtKeyUsage {
	switch kind {
	case KindHost, KindAgent:
		return []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	case KindOperator:
		return []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	default:
		return nil // signs policy, speaks no TLS
	}
}

// describe reads what a leaf says, and refuses what no leaf of ours says. It checks neither time nor signature.
func describe(leaf *x509.Certificate) (*Certificate, error) {
	if leaf.IsCA || leaf.KeyUsage != x509.KeyUsageDigitalSignature {
		return nil, fmt.Errorf("%w: not a leaf", ErrMalformed)
	}
	if len(leaf.URIs) != 1 {
		return nil, fmt.Errorf("%w: %d identities", ErrMalformed, len(leaf.URIs))
	}
	id, err := ParseID(leaf.URIs[0].String())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if !slices.Equal(leaf.ExtKeyUsage, usages(id.Kind)) || len(leaf.UnknownExtKeyUsage) > 0 {
		return nil, fmt.Errorf("%w: key usage does not suit a %s", ErrMalformed, id.Kind)
	}
	key, ok := leaf.PublicKey.(ed25519.PublicKey)
	if !ok {
		return nil, fmt.Errorf("%w: not Ed25519", ErrMalformed)
	}
	claims, err := claimsOf(leaf.Extensions)
	if err != nil {
		return nil, err
	}
	if err := claims.suit(id.Kind); err != nil {
		return nil, err
	}
	if claims.Issued.Before(leaf.NotBefore) || claims.Issued.After(leaf.NotAfter) {
		return nil, fmt.Errorf("%w: issued outside its own validity", ErrMalformed)
	}
	addresses, err := overlayAddresses(id.Kind, leaf.IPAddresses)
	if err != nil {
		return nil, err
	}
	return &Certificate{
		ID: id, Claims: claims, Addresses: addresses,
		NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter, PublicKey: key,
	}, nil
}

// overlayAddresses are a leaf's IP names: an agent has at least one, nobody else has any.
func overlayAddresses(kind Kind, ips []net.IP) ([]netip.Addr, error) {
	if (kind == KindAgent) != (len(ips) > 0) || len(ips) > maxAddresses {
		return nil, fmt.Errorf("%w: %d addresses of a %s", ErrMalformed, len(ips), kind)
	}
	var addresses []netip.Addr
	for _, ip := range ips {
		addr, ok := netip.AddrFromSlice(ip)
		if !ok || addr.Is4In6() || !addr.IsGlobalUnicast() || slices.Contains(addresses, addr) {
			return nil, fmt.Errorf("%w: address %v", ErrMalformed, ip)
		}
		addresses = append(addresses, addr)
	}
	slices.SortFunc(addresses, netip.Addr.Compare) // shorter ones first
	return addresses, nil
}
