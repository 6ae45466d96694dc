package tunnel

import (
	"crypto/ecdh"
	"crypto/rand"
	"fmt"
)

// GenerateKey makes a WireGuard private key.
func GenerateKey() ([32]byte, error) {
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return [32]byte{}, fmt.Errorf("generate WireGuard key: %w", err)
	}
	return [32]byte(key.Bytes()), nil
}

// PublicKey returns the WireGuard public key of a private key.
func PublicKey(private [32]byte) ([32]byte, error) {
	key, err := ecdh.X25519().NewPrivateKey(private[:])
	if err != nil {
		return [32]byte{}, fmt.Errorf("derive WireGuard public key: %w", err)
	}
	return [32]byte(key.PublicKey().Bytes()), nil
}
