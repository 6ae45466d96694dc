package link

import (
	"crypto"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
	"github.com/quic-go/quic-go"
)

const alpn = "bulkhead-link/1"

func (l *Link) serverTLS() *tls.Config {
	return identity.ServerTLS(l.options.Certificate, func(chain [][]byte) error {
		_, err := l.verify(chain)
		return err
	}, alpn)
}

// clientTLS accepts the certificate of one host, or of any if want is empty.
func (l *Link) clientTLS(want string) *tls.Config {
	return identity.ClientTLS(l.options.Certificate, func(chain [][]byte) error {
		host, err := l.verify(chain)
		if err == nil && want != "" && host != want {
			l.counters.refusedPeers.Add(1)
			return fmt.Errorf("certificate is of host %q, not of %q", host, want)
		}
		return err
	}, alpn)
}

// verify returns the host that a chain proves. A peer with our own key is this host, or a copy of it.
func (l *Link) verify(chain [][]byte) (string, error) {
	host, err := l.verifyPeer(chain)
	if err != nil {
		l.counters.refusedPeers.Add(1)
		return "", err
	}
	return host, nil
}

func (l *Link) verifyPeer(chain [][]byte) (string, error) {
	if len(chain) == 0 {
		return "", errors.New("verify peer: no certificate")
	}
	host, err := l.options.Verify(chain)
	if err != nil {
		return "", fmt.Errorf("verify peer: %w", err)
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return "", fmt.Errorf("verify peer: %w", err)
	}
	if own, ok := publicKey(l.options.Certificate()); ok && own.Equal(leaf.PublicKey) {
		return "", fmt.Errorf("verify peer %s: %w", host, ErrSelf)
	}
	return host, nil
}

func publicKey(c *tls.Certificate) (interface{ Equal(crypto.PublicKey) bool }, bool) {
	if c == nil {
		return nil, false
	}
	signer, ok := c.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, false
	}
	key, ok := signer.Public().(interface{ Equal(crypto.PublicKey) bool })
	return key, ok
}

// chainOf is what the peer of a connection has proven to hold, leaf first.
func chainOf(conn *quic.Conn) [][]byte {
	certificates := conn.ConnectionState().TLS.PeerCertificates
	chain := make([][]byte, len(certificates))
	for i, c := range certificates {
		chain[i] = c.Raw
	}
	return chain
}

// resetKey is the same after a restart of this process, so that peers learn at their next packet that
// the old connection is gone. Nil if the private key cannot be read.
func resetKey(c *tls.Certificate) *quic.StatelessResetKey {
	if c == nil {
		return nil
	}
	private, ok := c.PrivateKey.(ed25519.PrivateKey)
	if !ok {
		return nil
	}
	derived, err := hkdf.Key(sha256.New, private.Seed(), nil, "bulkhead QUIC stateless reset", 32)
	if err != nil {
		return nil
	}
	return (*quic.StatelessResetKey)(derived)
}
