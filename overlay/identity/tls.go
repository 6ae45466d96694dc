package identity

import (
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
)

// TLSCertificate joins a key and its chain.
func TLSCertificate(k Key, chain [][]byte) tls.Certificate {
	return tls.Certificate{Certificate: chain, PrivateKey: ed25519.PrivateKey(k)}
}

// ServerTLS demands a client certificate that verify believes. It asks cert for the own one at every handshake.
func ServerTLS(cert func() *tls.Certificate, verify func(chain [][]byte) error, alpn ...string) *tls.Config {
	c := mutual(verify, alpn)
	c.ClientAuth = tls.RequireAnyClientCert
	c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return own(cert) }
	return c
}

// ClientTLS shows cert and demands a server certificate that verify believes. Names are verify's matter.
func ClientTLS(cert func() *tls.Certificate, verify func(chain [][]byte) error, alpn ...string) *tls.Config {
	c := mutual(verify, alpn)
	c.InsecureSkipVerify = true // by names of the web; VerifyConnection does it by ours
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return own(cert) }
	return c
}

func own(cert func() *tls.Certificate) (*tls.Certificate, error) {
	if c := cert(); c != nil {
		return c, nil
	}
	return nil, errors.New("this host has no certificate yet")
}

// mutual is TLS 1.3 without resumption, so that verify judges every connection: the leaf that the peer has proven
// to hold comes first in the chain.
func mutual(verify func(chain [][]byte) error, alpn []string) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             alpn,
		SessionTicketsDisabled: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			if len(s.PeerCertificates) == 0 || s.DidResume {
				return errors.New("verify peer: it shows no certificate")
			}
			if len(alpn) > 0 && !slices.Contains(alpn, s.NegotiatedProtocol) {
				return fmt.Errorf("verify peer: it speaks %q, not one of %q", s.NegotiatedProtocol, alpn)
			}
			chain := make([][]byte, len(s.PeerCertificates))
			for i, c := range s.PeerCertificates {
				chain[i] = c.Raw
			}
			return verify(chain)
		},
	}
}
