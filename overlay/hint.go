package overlay

import (
	"encoding/binary"
	"errors"
)

// Hint is what a host says about itself in gossip: a claim that tells others what to pull, never a fact.
type Hint struct {
	RecordSequence uint64
	RecordDigest   [32]byte // SHA-256 of the record's signed bytes
	PolicyVersion  uint64   // newest that it holds
	PolicyDigest   [32]byte
	Enforced       uint64 // policy version in its kernel; 0 while not ready
}

const (
	hintFormat = 1
	// HintSize is the length of an encoded hint in bytes, far below memberlist's 512 bytes of meta.
	HintSize = 1 + 8 + 32 + 8 + 32 + 8
)

// ErrHint is returned for bytes that are not exactly one hint.
var ErrHint = errors.New("not a hint")

// AppendBinary appends the wire form: a format byte, then the fields in order, big endian.
func (h Hint) AppendBinary(b []byte) ([]byte, error) {
	b = append(b, hintFormat)
	b = binary.BigEndian.AppendUint64(b, h.RecordSequence)
	b = append(b, h.RecordDigest[:]...)
	b = binary.BigEndian.AppendUint64(b, h.PolicyVersion)
	b = append(b, h.PolicyDigest[:]...)
	return binary.BigEndian.AppendUint64(b, h.Enforced), nil
}

// ParseHint decodes the wire form; every other input is ErrHint.
func ParseHint(b []byte) (Hint, error) {
	if len(b) != HintSize || b[0] != hintFormat {
		return Hint{}, ErrHint
	}
	var h Hint
	h.RecordSequence = binary.BigEndian.Uint64(b[1:])
	copy(h.RecordDigest[:], b[9:])
	h.PolicyVersion = binary.BigEndian.Uint64(b[41:])
	copy(h.PolicyDigest[:], b[49:])
	h.Enforced = binary.BigEndian.Uint64(b[81:])
	return h, nil
}
