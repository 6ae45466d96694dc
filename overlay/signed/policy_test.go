package signed_test

import (
	"bytes"
	"crypto/elliptic"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity/identitytest"
	"github.com/bulkhead-mesh/bulkhead/overlay/signed"
)

const policyType = "application/vnd.bulkhead.policy+json"

func TestPolicyRoundTrip(t *testing.T) {
	w := newWorld(t)
	want := w.policy()
	in := w.policy()
	zone := time.FixedZone("", 7200)
	in.Issued, in.Revocations[0].Before = in.Issued.In(zone), in.Revocations[0].Before.In(zone)
	raw := w.signPolicy(t, in)
	got, err := signed.OpenPolicy(raw, w.Trust(), now)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got.Policy); diff != "" {
		t.Error(diff)
	}
	if len(got.Parsed.Segments) != 1 || got.Parsed.Segments[0].Name != "all" || !bytes.Equal(got.Raw, raw) {
		t.Errorf("got %+v", got)
	}
	if key, err := got.JWTKeys[0].Public(); err != nil || key.Curve != elliptic.P256() {
		t.Errorf("JWT key %v, %v", key, err)
	}
	none := w.policy()
	none.JWTKeys = nil // as an older program signs
	if _, err := signed.OpenPolicy(w.signPolicy(t, none), w.Trust(), now); err != nil {
		t.Error(err)
	}
	if in.Revocations[0].Before.Location() != zone {
		t.Error("signing changed what it was given")
	}
}

