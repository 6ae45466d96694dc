package api

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
)

// ErrForeign is returned when what answers is not control of the mesh that the client knows.
var ErrForeign = errors.New("not control of this mesh")

// ClockError is returned when the certificate of control is valid, but not now by the local clock.
type ClockError struct {
	Now, NotBefore, NotAfter time.Time
}

// Error shows both times.
func (e *ClockError) Error() string {
	return fmt.Sprintf("this machine's clock says %s, but the certificate of control is valid from %s to %s (fix: set the clock)",
		e.Now.UTC().Format(time.RFC3339), e.NotBefore.UTC().Format(time.RFC3339), e.NotAfter.UTC().Format(time.RFC3339))
}

// anchor says which roots a client accepts: those it knows, or the one with a fingerprint.
type anchor struct {
	mesh        string // empty: that of the root's own certificates
	roots       []*x509.Certificate
	fingerprint [32]byte // if there are no roots
}

// verify judges the certificates that a server presents, leaf first, before anything is sent to it. Host names
// mean nothing here: it must be a host of the mesh with the control role.
func (a anchor) verify(presented []*x509.Certificate, now time.Time) error {
	roots, chain := a.roots, [][]byte{}
	for _, cert := range presented {
		if len(a.roots) == 0 && identity.Fingerprint(cert) == a.fingerprint {
			roots = []*x509.Certificate{cert}
			continue
		}
		if cert.IsCA && isRoot(cert) {
			continue
		}
		chain = append(chain, cert.Raw)
	}
	if len(roots) == 0 {
		return fmt.Errorf("%w: none of its certificates is the root with fingerprint sha256:%s (fix: check the address, or get a new token from the mesh you want to join)",
			ErrForeign, hex.EncodeToString(a.fingerprint[:]))
	}
	trust := &identity.Trust{Mesh: a.mesh, Roots: roots}
	cert, err := trust.Verify(chain, identity.KindHost, now)
	if errors.Is(err, identity.ErrExpired) || errors.Is(err, identity.ErrNotYetValid) {
		return clockError(presented, now)
	}
	if err != nil {
		return fmt.Errorf("%w: %w (fix: check the address; a token or a certificate is good for its own mesh alone)", ErrForeign, err)
	}
	if !cert.Claims.Control {
		return fmt.Errorf("%w: %s has no control role (fix: use the address of a control host)", ErrForeign, cert.ID)
	}
	return nil
}

// clockError names the time in which all of the certificates are valid.
func clockError(presented []*x509.Certificate, now time.Time) error {
	e := &ClockError{Now: now, NotBefore: presented[0].NotBefore, NotAfter: presented[0].NotAfter}
	for _, cert := range presented[1:] {
		if cert.NotBefore.After(e.NotBefore) {
			e.NotBefore = cert.NotBefore
		}
		if cert.NotAfter.Before(e.NotAfter) {
			e.NotAfter = cert.NotAfter
		}
	}
	return e
}

func isRoot(cert *x509.Certificate) bool { return string(cert.RawIssuer) == string(cert.RawSubject) }

// clientTLS verifies a server by its mesh, and presents a certificate if it has one.
func clientTLS(a anchor, certificate func() *tls.Certificate, now func() time.Time) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		// Certificates name hosts of a mesh, not DNS names. VerifyConnection does all of the work instead.
		InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			return a.verify(state.PeerCertificates, now())
		},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if certificate == nil {
				return new(tls.Certificate), nil // none: a token comes in the request
			}
			return certificate(), nil
		},
	}
}

// ServerTLS is the TLS side of the API's TCP listener: 1.3 only, no tickets, client certificates asked for and
// judged per request, so that a revocation counts at once. Roots are presented with the chain: joining hosts
// know one by its fingerprint.
func ServerTLS(certificate func() *tls.Certificate, roots []*x509.Certificate) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		SessionTicketsDisabled: true,
		ClientAuth:             tls.RequestClientCert,
		NextProtos:             []string{"http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			whole := *certificate()
			whole.Certificate = append([][]byte{}, whole.Certificate...)
			for _, root := range roots {
				whole.Certificate = append(whole.Certificate, root.Raw)
			}
			return &whole, nil
		},
	}
}
