package identity_test

import (
	"bytes"
	"encoding/asn1"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
)

var fullClaims = identity.Claims{
	Issued: now, Host: "h1", Labels: map[string]string{"function": "research", "sensitivity": "internal"}, Control: true, Role: "admin",
	WireGuard: [32]byte{0, 1, 31: 2},
}

func mustMarshalClaims(t testing.TB, c identity.Claims) []byte {
	t.Helper()
	der, err := identity.MarshalClaims(c)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestClaimsRoundTrip(t *testing.T) {
	for _, c := range []identity.Claims{{Issued: now}, fullClaims} {
		got, err := identity.ParseClaims(mustMarshalClaims(t, c))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(c, got); diff != "" {
			t.Error(diff)
		}
	}
}

// The zone and the fraction of a second do not make other bytes.
func TestClaimsHaveOneForm(t *testing.T) {
	other := fullClaims
	other.Issued = now.Add(999 * time.Millisecond).In(time.FixedZone("", 3600))
	if !slices.Equal(mustMarshalClaims(t, fullClaims), mustMarshalClaims(t, other)) {
		t.Error("two forms of one claim")
	}
}

func TestParseClaimsRefuses(t *testing.T) {
	der := mustMarshalClaims(t, fullClaims)
	type label struct {
		Key   string `asn1:"utf8"`
		Value string `asn1:"utf8"`
	}
	marshal := func(v any) []byte {
		der, err := asn1.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	longLength := slices.Concat([]byte{der[0], 0x81, der[1]}, der[2:])
	printable := marshal(struct {
		Issued  time.Time `asn1:"generalized"`
		Host    string    `asn1:"printable"`
		Labels  []label
		Control bool
		Role    string `asn1:"utf8"`
		Key     []byte
	}{Issued: now})
	withKey := func(key []byte, labels ...label) []byte {
		return marshal(struct {
			Issued  time.Time `asn1:"generalized"`
			Host    string    `asn1:"utf8"`
			Labels  []label
			Control bool
			Role    string `asn1:"utf8"`
			Key     []byte
		}{Issued: now, Labels: labels, Key: key})
	}
	withLabels := func(labels ...label) []byte { return withKey(nil, labels...) }
	if _, err := identity.ParseClaims(withKey(bytes.Repeat([]byte{1}, 32), label{"a", "1"}, label{"b", "2"})); err != nil {
		t.Fatalf("the sound form was refused: %v", err)
	}
	without := marshal(struct {
		Issued  time.Time `asn1:"generalized"`
		Host    string    `asn1:"utf8"`
		Labels  []label
		Control bool
		Role    string `asn1:"utf8"`
	}{Issued: now})
	for name, bad := range map[string][]byte{
		"nothing":             nil,
		"cut short":           der[:len(der)-1],
		"trailing byte":       append(slices.Clone(der), 0),
		"long length":         longLength,
		"other string":        printable,
		"labels not in order": withLabels(label{"b", "2"}, label{"a", "1"}),
		"label twice":         withLabels(label{"a", "1"}, label{"a", "2"}),
		"an integer":          marshal(7),
		"no place for a key":  without,
		"key of 31 bytes":     withKey(bytes.Repeat([]byte{1}, 31)),
		"key of 33 bytes":     withKey(bytes.Repeat([]byte{1}, 33)),
		"key of zero bytes":   withKey(make([]byte, 32)),
	} {
		if c, err := identity.ParseClaims(bad); !errors.Is(err, identity.ErrMalformed) {
			t.Errorf("%s: got %+v, %v", name, c, err)
		}
	}
}