func TestOpenPolicyRefusesContent(t *testing.T) {
	w := newWorld(t)
	for name, tt := range map[string]struct {
		change func(p *signed.Policy)
		want   error // nil is ErrMalformed
	}{
		"of another mesh":       {func(p *signed.Policy) { p.Mesh = "other.test" }, identity.ErrForeign},
		"version 0":             {func(p *signed.Policy) { p.Version = 0 }, nil},
		"not a policy":          {func(p *signed.Policy) { p.Document = "hello: [" }, nil},
		"an unknown field":      {func(p *signed.Policy) { p.Document = "segmints: []\n" }, nil},
		"revocation of nothing": {func(p *signed.Policy) { p.Revocations[0].ID = "" }, nil},
		"revocation of a mesh":  {func(p *signed.Policy) { p.Revocations[0].ID = "host" }, nil},
		"revocation of all":     {func(p *signed.Policy) { p.Revocations[0].ID = "host/*" }, nil},
		"revocation of a URI":   {func(p *signed.Policy) { p.Revocations[0].ID = "spiffe://lab.test/host/h1" }, nil},
		"revocation of policy":  {func(p *signed.Policy) { p.Revocations[0].ID = "policy/1" }, nil},
		"revocation at no time": {func(p *signed.Policy) { p.Revocations[0].Before = time.Time{} }, nil},
		"JWT key without ID":    {func(p *signed.Policy) { p.JWTKeys[0].ID = "" }, nil},
		"JWT key with any ID":   {func(p *signed.Policy) { p.JWTKeys[0].ID = "a/b" }, nil},
		"JWT key with long ID":  {func(p *signed.Policy) { p.JWTKeys[0].ID = strings.Repeat("k", 65) }, nil},
		"two JWT keys of an ID": {func(p *signed.Policy) { p.JWTKeys = append(p.JWTKeys, p.JWTKeys[0]) }, nil},
		"too many JWT keys": {func(p *signed.Policy) {
			for i := range signed.MaxJWTKeys {
				p.JWTKeys = append(p.JWTKeys, signed.JWTKey{ID: fmt.Sprint(i), Key: p.JWTKeys[0].Key})
			}
		}, nil},
		"JWT key of nothing":    {func(p *signed.Policy) { p.JWTKeys[0].Key = nil }, nil},
		"JWT key of P-384":      {func(p *signed.Policy) { p.JWTKeys[0].Key = der(p384) }, nil},
		"JWT key, compressed":   {func(p *signed.Policy) { p.JWTKeys[0].Key = der(compressed) }, nil},
		"JWT key with more":     {func(p *signed.Policy) { p.JWTKeys[0].Key = append(der(p256), 0) }, nil},
		"JWT key off the curve": {func(p *signed.Policy) { p.JWTKeys[0].Key[90] ^= 1 }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			p := w.policy()
			tt.change(&p)
			if tt.want == nil {
				tt.want = signed.ErrMalformed
			}
			if _, err := signed.OpenPolicy(w.signPolicy(t, p), w.Trust(), now); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestOpenPolicyRefusesForm(t *testing.T) {
	w := newWorld(t)
	raw := w.signPolicy(t, w.policy())
	refuse := func(name string, raw []byte) {
		t.Helper()
		if _, err := signed.OpenPolicy(raw, w.Trust(), now); !errors.Is(err, signed.ErrMalformed) {
			t.Errorf("%s: got %v, want ErrMalformed", name, err)
		}
	}
	for name, other := range rewrite(raw, "envelope") {
		refuse("bundle: "+name, other)
	}
	b := parse[bundle](t, raw)
	for name, other := range respell(t, b.Envelope) {
		refuse(name, marshal(t, bundle{other, b.Signer}))
	}
	body, err := b.Envelope.DecodeB64Payload()
	if err != nil {
		t.Fatal(err)
	}
	for name, other := range rewrite(body, "mesh") {
		refuse("payload: "+name, marshal(t, bundle{seal(t, policyType, string(other), w.signer.Key), b.Signer}))
	}
	refuse("no signer", marshal(t, bundle{b.Envelope, nil}))
	refuse("root beside the signer", marshal(t, bundle{b.Envelope, append(slices.Clone(b.Signer), w.Root.Certificate().Raw)}))
	refuse("too long", append(raw, make([]byte, signed.MaxPolicy)...))
}

func TestOpenPolicyRefusesSigner(t *testing.T) {
	w := newWorld(t)
	foreign := identitytest.New(t, mesh).Signer()
	operator := w.Operator("ann", "admin")
	another := w.Signer()
	for name, tt := range map[string]struct {
		key   identity.Key
		chain [][]byte
		want  error
	}{
		"of another root": {foreign.Key, foreign.Chain, identity.ErrForeign},
		"an operator":     {operator.Key, operator.Chain, identity.ErrForeign},
		"a host":          {w.host.Key, w.host.Chain, identity.ErrForeign},
		"with other key":  {another.Key, w.signer.Chain, signed.ErrSignature},
	} {
		raw, err := signed.SignPolicy(w.policy(), tt.key, tt.chain)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := signed.OpenPolicy(raw, w.Trust(), now); !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, want %q", name, err, tt.want)
		}
	}
	raw := w.signPolicy(t, w.policy())
	if _, err := signed.OpenPolicy(raw, w.Trust(), now.Add(identitytest.Life+time.Hour)); !errors.Is(err, identity.ErrExpired) {
		t.Errorf("expired signer: got %v", err)
	}
}

func TestSignPolicyRefuses(t *testing.T) {
	w := newWorld(t)
	latin := w.policy()
	latin.Document = "# caf\xe9\n"
	if _, err := signed.SignPolicy(latin, w.signer.Key, w.signer.Chain); err == nil {
		t.Error("a document was signed that the payload cannot hold")
	}
	long := w.policy()
	long.Document = strings.Repeat("#\n", signed.MaxPolicy/3)
	if _, err := signed.SignPolicy(long, w.signer.Key, w.signer.Chain); err == nil {
		t.Error("a policy was signed that nobody would read")
	}
}

func TestSucceeds(t *testing.T) {
	w := newWorld(t)
	version := func(v uint64, parent [32]byte, author string) *signed.VerifiedPolicy {
		p := w.policy()
		p.Version, p.Parent, p.Author = v, parent, author
		opened, err := signed.OpenPolicy(w.signPolicy(t, p), w.Trust(), now)
		if err != nil {
			t.Fatal(err)
		}
		return opened
	}
	v5 := version(5, [32]byte{}, "ann")
	for name, tt := range map[string]struct {
		next *signed.VerifiedPolicy
		want error
	}{
		"next":               {version(6, v5.Digest, "ann"), nil},
		"after some":         {version(9, [32]byte{1}, "ann"), nil},
		"far":                {version(5+1<<32, [32]byte{1}, "ann"), nil},
		"itself":             {v5, signed.ErrOlder},
		"signed again":       {version(5, [32]byte{}, "ann"), signed.ErrOlder},
		"before":             {version(4, [32]byte{}, "ann"), signed.ErrOlder},
		"first":              {version(1, [32]byte{}, "ann"), signed.ErrOlder},
		"other content":      {version(5, [32]byte{}, "bob"), signed.ErrFork},
		"next of another":    {version(6, [32]byte{1}, "ann"), signed.ErrFork},
		"too far":            {version(5+1<<32+1, [32]byte{1}, "ann"), signed.ErrFork},
		"the last that fits": {version(1<<64-1, [32]byte{1}, "ann"), signed.ErrFork},
	} {
		if err := tt.next.Succeeds(v5); !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, want %v", name, err, tt.want)
		}
	}
}

// Whoever changes a bit of a policy on its way makes it void.
func TestOneBitOfAPolicy(t *testing.T) {
	w := newWorld(t)
	raw := w.signPolicy(t, w.policy())
	flips(t, raw, func(bit int, flipped []byte) {
		if _, err := signed.OpenPolicy(flipped, w.Trust(), now); err == nil {
			t.Errorf("bit %d does not matter: %q", bit, flipped[max(0, bit/8-20):min(len(flipped), bit/8+20)])
		}
	})
}
