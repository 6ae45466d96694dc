package lab

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// The capabilities that the systemd unit leaves the daemon are enough to tell agents apart.
func TestTheUnitsCapabilitiesSuffice(t *testing.T) {
	unit, err := os.ReadFile("../systemd/bulkhead.service")
	if err != nil {
		t.Fatal(err)
	}
	set := regexp.MustCompile(`(?m)^CapabilityBoundingSet=(.+)$`).FindSubmatch(unit)
	if set == nil {
		t.Fatal("the unit names no capabilities")
	}
	bounds := "-all"
	for capability := range strings.FieldsSeq(string(set[1])) {
		bounds += ",+" + strings.ToLower(strings.TrimPrefix(capability, "CAP_"))
	}
	m := newTestMesh(t, Spec{})
	n := m.Hosts[0]
	if err := n.Daemon.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.Daemon, err = n.Start("daemon", "setpriv", "--bounding-set", bounds, "--inh-caps", "-all", "--no-new-privs",
		m.Binary, "--state-dir", n.StateDir(), "--socket", n.Socket(), "daemon")
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Run(t.Context(), "agent", "add", "one", "--match", "run"); err != nil {
		t.Fatal(err)
	}
	s, err := n.Status(t.Context())
	if err != nil || len(s.NotEnforced) > 0 || len(pins(t, n.Host)) == 0 {
		t.Errorf("not enforced: %q, %v", s.NotEnforced, err)
	}
	if out, err := n.Run(t.Context(), "run", "--agent", "one", "--", "true"); err != nil {
		t.Errorf("%s: %v", out, err)
	}
}
