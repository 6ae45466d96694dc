package identity

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
)

const (
	pemKey   = "PRIVATE KEY"
	redacted = "(private key)"
)

// Key is an Ed25519 private key that does not show itself in logs, errors or JSON.
type Key ed25519.PrivateKey

// GenerateKey makes a new key.
func GenerateKey() (Key, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate key: %w", err)
	}
	return Key(key), nil
}

// Public is the public key.
func (k Key) Public() ed25519.PublicKey { return ed25519.PrivateKey(k).Public().(ed25519.PublicKey) }

// String hides the key.
func (Key) String() string { return redacted }

// Format hides the key from every verb of package fmt.
func (Key) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, redacted) }

// LogValue hides the key.
func (Key) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalJSON refuses: a key is stored as PEM, on purpose.
func (Key) MarshalJSON() ([]byte, error) { return nil, errors.New("a private key has no JSON form") }

// MarshalKey is the PKCS #8 PEM form.
func MarshalKey(k Key) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(ed25519.PrivateKey(k))
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemKey, Bytes: der}), nil
}

// ParseKey takes the PKCS #8 PEM form; it tells nothing of what it was given.
func ParseKey(text []byte) (Key, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != pemKey {
		return nil, errors.New("parse key: no PEM block of type PRIVATE KEY")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, errors.New("parse key: not PKCS #8")
	}
	key, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, errors.New("parse key: not an Ed25519 key")
	}
	return Key(key), nil
}
