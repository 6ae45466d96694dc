package signed

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"fmt"
	"strings"
)

const (
	// MaxJWTKeys is how many keys for JWT-SVIDs a policy may carry.
	MaxJWTKeys  = 8
	maxJWTKeyID = 64
)

// JWTKey is a public key by which the mesh's JWT-SVIDs are verified.
type JWTKey struct {
	ID  string `json:"id"`  // the key ID in a token's header: letters, digits, - and _, as base64url has
	Key []byte `json:"key"` // P-256, PKIX, DER
}

// Public is the key itself.
func (k JWTKey) Public() (*ecdsa.PublicKey, error) {
	if !validKeyID(k.ID) {
		return nil, fmt.Errorf("%w: JWT key ID %.80q", ErrMalformed, k.ID)
	}
	parsed, err := x509.ParsePKIXPublicKey(k.Key)
	if err != nil {
		return nil, fmt.Errorf("%w: JWT key %s: %w", ErrMalformed, k.ID, err)
	}
	key, ok := parsed.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, fmt.Errorf("%w: JWT key %s is not of P-256", ErrMalformed, k.ID)
	}
	again, err := x509.MarshalPKIXPublicKey(key)
	if err != nil || !bytes.Equal(again, k.Key) {
		return nil, fmt.Errorf("%w: JWT key %s is not in its one form", ErrMalformed, k.ID)
	}
	return key, nil
}

func validKeyID(id string) bool {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	return id != "" && len(id) <= maxJWTKeyID && strings.Trim(id, letters) == ""
}

// checkJWTKeys refuses what is no set of keys.
func checkJWTKeys(keys []JWTKey) error {
	if len(keys) > MaxJWTKeys {
		return fmt.Errorf("%w: %d JWT keys", ErrMalformed, len(keys))
	}
	seen := make(map[string]bool, len(keys))
	for _, k := range keys {
		if _, err := k.Public(); err != nil {
			return err
		}
		if seen[k.ID] {
			return fmt.Errorf("%w: two JWT keys %s", ErrMalformed, k.ID)
		}
		seen[k.ID] = true
	}
	return nil
}
