package authority

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"

	"github.com/bulkhead-mesh/bulkhead/segment"
)

const (
	tokenPrefix  = "bh1."
	tokenIDSize  = 8
	tokenSecret  = 32
	tokenSum     = 8    // bytes of SHA-256: a slip of the clipboard is certain to be noticed
	maxToken     = 4096 // characters
	maxAddresses = 8
)

// Token is what a joining host or an API client holds: where control is, how to know it, and a secret.
// Only its String form carries the secret.
type Token struct {
	Mesh      string
	Addresses []string // host:port of the control API
	Root      [32]byte // SHA-256 of the root certificate
	ID        string   // 16 hexadecimal digits
	Secret    []byte   // 32 bytes
}

// newToken makes a token with a fresh ID and secret.
func newToken(mesh string, addresses []string, root [32]byte) (Token, error) {
	random := make([]byte, tokenIDSize+tokenSecret)
	if _, err := rand.Read(random); err != nil {
		return Token{}, fmt.Errorf("make token: %w", err)
	}
	t := Token{Mesh: mesh, Addresses: addresses, Root: root,
		ID: hex.EncodeToString(random[:tokenIDSize]), Secret: random[tokenIDSize:]}
	tooLong := func(a string) bool { return len(a) > 255 }
	if _, err := ParseToken(t.String()); err != nil || slices.ContainsFunc(addresses, tooLong) {
		return Token{}, fmt.Errorf("make token: control addresses %q: want at most %d of host:port", addresses, maxAddresses)
	}
	return t, nil
}

// String is the form that is handed to people. It contains the secret.
func (t Token) String() string {
	id, err := hex.DecodeString(t.ID)
	if err != nil {
		return ""
	}
	b := appendString(nil, t.Mesh)
	b = append(b, byte(len(t.Addresses)))
	for _, a := range t.Addresses {
		b = appendString(b, a)
	}
	b = append(b, t.Root[:]...)
	b = append(b, id...)
	b = append(b, t.Secret...)
	sum := sha256.Sum256(b)
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(append(b, sum[:tokenSum]...))
}

// LogValue keeps the secret out of logs.
func (t Token) LogValue() slog.Value { return slog.StringValue("token/" + t.ID) }

func appendString(b []byte, s string) []byte {
	return append(append(b, byte(len(s))), s...)
}

// ParseToken decodes what String made; every other input is ErrTampered.
func ParseToken(s string) (Token, error) {
	text, ok := strings.CutPrefix(s, tokenPrefix)
	if !ok || len(s) > maxToken {
		return Token{}, ErrTampered
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(b) < tokenSum || strings.ContainsAny(text, "\r\n") {
		return Token{}, ErrTampered
	}
	body, sum := b[:len(b)-tokenSum], sha256.Sum256(b[:len(b)-tokenSum])
	if !bytes.Equal(sum[:tokenSum], b[len(body):]) {
		return Token{}, ErrTampered
	}
	r := reader{rest: body}
	t := Token{Mesh: string(r.take(int(r.byte())))}
	n := int(r.byte())
	if n > maxAddresses {
		return Token{}, ErrTampered
	}
	for range n {
		t.Addresses = append(t.Addresses, string(r.take(int(r.byte()))))
	}
	copy(t.Root[:], r.take(len(t.Root)))
	t.ID = hex.EncodeToString(r.take(tokenIDSize))
	t.Secret = bytes.Clone(r.take(tokenSecret))
	badAddress := func(a string) bool { _, _, err := net.SplitHostPort(a); return err != nil }
	if r.short || len(r.rest) != 0 || slices.ContainsFunc(t.Addresses, badAddress) || segment.ParseMeshName(t.Mesh) != nil {
		return Token{}, ErrTampered
	}
	return t, nil
}

// reader takes fields off a byte string; once short, always short.
type reader struct {
	rest  []byte
	short bool
}

func (r *reader) take(n int) []byte {
	if r.short || n > len(r.rest) {
		r.short = true
		return nil
	}
	b := r.rest[:n]
	r.rest = r.rest[n:]
	return b
}

func (r *reader) byte() byte {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

// hashSecret is the only form in which a secret is stored.
func hashSecret(secret []byte) []byte {
	sum := sha256.Sum256(secret)
	return sum[:]
}

// sameSecret compares in constant time; a nil hash, of an unknown token, costs the same and never matches.
func sameSecret(hash, secret []byte) bool {
	known := len(hash) == sha256.Size
	if !known {
		hash = make([]byte, sha256.Size)
	}
	return subtle.ConstantTimeCompare(hash, hashSecret(secret)) == 1 && known
}
