// Package systemd holds the unit files, and tests them with systemd's own tools.
package systemd

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

const (
	program = "/usr/bin/bulkhead"

	// maxExposure is systemd's measure of what a service could do if it were taken over, from 0 to 10.
	maxExposure = 2.7
)

var units = []string{"bulkhead.service", "bulkhead-fence.service"}

func analyze(t *testing.T, args ...string) (string, error) {
	t.Helper()
	tool, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Fatalf("%v (fix: apt-get install systemd)", err)
	}
	out, err := exec.Command(tool, args...).CombinedOutput()
	return string(out), err
}

func readUnit(t *testing.T, unit string) string {
	t.Helper()
	text, err := os.ReadFile(unit)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// verify checks a unit whose program is one that every machine has: ours need not be installed here.
func verify(t *testing.T, unit, text string) (string, error) {
	t.Helper()
	dir := t.TempDir()
	for _, name := range units { // they name each other
		content := readUnit(t, name)
		if name == unit {
			content = text
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(strings.ReplaceAll(content, program, "/bin/true")), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return analyze(t, "verify", "--man=no", filepath.Join(dir, unit))
}

func TestVerifyIsClean(t *testing.T) {
	for _, unit := range units {
		text := readUnit(t, unit)
		if out, err := verify(t, unit, text); err != nil || strings.TrimSpace(out) != "" {
			t.Errorf("systemd-analyze verify %s: %v\n%s", unit, err, out)
		}
		if out, _ := verify(t, unit, strings.Replace(text, "ProtectHome=yes", "ProtectHome=please", 1)); !strings.Contains(out, "protect home") {
			t.Errorf("a fault of %s is not found, so that this test shows nothing:\n%s", unit, out)
		}
	}
}

func TestExposureIsLow(t *testing.T) {
	for _, unit := range units {
		out, err := analyze(t, "security", "--offline=true", unit)
		match := regexp.MustCompile(`Overall exposure level for ` + regexp.QuoteMeta(unit) + `: ([0-9.]+)`).FindStringSubmatch(out)
		if err != nil || match == nil {
			t.Fatalf("systemd-analyze security: %v\n%s", err, out)
		}
		exposure, err := strconv.ParseFloat(match[1], 64)
		if err != nil || exposure >= maxExposure {
			t.Errorf("exposure of %s is %s, want less than %v\n%s", unit, match[1], maxExposure, out)
		}
	}
}

// TestStoppingOpensNothing guards what no tool checks: when a service ends, its rules stay.
func TestStoppingOpensNothing(t *testing.T) {
	for _, unit := range units {
		for line := range strings.Lines(readUnit(t, unit)) {
			if strings.HasPrefix(line, "ExecStop") {
				t.Errorf("%s: %s: `bulkhead down` is for people", unit, strings.TrimSpace(line))
			}
		}
	}
}
