package signed_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity/identitytest"
	"github.com/bulkhead-mesh/bulkhead/overlay/signed"
)

const recordType = "application/vnd.bulkhead.record+json"

var byValue = cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{})

func TestRecordRoundTrip(t *testing.T) {
	w := newWorld(t)
	want := w.record()
	in := want
	in.Issued = in.Issued.In(time.FixedZone("", 7200))
	raw := w.signRecord(t, in)
	got, err := signed.OpenRecord(raw, w.Trust(), now)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got.Record, byValue); diff != "" {
		t.Error(diff)
	}
	if got.HostCert.Name != "h2" || len(got.AgentCerts) != 1 || got.AgentCerts[0].Name != "scout" || !bytes.Equal(got.Raw, raw) {
		t.Errorf("got %+v", got)
	}
	wireguard := identitytest.WireGuard("h2")
	for _, part := range []string{`"wireguard":"` + base64.StdEncoding.EncodeToString(wireguard[:]) + `"`, `"192.0.2.1:51900"`, `"sequence":7`, `"issued":"2026-06-01T12:00:00Z"`} {
		body, _ := base64.StdEncoding.DecodeString(parse[map[string]any](t, raw)["payload"].(string))
		if !strings.Contains(string(body), part) {
			t.Errorf("the payload does not hold %s: %s", part, body)
		}
	}
}

// The digest is of what is said, not of how it was signed.
func TestRecordDigest(t *testing.T) {
	w := newWorld(t)
	open := func(r signed.Record) [32]byte {
		v, err := signed.OpenRecord(w.signRecord(t, r), w.Trust(), now)
		if err != nil {
			t.Fatal(err)
		}
		return v.Digest
	}
	other := w.record()
	other.Sequence++
	first, again := open(w.record()), open(w.record())
	if first != again || first == open(other) {
		t.Error("digest and content do not go together")
	}
}

func TestBareRecordOpens(t *testing.T) {
	w := newWorld(t)
	r := w.record()
	r.Agents, r.Endpoints = nil, nil
	if _, err := signed.OpenRecord(w.signRecord(t, r), w.Trust(), now); err != nil {
		t.Error(err)
	}
}

