package authority_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-mesh/bulkhead/control/authority"
	"github.com/bulkhead-mesh/bulkhead/overlay"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
)

// A store of a program that knew no JWT-SVIDs and no resolver gets both, once, and hosts hear of it.
func TestAnOlderStoreIsUpgraded(t *testing.T) {
	w := newWorld(t)
	e := w.join("h2", "a1", "a2")
	h2 := w.mustVerify(e.HostChain, identity.KindHost)
	old := e.Agents[0].Chain
	before := w.Policy()
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	err := w.store.Update(func(tx overlay.Tx) error {
		if _, err := tx.Delete("authority", "jwt"); err != nil {
			return err
		}
		row := map[string]any{}
		if err := json.Unmarshal(tx.Get("authority-agents", "a1"), &row); err != nil {
			return err
		}
		row["Addresses"] = []string{"10.201.0.53", w.Prefixes()[1].Addr().Next().String()}
		raw, err := json.Marshal(row)
		if err != nil {
			return err
		}
		return tx.Put("authority-agents", "a1", raw)
	})
	if err != nil {
		t.Fatal(err)
	}
	w.open()
	p := w.Policy()
	if p.Version != before.Version+1 || len(p.JWTKeys) != 1 || cmp.Equal(p.JWTKeys, before.JWTKeys) || p.Succeeds(before) != nil {
		t.Errorf("policy %d with keys %v after %d", p.Version, p.JWTKeys, before.Version)
	}
	token, err := w.SignJWT(h2, authority.JWTRequest{Agent: "a1", Audience: []string{"db"}})
	if err != nil {
		t.Fatal(err)
	}
	w.claims(token)
	if _, err := w.verify(old, identity.KindAgent); err == nil {
		t.Error("the certificate with the resolver's address is still good")
	}
	w.mustVerify(e.Agents[1].Chain, identity.KindAgent)
	renewed, err := w.Renew(h2, w.renewing("h2", "a1"))
	if err != nil || len(renewed.Agents) != 1 {
		t.Fatalf("renewal: %+v, %v", renewed, err)
	}
	if got := w.mustVerify(renewed.Agents[0].Chain, identity.KindAgent).Addresses[0]; got == netip.MustParseAddr("10.201.0.53") {
		t.Errorf("a1 still has %v", got)
	}
	if last := fmt.Sprint(w.audited(3)); !cmp.Equal(w.audited(3)[1], "control/upgrade local upgrade mesh/lab.test done") {
		t.Errorf("audited: %s", last)
	}
	w.sameAudit()
	w.reopen()
	if w.Policy().Version != p.Version {
		t.Errorf("a second start made version %d", w.Policy().Version)
	}
}

// Policy that tells of another key than the store's, as after a recovery by an older program, is followed by one that
// tells of the right one.
func TestPolicyTellsOfTheKeyThatSigns(t *testing.T) {
	w := newWorld(t)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	other := newWorld(t)
	if err := w.store.Update(func(tx overlay.Tx) error { return tx.Put("authority", "jwt", key(t, other)) }); err != nil {
		t.Fatal(err)
	}
	w.open()
	if p := w.Policy(); p.Version != 2 || !cmp.Equal(p.JWTKeys, other.Policy().JWTKeys) {
		t.Errorf("policy %d tells of %v", p.Version, p.JWTKeys)
	}
}

// key is the row of a world's JWT key.
func key(t *testing.T, w *world) (row []byte) {
	t.Helper()
	err := w.store.View(func(tx overlay.Tx) error {
		row = append(row, tx.Get("authority", "jwt")...)
		return nil
	})
	if err != nil || len(row) == 0 {
		t.Fatalf("no key: %v", err)
	}
	return row
}

func TestADamagedJWTKeyIsNamed(t *testing.T) {
	w := newWorld(t)
	if err := w.store.Update(func(tx overlay.Tx) error {
		return tx.Put("authority", "jwt", []byte(`{"ID":"x","Key":"c2VjcmV0"}`))
	}); err != nil {
		t.Fatal(err)
	}
	if a, err := authority.Open(w.store, w.options()); err == nil || err.Error() != "open authority: load JWT key: it is no PKCS #8 key" {
		t.Errorf("Open = %v, %v", a, err)
	}
}
