package identity_test

import (
	"bytes"
	"testing"

	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity/identitytest"
)

// What parses is the text of exactly one identity.
func FuzzParseID(f *testing.F) {
	for _, s := range []string{"spiffe://lab.test/host/h1", "spiffe://lab.test/agent/a-1", "spiffe://x/policy/1", "spiffe://lab.test/host/h1/", "spiffe:///host/"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		id, err := identity.ParseID(s)
		if err == nil && id.String() != s {
			t.Errorf("%q parses as %q", s, id)
		}
		if err != nil && id != (identity.ID{}) {
			t.Errorf("%q is refused, and parses as %q", s, id)
		}
	})
}

// Who parses holds the key: the request can be issued for, and for that identity alone.
func FuzzParseCSR(f *testing.F) {
	key := newKey(f)
	der, err := identity.NewCSR(key, hostID)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(der)
	f.Add(der[:len(der)/2])
	f.Fuzz(func(t *testing.T, der []byte) {
		id, public, err := identity.ParseCSR(der)
		if err != nil {
			return
		}
		if again, err := identity.ParseID(id.String()); err != nil || again != id {
			t.Errorf("the request is for %q: %v", id, err)
		}
		if bytes.Equal(public, key.Public()) && id != hostID {
			t.Errorf("our key asks for %q, which we did not", id)
		}
	})
}

// Claims have one form: what parses encodes to the same bytes.
func FuzzClaims(f *testing.F) {
	f.Add(mustMarshalClaims(f, identity.Claims{Issued: now}))
	f.Add(mustMarshalClaims(f, fullClaims))
	f.Add(mustMarshalClaims(f, identity.Claims{Issued: now, Control: true, WireGuard: identitytest.WireGuard("h1")}))
	f.Add(mustMarshalClaims(f, identity.Claims{Issued: now, Host: "h1", Labels: map[string]string{"a": "b"}}))
	f.Fuzz(func(t *testing.T, der []byte) {
		c, err := identity.ParseClaims(der)
		if err != nil {
			return
		}
		if again := mustMarshalClaims(t, c); !bytes.Equal(again, der) {
			t.Errorf("%x parses as %+v, which encodes as %x", der, c, again)
		}
	})
}

// No chain is believed but the one that was issued, whatever comes behind it.
func FuzzVerifyChain(f *testing.F) {
	ca := identitytest.New(f, mesh)
	chain, trust := ca.Host("h1").Chain, ca.Trust()
	other := identitytest.New(f, mesh).Host("h1").Chain
	f.Add(chain[0], chain[1])
	f.Add(chain[1], chain[0])
	f.Add(other[0], other[1])
	f.Add(other[0], chain[1])
	f.Fuzz(func(t *testing.T, leaf, issuing []byte) {
		c, err := trust.Verify([][]byte{leaf, issuing}, identity.KindHost, now)
		if err == nil && (!bytes.Equal(leaf, chain[0]) || c.Name != "h1" || !bytes.Equal(c.Chain[1], chain[1])) {
			t.Errorf("a chain is believed that was not issued: %+v", c)
		}
	})
}