func TestOpenRecordRefusesContent(t *testing.T) {
	w := newWorld(t)
	other := identitytest.New(t, mesh)
	endpoint := func(s string) func(*signed.Record) {
		return func(r *signed.Record) { r.Endpoints = []netip.AddrPort{netip.MustParseAddrPort(s)} }
	}
	entry := func(name string, c identitytest.Credential) func(*signed.Record) {
		return func(r *signed.Record) {
			r.Agents = append(r.Agents, signed.AgentEntry{Name: name, Certificate: c.Chain})
		}
	}
	for name, tt := range map[string]struct {
		change func(r *signed.Record)
		want   error // nil is ErrMalformed
	}{
		"of another mesh":         {func(r *signed.Record) { r.Mesh = "other.test" }, identity.ErrForeign},
		"about another host":      {func(r *signed.Record) { r.Host = "h1" }, identity.ErrForeign},
		"without certificate":     {func(r *signed.Record) { r.Certificate = nil }, nil},
		"foreign certificate":     {func(r *signed.Record) { r.Certificate = other.Host("h2").Chain }, identity.ErrForeign},
		"an agent's certificate":  {func(r *signed.Record) { r.Certificate = w.scout.Chain }, identity.ErrForeign},
		"another's certificate":   {func(r *signed.Record) { r.Host, r.Certificate = "h1", w.Host("h1").Chain }, signed.ErrSignature},
		"expired":                 {func(r *signed.Record) { r.Issued, r.Expires = now.Add(-time.Hour), now.Add(-identity.Skew-time.Second) }, identity.ErrExpired},
		"never expires":           {func(r *signed.Record) { r.Expires = now.Add(identitytest.Life + time.Second) }, nil},
		"ends before it begins":   {func(r *signed.Record) { r.Issued, r.Expires = now.Add(time.Hour), now }, nil},
		"sequence 0":              {func(r *signed.Record) { r.Sequence = 0 }, nil},
		"last sequence":           {func(r *signed.Record) { r.Sequence = math.MaxUint64 }, nil},
		"no WireGuard key":        {func(r *signed.Record) { r.WireGuard = signed.PublicKey{} }, nil},
		"another's WireGuard key": {func(r *signed.Record) { r.WireGuard = identitytest.WireGuard("h1") }, nil},
		"nine endpoints": {func(r *signed.Record) {
			for len(r.Endpoints) < 9 {
				r.Endpoints = append(r.Endpoints, r.Endpoints[0])
			}
		}, nil},
		"loopback endpoint":     {endpoint("127.0.0.1:51900"), nil},
		"v6 loopback endpoint":  {endpoint("[::1]:51900"), nil},
		"link-local endpoint":   {endpoint("169.254.169.254:80"), nil},
		"zoned endpoint":        {endpoint("[2001:db8::1%eth0]:51900"), nil},
		"v6 link-local":         {endpoint("[fe80::1]:51900"), nil},
		"multicast endpoint":    {endpoint("224.0.0.1:51900"), nil},
		"broadcast endpoint":    {endpoint("255.255.255.255:51900"), nil},
		"unspecified endpoint":  {endpoint("0.0.0.0:51900"), nil},
		"v4 in v6 endpoint":     {endpoint("[::ffff:192.0.2.1]:51900"), nil},
		"endpoint port 0":       {endpoint("192.0.2.1:0"), nil},
		"no endpoint":           {func(r *signed.Record) { r.Endpoints = []netip.AddrPort{{}} }, nil},
		"agent twice":           {func(r *signed.Record) { r.Agents = append(r.Agents, r.Agents[0]) }, nil},
		"agent's address twice": {entry("twin", w.Agent("twin", "h2", nil, addr6)), nil},
		"agent of another host": {entry("far", w.Agent("far", "h1", nil, netip.MustParseAddr("10.201.0.9"))), identity.ErrForeign},
		"agent by another name": {entry("near", w.Agent("far", "h2", nil, netip.MustParseAddr("10.201.0.9"))), identity.ErrForeign},
		"agent of a foreign CA": {entry("far", other.Agent("far", "h2", nil, netip.MustParseAddr("10.201.0.9"))), identity.ErrForeign},
		"a host as agent":       {entry("h2", w.host), identity.ErrForeign},
		"agent uncertified":     {entry("far", identitytest.Credential{}), nil},
		"agent without name":    {entry("", w.scout), nil},
		"65 agents": {func(r *signed.Record) {
			for i := range 64 {
				entry(fmt.Sprintf("a%d", i), identitytest.Credential{})(r)
			}
		}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			r := w.record()
			tt.change(&r)
			if tt.want == nil {
				tt.want = signed.ErrMalformed
			}
			if _, err := signed.OpenRecord(w.signRecord(t, r), w.Trust(), now); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestOpenRecordRefusesForm(t *testing.T) {
	w := newWorld(t)
	raw := w.signRecord(t, w.record())
	refuse := func(name string, raw []byte) {
		t.Helper()
		if _, err := signed.OpenRecord(raw, w.Trust(), now); !errors.Is(err, signed.ErrMalformed) {
			t.Errorf("%s: got %v, want ErrMalformed", name, err)
		}
	}
	for name, other := range rewrite(raw, "payload") {
		refuse("envelope: "+name, other)
	}
	e := parse[envelope](t, raw)
	for name, other := range respell(t, e) {
		refuse(name, marshal(t, other))
	}
	body, err := e.DecodeB64Payload()
	if err != nil {
		t.Fatal(err)
	}
	for name, other := range rewrite(body, "mesh") {
		refuse("payload: "+name, marshal(t, seal(t, recordType, string(other), w.host.Key)))
	}
	refuse("too long", append(raw, make([]byte, signed.MaxRecord)...))
}

func TestOpenRecordRefusesOtherSigner(t *testing.T) {
	w := newWorld(t)
	raw, err := signed.SignRecord(w.record(), w.scout.Key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := signed.OpenRecord(raw, w.Trust(), now); !errors.Is(err, signed.ErrSignature) {
		t.Errorf("got %v, want ErrSignature", err)
	}
}

// A signature for one purpose is none for another.
func TestOpenRecordRefusesOtherType(t *testing.T) {
	w := newWorld(t)
	e := parse[envelope](t, w.signRecord(t, w.record()))
	body, err := e.DecodeB64Payload()
	if err != nil {
		t.Fatal(err)
	}
	other := seal(t, "application/vnd.bulkhead.policy+json", string(body), w.host.Key)
	if _, err := signed.OpenRecord(marshal(t, other), w.Trust(), now); !errors.Is(err, signed.ErrMalformed) {
		t.Errorf("got %v, want ErrMalformed", err)
	}
	other.PayloadType = recordType
	if _, err := signed.OpenRecord(marshal(t, other), w.Trust(), now); !errors.Is(err, signed.ErrSignature) {
		t.Errorf("got %v, want ErrSignature", err)
	}
}

func TestSignRecordRefuses(t *testing.T) {
	w := newWorld(t)
	big := w.record()
	big.Certificate = [][]byte{make([]byte, signed.MaxRecord)}
	if _, err := signed.SignRecord(big, w.host.Key); err == nil {
		t.Error("a record was signed that nobody would read")
	}
	if _, err := signed.SignRecord(w.record(), nil); err == nil {
		t.Error("a record was signed without a key")
	}
}

// One agent that is void or has expired does not take the others with it.
func TestOpenRecordLeavesVoidAgentsOut(t *testing.T) {
	w := newWorld(t)
	r := w.record()
	old := w.Issue(identity.Request{
		ID: identity.ID{Mesh: mesh, Kind: identity.KindAgent, Name: "old"}, Claims: identity.Claims{Host: "h2"},
		Addresses: []netip.Addr{netip.MustParseAddr("10.201.0.8")}, Life: time.Minute,
	})
	r.Agents = append(r.Agents, signed.AgentEntry{Name: "old", Certificate: old.Chain})
	later := now.Add(time.Hour)
	raw := w.signRecord(t, r)
	names := func(v *signed.VerifiedRecord) []string {
		var all []string
		for _, c := range v.AgentCerts {
			all = append(all, c.Name)
		}
		return all
	}
	v, err := signed.OpenRecord(raw, w.Trust(), later)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"scout"}, names(v)); diff != "" {
		t.Errorf("when one has expired: %s", diff)
	}
	void := w.Trust(identity.Revocation{ID: "agent/scout", Before: now.Add(time.Second)})
	if v, err = signed.OpenRecord(raw, void, now); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"old"}, names(v)); diff != "" {
		t.Errorf("when one is revoked: %s", diff)
	}
}

