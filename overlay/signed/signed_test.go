package signed_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"github.com/secure-systems-lab/go-securesystemslib/dsse"

	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity/identitytest"
	"github.com/bulkhead-mesh/bulkhead/overlay/signed"
)

const mesh = "lab.test"

var (
	now   = identitytest.Now
	addr4 = netip.MustParseAddr("10.201.0.3")
	addr6 = netip.MustParseAddr("fd12:3456:789a::3")
)

// world is a mesh with a host h2, its agent scout, and a signer of policy.
type world struct {
	*identitytest.CA
	host, scout, signer identitytest.Credential
}

func newWorld(t testing.TB) *world {
	t.Helper()
	ca := identitytest.New(t, mesh)
	return &world{CA: ca, host: ca.Host("h2"), scout: ca.Agent("scout", "h2", map[string]string{"function": "research"}, addr4, addr6), signer: ca.Signer()}
}

func (w *world) record() signed.Record {
	return signed.Record{
		Mesh: mesh, Host: "h2", Sequence: 7, Issued: now, Expires: now.Add(identitytest.Life), Certificate: w.host.Chain,
		WireGuard: identitytest.WireGuard("h2"),
		Agents:    []signed.AgentEntry{{Name: "scout", Certificate: w.scout.Chain}},
		Endpoints: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:51900"), netip.MustParseAddrPort("[2001:db8::1]:51900")},
	}
}

func (w *world) policy() signed.Policy {
	return signed.Policy{
		Mesh: mesh, Version: 3, Parent: signed.Digest{9}, Issued: now, Author: "operator/ann",
		Document:    "sensitivity: [public, internal]\nsegments:\n  - name: all\n    match: {function: research}\n",
		Revocations: []identity.Revocation{{ID: "host/h9", Before: now, Reason: "<stolen>"}},
		JWTKeys:     []signed.JWTKey{{ID: "k-1_Z", Key: der(p256)}},
	}
}

// Public keys, PKIX in base64. The compressed one is of P-256, too, in a form that it is not written in.
const (
	p256       = "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEVjxHLqiOpOeWpD4FjcBO6YVeBgyc7xO3XJ/EjIgitYjl4/gCYXFZZQyvzU5u+wCsmgPR2E8VoneWL/hphxPlZw=="
	p384       = "MHYwEAYHKoZIzj0CAQYFK4EEACIDYgAEVeOylMYgRr+/2bTWkYjQxojExVKzYOwi2JH9RjY5/a/46ZV/kEksExZ06RYXX4KJiVXduQRDALVheBnIzmYZB0hapFj6MUxOuqqLofttBIcrglW7jsAz9mvABfzWuJfb"
	compressed = "MDkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDIgADny5hElCEolN/5kW33dP8JjMzA1lGxqkXwNGCjWfsdzE="
)

func der(text string) []byte {
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		panic(err)
	}
	return b
}

