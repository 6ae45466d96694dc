package signed

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/secure-systems-lab/go-securesystemslib/dsse"

	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
)

const (
	typeRecord = "application/vnd.bulkhead.record+json"
	typePolicy = "application/vnd.bulkhead.policy+json"
)

// Why something signed is refused. Errors wrap one of these, or one of package identity: ErrMalformed is that.
var (
	ErrMalformed = identity.ErrMalformed
	ErrSignature = errors.New("signature does not fit")
	ErrOlder     = errors.New("not newer than what is held")
	ErrFork      = errors.New("contradicts what is held")
)

type signer struct{ key identity.Key }

// Sign implements dsse.Signer.
func (s signer) Sign(_ context.Context, data []byte) ([]byte, error) {
	return ed25519.Sign(ed25519.PrivateKey(s.key), data), nil
}

// KeyID implements dsse.Signer. Who signed follows from a certificate, so there is no other name for it.
func (signer) KeyID() (string, error) { return "", nil }

type verifier struct{ key ed25519.PublicKey }

// Verify implements dsse.Verifier.
func (v verifier) Verify(_ context.Context, data, sig []byte) error {
	if !ed25519.Verify(v.key, data, sig) {
		return ErrSignature
	}
	return nil
}

// KeyID implements dsse.Verifier.
func (verifier) KeyID() (string, error) { return "", nil }

// Public implements dsse.Verifier.
func (v verifier) Public() crypto.PublicKey { return v.key }

// seal signs body as a payload of the given type.
func seal(payloadType string, body []byte, key identity.Key) (*dsse.Envelope, error) {
	if len(key) != ed25519.PrivateKeySize {
		return nil, errors.New("there is no key")
	}
	s, err := dsse.NewEnvelopeSigner(signer{key})
	if err != nil {
		return nil, err
	}
	return s.SignPayload(context.Background(), payloadType, body)
}

// payload is the content of an envelope before its signature is checked: which key must have signed may be
// inside. The envelope has one form: one signature, no key ID (nothing would vouch for it), plain base64.
func payload(e *dsse.Envelope, payloadType string) ([]byte, error) {
	if e.PayloadType != payloadType {
		return nil, fmt.Errorf("%w: payload type %.80q, not %q", ErrMalformed, e.PayloadType, payloadType)
	}
	if len(e.Signatures) != 1 || e.Signatures[0].KeyID != "" {
		return nil, fmt.Errorf("%w: envelope needs one signature, without key ID", ErrMalformed)
	}
	if !plain(e.Payload) || !plain(e.Signatures[0].Sig) {
		return nil, fmt.Errorf("%w: base64 is not in its one form", ErrMalformed)
	}
	body, err := e.DecodeB64Payload()
	if err != nil {
		return nil, fmt.Errorf("%w: payload: %w", ErrMalformed, err)
	}
	return body, nil
}

// plain says whether s is what encoding some bytes in standard base64 gives.
func plain(s string) bool {
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	return err == nil && base64.StdEncoding.EncodedLen(len(b)) == len(s)
}

// check verifies the envelope's signature.
func check(e *dsse.Envelope, key ed25519.PublicKey) error {
	v, err := dsse.NewEnvelopeVerifier(verifier{key})
	if err != nil {
		return err
	}
	if _, err := v.Verify(context.Background(), e); err != nil {
		return ErrSignature // the cause only counts signatures
	}
	return nil
}

// decode takes exactly the JSON that json.Marshal gives: no unknown, repeated or differently spelt member, no
// trailing data, no other spacing.
func decode(body []byte, out any) error {
	if err := json.Unmarshal(body, out); err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	again, err := json.Marshal(out)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if !bytes.Equal(again, body) {
		return fmt.Errorf("%w: JSON is not in its one form", ErrMalformed)
	}
	return nil
}