func TestRecheck(t *testing.T) {
	w := newWorld(t)
	v, err := signed.OpenRecord(w.signRecord(t, w.record()), w.Trust(), now)
	if err != nil {
		t.Fatal(err)
	}
	after := now.Add(time.Second)
	if kept, err := v.Recheck(w.Trust(identity.Revocation{ID: "agent/other", Before: after})); err != nil || len(kept.AgentCerts) != 1 {
		t.Errorf("another is revoked: %+v, %v", kept, err)
	}
	if kept, err := v.Recheck(w.Trust(identity.Revocation{ID: "agent/scout", Before: after})); err != nil || len(kept.AgentCerts) != 0 {
		t.Errorf("the agent is revoked: %+v, %v", kept, err)
	}
	if _, err := v.Recheck(w.Trust(identity.Revocation{ID: "host/h2", Before: after})); !errors.Is(err, identity.ErrRevoked) {
		t.Errorf("the host is revoked: %v", err)
	}
	if len(v.AgentCerts) != 1 {
		t.Error("the record itself changed")
	}
}

// Whoever changes a bit of a record on its way makes it void.
func TestOneBitOfARecord(t *testing.T) {
	w := newWorld(t)
	raw := w.signRecord(t, w.record())
	flips(t, raw, func(bit int, flipped []byte) {
		if _, err := signed.OpenRecord(flipped, w.Trust(), now); err == nil {
			t.Errorf("bit %d does not matter: %q", bit, flipped[max(0, bit/8-20):min(len(flipped), bit/8+20)])
		}
	})
}

func BenchmarkOpenRecord(b *testing.B) {
	w := newWorld(b)
	raw, trust := w.signRecord(b, w.record()), w.Trust()
	for b.Loop() {
		if _, err := signed.OpenRecord(raw, trust, now); err != nil {
			b.Fatal(err)
		}
	}
}
