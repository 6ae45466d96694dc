// Package systemd holds the service's unit file, and tests it with systemd's own tools.
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
	unit    = "bulkhead.service"
	program = "/usr/bin/bulkhead"

	// maxExposure is systemd's measure of what a service could do if it were taken over, from 0 to 10.
	maxExposure = 2.5
)

func analyze(t *testing.T, args ...string) (string, error) {
	t.Helper()
	tool, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Fatalf("%v (fix: apt-get install systemd)", err)
	}
	out, err := exec.Command(tool, args...).CombinedOutput()
	return string(out), err
}

func readUnit(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(unit)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// verify checks a unit whose program is one that every machine has: ours need not be installed here.
func verify(t *testing.T, text string) (string, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), unit)
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(text, program, "/bin/true")), 0o600); err != nil {
		t.Fatal(err)
	}
	return analyze(t, "verify", "--man=no", path)
}

func TestVerifyIsClean(t *testing.T) {
	text := readUnit(t)
	if out, err := verify(t, text); err != nil || strings.TrimSpace(out) != "" {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
	if out, _ := verify(t, strings.Replace(text, "ProtectHome=yes", "ProtectHome=please", 1)); !strings.Contains(out, "protect home") {
		t.Errorf("a fault is not found, so that this test shows nothing:\n%s", out)
	}
}

func TestExposureIsLow(t *testing.T) {
	out, err := analyze(t, "security", "--offline=true", unit)
	match := regexp.MustCompile(`Overall exposure level for ` + regexp.QuoteMeta(unit) + `: ([0-9.]+)`).FindStringSubmatch(out)
	if err != nil || match == nil {
		t.Fatalf("systemd-analyze security: %v\n%s", err, out)
	}
	exposure, err := strconv.ParseFloat(match[1], 64)
	if err != nil || exposure >= maxExposure {
		t.Errorf("exposure is %s, want less than %v\n%s", match[1], maxExposure, out)
	}
}

// TestStoppingOpensNothing guards what no tool checks: when the service ends, its rules stay.
func TestStoppingOpensNothing(t *testing.T) {
	for line := range strings.Lines(readUnit(t)) {
		if strings.HasPrefix(line, "ExecStop") {
			t.Errorf("%s: `bulkhead down` is for people", strings.TrimSpace(line))
		}
	}
}