func (w *world) signRecord(t testing.TB, r signed.Record) []byte {
	t.Helper()
	raw, err := signed.SignRecord(r, w.host.Key)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func (w *world) signPolicy(t testing.TB, p signed.Policy) []byte {
	t.Helper()
	raw, err := signed.SignPolicy(p, w.signer.Key, w.signer.Chain)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

type envelope = dsse.Envelope

// bundle is the form of a signed policy.
type bundle struct {
	Envelope dsse.Envelope `json:"envelope"`
	Signer   [][]byte      `json:"signer"`
}

func parse[T any](t testing.TB, raw []byte) (v T) {
	t.Helper()
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func marshal(t testing.TB, v any) []byte {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// keyPair signs by the same library, without our own adaptor between.
type keyPair struct{ key identity.Key }

func (k keyPair) Sign(_ context.Context, data []byte) ([]byte, error) {
	return ed25519.Sign(ed25519.PrivateKey(k.key), data), nil
}
func (keyPair) KeyID() (string, error)     { return "", nil }
func (k keyPair) Public() crypto.PublicKey { return k.key.Public() }

// seal signs bytes that SignRecord and SignPolicy would not give.
func seal(t testing.TB, payloadType, body string, key identity.Key) dsse.Envelope {
	t.Helper()
	s, err := dsse.NewEnvelopeSigner(keyPair{key})
	if err != nil {
		t.Fatal(err)
	}
	e, err := s.SignPayload(context.Background(), payloadType, []byte(body))
	if err != nil {
		t.Fatal(err)
	}
	return *e
}

// respell lists envelopes that say the same in another way, or in a wrong one, with what was done. The
// signature still fits all of them by the rules of DSSE alone, unless it says otherwise.
func respell(t testing.TB, e dsse.Envelope) map[string]dsse.Envelope {
	t.Helper()
	out := map[string]dsse.Envelope{}
	change := func(name string, edit func(*dsse.Envelope)) {
		other := e
		other.Signatures = append([]dsse.Signature{}, e.Signatures...)
		edit(&other)
		out[name] = other
	}
	url := func(s string) string { return strings.NewReplacer("+", "-", "/", "_").Replace(s) }
	change("key ID", func(e *dsse.Envelope) { e.Signatures[0].KeyID = "x" })
	change("signature twice", func(e *dsse.Envelope) { e.Signatures = append(e.Signatures, e.Signatures[0]) })
	change("signature of another beside it", func(e *dsse.Envelope) {
		e.Signatures = append(e.Signatures, dsse.Signature{Sig: base64.StdEncoding.EncodeToString(make([]byte, 64))})
	})
	change("no signature", func(e *dsse.Envelope) { e.Signatures = nil })
	change("payload with a line end", func(e *dsse.Envelope) { e.Payload = e.Payload[:4] + "\n" + e.Payload[4:] })
	change("signature with a line end", func(e *dsse.Envelope) { e.Signatures[0].Sig += "\n" })
	change("signature with other trailing bits", func(e *dsse.Envelope) {
		s := e.Signatures[0].Sig // 64 bytes: the last character before == holds four unused bits
		e.Signatures[0].Sig = s[:85] + string(s[85]+1) + "=="
	})
	change("signature in URL base64", func(e *dsse.Envelope) { e.Signatures[0].Sig = url(e.Signatures[0].Sig) + "\n" })
	change("other payload type", func(e *dsse.Envelope) { e.PayloadType = "application/json" })
	return out
}

// rewrite lists other JSON of the same content.
func rewrite(raw []byte, member string) map[string][]byte {
	text := string(raw)
	quoted := `"` + member + `":`
	return map[string][]byte{
		"space before":         []byte(" " + text),
		"line end":             []byte(text + "\n"),
		"trailing value":       []byte(text + "{}"),
		"space inside":         []byte(strings.Replace(text, ":", ": ", 1)),
		"unknown member":       []byte(`{"x":1,` + text[1:]),
		"other case":           []byte(strings.Replace(text, quoted, `"`+strings.ToUpper(member)+`":`, 1)),
		"escaped letter":       []byte(strings.Replace(text, quoted, `"\u00`+hexByte(member[0])+member[1:]+`":`, 1)),
		"member twice":         []byte(`{` + quoted + `null,` + text[1:]),
		"array, not an object": []byte("[" + text + "]"),
		"null":                 []byte("null"),
		"nothing":              nil,
		"cut short":            raw[:len(raw)-1],
	}
}

func hexByte(b byte) string {
	const digits = "0123456789abcdef"
	return string([]byte{digits[b>>4], digits[b&15]})
}

// flips calls fn with texts that differ from raw in one bit: every fifth outside of the payload, and a twelfth of these
// inside, whose bytes the signature protects alike.
func flips(t testing.TB, raw []byte, fn func(bit int, flipped []byte)) {
	t.Helper()
	const member = `"payload":"`
	begin := 8 * (bytes.Index(raw, []byte(member)) + len(member))
	end := begin + 8*bytes.IndexByte(raw[begin/8:], '"')
	if end-begin < 2*len(raw) {
		t.Fatalf("the payload is no more than %d bits of %d bytes", end-begin, len(raw))
	}
	for bit := 0; bit < 8*len(raw); bit += 5 {
		if bit >= begin && bit < end && bit%61 >= 5 {
			continue
		}
		flipped := bytes.Clone(raw)
		flipped[bit/8] ^= 1 << (bit % 8)
		fn(bit, flipped)
	}
}
