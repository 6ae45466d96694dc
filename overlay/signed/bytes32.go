package signed

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
)

// PublicKey is a WireGuard public key. Its text is base64, as WireGuard's tools write it.
type PublicKey [32]byte

// MarshalText implements encoding.TextMarshaler.
func (k PublicKey) MarshalText() ([]byte, error) {
	return base64.StdEncoding.AppendEncode(nil, k[:]), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (k *PublicKey) UnmarshalText(text []byte) error {
	b, err := base64.StdEncoding.AppendDecode(nil, text)
	return fill(k[:], b, err)
}

// Digest is a SHA-256. Its text is hexadecimal.
type Digest [32]byte

// MarshalText implements encoding.TextMarshaler.
func (d Digest) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, d[:]), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Digest) UnmarshalText(text []byte) error {
	b, err := hex.AppendDecode(nil, text)
	return fill(d[:], b, err)
}

func fill(out, b []byte, err error) error {
	if err != nil || len(b) != len(out) {
		return fmt.Errorf("%w: not %d bytes", ErrMalformed, len(out))
	}
	copy(out, b)
	return nil
}
