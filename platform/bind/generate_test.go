package bind

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// What is loaded into kernels is what the sources in this tree make, to the byte.
func TestObjectsAreOfTheirSources(t *testing.T) {
	source, err := os.ReadFile("generate.go")
	if err != nil {
		t.Fatal(err)
	}
	line := regexp.MustCompile(`(?m)^//go:generate go (tool bpf2go .*)$`).FindSubmatch(source)
	if line == nil {
		t.Fatal("generate.go does not say how")
	}
	dir := t.TempDir()
	args := strings.Fields(strings.Replace(string(line[1]), "bpf2go ", "bpf2go -output-dir "+dir+" ", 1))
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), "GOPACKAGE=bind")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s (fix: make deps)", err, out)
	}
	for _, name := range []string{"programs_bpfel.o", "programs_bpfeb.o", "programs_bpfel.go", "programs_bpfeb.go"} {
		want, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if have, err := os.ReadFile(name); err != nil || !bytes.Equal(have, want) {
			t.Errorf("%s is not what the sources make: %v (fix: go generate ./platform/bind)", name, err)
		}
	}
}
