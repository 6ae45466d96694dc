package identity_test

import (
	"strings"
	"testing"

	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
)

func TestParseID(t *testing.T) {
	got, err := identity.ParseID("spiffe://lab.test/agent/scout-1")
	if want := (identity.ID{Mesh: "lab.test", Kind: identity.KindAgent, Name: "scout-1"}); err != nil || got != want {
		t.Errorf("got %+v, %v", got, err)
	}
	if got.Path() != "agent/scout-1" {
		t.Errorf("path is %q", got.Path())
	}
	for _, s := range []string{
		"", "spiffe://", "lab.test/host/h1", "https://lab.test/host/h1", "SPIFFE://lab.test/host/h1",
		"spiffe://lab.test", "spiffe://lab.test/host", "spiffe://lab.test/host/", "spiffe://lab.test//h1", "spiffe:///host/h1",
		"spiffe://lab.test/host/h1/", "spiffe://lab.test/host/h1/x", "spiffe://lab.test/host/..", "spiffe://lab.test/host/h%31",
		"spiffe://lab.test/host/H1", "spiffe://LAB.test/host/h1", "spiffe://lab.test/HOST/h1", "spiffe://lab.test/root/h1",
		"spiffe://lab.test:443/host/h1", "spiffe://a@lab.test/host/h1", "spiffe://lab.test/host/h1?x", "spiffe://lab.test/host/h1#x",
		"spiffe://lab.test/host/h1 ", " spiffe://lab.test/host/h1", "spiffe://lab.test/host/h1\x00", "spiffe://lab.test/host/hé",
		"spiffe://lab.test/host/" + strings.Repeat("a", 64),
	} {
		if id, err := identity.ParseID(s); err == nil {
			t.Errorf("%q was taken as %+v", s, id)
		}
	}
}
