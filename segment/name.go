package segment

import (
	"errors"
	"fmt"
	"strings"
)

const (
	maxName = 63  // bytes, as in DNS and X.509 common names
	maxMesh = 255 // bytes, as in SPIFFE
)

// ValidName reports what is wrong with a name of a host, agent, segment or rule.
func ValidName(s string) error {
	if s == "" {
		return errors.New("name is empty")
	}
	if len(s) > maxName {
		return fmt.Errorf("name %.20q… has %d characters, more than %d", s, len(s), maxName)
	}
	for i, c := range []byte(s) {
		edge := i == 0 || i == len(s)-1
		if !isLowerOrDigit(c) && (c != '-' || edge) {
			return fmt.Errorf("name %q may have only a-z, 0-9 and inner hyphens", s)
		}
	}
	return nil
}

// ParseMeshName reports what is wrong with a mesh's name, a SPIFFE trust domain: labels like ValidName's
// joined by dots.
func ParseMeshName(s string) error {
	if len(s) > maxMesh {
		return fmt.Errorf("mesh name has %d characters, more than %d (fix: shorten it)", len(s), maxMesh)
	}
	for _, label := range strings.Split(s, ".") {
		if err := ValidName(label); err != nil {
			return fmt.Errorf("mesh name: %w (fix: write it like acme.example)", err)
		}
	}
	return nil
}

func isLowerOrDigit(c byte) bool { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') }
