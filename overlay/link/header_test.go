package link

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/bulkhead-mesh/bulkhead/overlay"
)

// FuzzHeader states that the first byte alone chooses the handler, of datagrams and of streams, and that
// the rest reaches it untouched.
func FuzzHeader(f *testing.F) {
	f.Add([]byte(nil))
	f.Add([]byte{0})
	f.Add([]byte{byte(overlay.KindGossip)})
	f.Add([]byte{byte(overlay.KindPull), 1, 2, 3})
	f.Fuzz(func(t *testing.T, data []byte) {
		l := New(Options{})
		var called []overlay.Kind
		for _, kind := range []overlay.Kind{overlay.KindGossip, overlay.KindHint} {
			l.OnDatagram(kind, func(_ string, payload []byte) {
				called = append(called, kind)
				if !bytes.Equal(payload, data[1:]) {
					t.Errorf("payload %x of %x", payload, data)
				}
			})
		}
		l.deliver("h", data)
		known := len(data) > 0 && (overlay.Kind(data[0]) == overlay.KindGossip || overlay.Kind(data[0]) == overlay.KindHint)
		if known != (len(called) == 1 && called[0] == overlay.Kind(data[0])) {
			t.Errorf("%x was handled as %v", data, called)
		}
		if dropped := l.Stats()["unknownKind"] == 1; dropped == known {
			t.Errorf("%x: counted as unknown: %v", data, dropped)
		}

		r := bytes.NewReader(data)
		kind, err := readKind(r)
		if len(data) == 0 {
			if !errors.Is(err, io.EOF) {
				t.Errorf("empty stream: %v", err)
			}
		} else if err != nil || kind != data[0] || r.Len() != len(data)-1 {
			t.Errorf("kind %d, %v, %d bytes left of %d", kind, err, r.Len(), len(data))
		}
	})
}
