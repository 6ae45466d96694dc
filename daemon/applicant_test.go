package daemon

import (
	"strings"
	"testing"

	"github.com/bulkhead-mesh/bulkhead/control/authority"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity/identitytest"
	"github.com/bulkhead-mesh/bulkhead/overlay/signed"
)

// A host takes a certificate for its own keys and name alone: with another WireGuard key in it, no one would believe
// its records.
func TestApplicantTakesItsOwnCertificateOnly(t *testing.T) {
	const mesh = "lab.test"
	ca := identitytest.New(t, mesh)
	signer := ca.Signer()
	policy, err := signed.SignPolicy(signed.Policy{Mesh: mesh, Version: 1, Issued: ca.Now, Author: "local/init", Document: "segments: []\n"}, signer.Key, signer.Chain)
	if err != nil {
		t.Fatal(err)
	}
	applicant, err := application(mesh, "h2", nil)
	if err != nil {
		t.Fatal(err)
	}
	sound := identity.Request{
		ID:     identity.ID{Mesh: mesh, Kind: identity.KindHost, Name: "h2"},
		Claims: identity.Claims{WireGuard: applicant.public}, PublicKey: applicant.key.Public(),
	}
	for name, tt := range map[string]struct {
		change func(r *identity.Request)
		want   string // empty: it is taken
	}{
		"as asked for":          {func(*identity.Request) {}, ""},
		"another name":          {func(r *identity.Request) { r.ID.Name = "h3" }, "another key or name"},
		"another key":           {func(r *identity.Request) { r.PublicKey = signer.Key.Public() }, "another key or name"},
		"another WireGuard key": {func(r *identity.Request) { r.Claims.WireGuard = identitytest.WireGuard("h2") }, "another WireGuard key"},
	} {
		r := sound
		tt.change(&r)
		e := &authority.Enrollment{Mesh: mesh, HostChain: ca.Issue(r).Chain, Roots: [][]byte{ca.Root.Certificate().Raw}, Policy: policy}
		err := applicant.verify(e, identity.Fingerprint(ca.Root.Certificate()), ca.Now)
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: got %v, want %q", name, err, tt.want)
		}
	}
}

// A renewal is for the WireGuard key that the host has.
func TestRenewalKeepsTheWireGuardKey(t *testing.T) {
	first, err := application("lab.test", "h2", nil)
	if err != nil {
		t.Fatal(err)
	}
	next, err := renewal(&Credentials{Mesh: "lab.test", Host: "h2", WireGuard: first.wireguard})
	if err != nil {
		t.Fatal(err)
	}
	if next.public != first.public || next.wireguard != first.wireguard || next.key.Public().Equal(first.key.Public()) {
		t.Error("the renewal is for another WireGuard key, or for the same certificate key")
	}
}
