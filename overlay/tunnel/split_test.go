package tunnel

import (
	"encoding/binary"
	"testing"
)

func TestClassify(t *testing.T) {
	wg := func(head ...byte) []byte { return append(head, make([]byte, 32-len(head))...) }
	for name, c := range map[string]struct {
		packet []byte
		want   class
	}{
		"empty":                      {nil, foreign},
		"handshake initiation":       {append(wg(1), make([]byte, 116)...), wireGuard},
		"keepalive":                  {wg(4), wireGuard},
		"shorter than any message":   {wg(4)[:31], foreign},
		"reserved byte set":          {wg(4, 0, 1), foreign},
		"type zero":                  {wg(0), foreign},
		"type five":                  {wg(5), foreign},
		"STUN-like":                  {wg(0x3f), foreign},
		"QUIC short header":          {[]byte{0x40}, quic},
		"QUIC long header":           {[]byte{0xc3, 0, 0, 0, 1}, quic},
		"QUIC without its fixed bit": {[]byte{0x80}, quic},
	} {
		if got := classify(c.packet); got != c.want {
			t.Errorf("%s: got class %d, want %d", name, got, c.want)
		}
	}
}

// FuzzClassify states that WireGuard gets exactly what its device could understand, and that no packet
// with a first byte of QUIC's range is kept from QUIC.
func FuzzClassify(f *testing.F) {
	for _, seed := range [][]byte{nil, {1}, {4, 0, 0, 0}, {0x40}, {0xff}, make([]byte, 148), append([]byte{1, 0, 0, 0}, make([]byte, 144)...)} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, packet []byte) {
		got := classify(packet)
		understood := false
		if len(packet) >= 32 {
			kind := binary.LittleEndian.Uint32(packet)
			understood = kind >= 1 && kind <= 4
		}
		if understood != (got == wireGuard) {
			t.Errorf("%x: class %d, but WireGuard understands it: %v", packet, got, understood)
		}
		if toQUIC := len(packet) > 0 && packet[0] >= 0x40; toQUIC != (got == quic) {
			t.Errorf("%x: class %d, but it is in QUIC's range: %v", packet, got, toQUIC)
		}
	})
}
