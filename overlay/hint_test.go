package overlay

import (
	"bytes"
	"testing"
)

// FuzzParseHint: what parses marshals to the same bytes, so a hint has one form.
func FuzzParseHint(f *testing.F) {
	seed, _ := Hint{RecordSequence: 7, PolicyVersion: 3, Enforced: 2}.AppendBinary(nil)
	f.Add(seed)
	f.Add(seed[:len(seed)-1])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ParseHint(b)
		if err != nil {
			if h != (Hint{}) {
				t.Fatalf("ParseHint returned %+v with %v", h, err)
			}
			return
		}
		again, err := h.AppendBinary(nil)
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%x became %x, %v", b, again, err)
		}
	})
}

func TestHintFitsGossip(t *testing.T) {
	b, err := Hint{RecordSequence: ^uint64(0), PolicyVersion: ^uint64(0), Enforced: ^uint64(0)}.AppendBinary(nil)
	if err != nil || len(b) != HintSize || HintSize > 512 {
		t.Fatalf("hint of %d bytes, %v; want %d, at most 512", len(b), err, HintSize)
	}
}
