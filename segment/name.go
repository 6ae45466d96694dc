package segment

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

const (
	maxName   = 63
	maxMesh   = 255
	maxLabels = 32
	maxValue  = 63
)

// ValidName reports what is wrong with a name of a host, agent, segment or rule.
func ValidName(s string) error {
	if s == "" {
		return fmt.Errorf("name is empty")
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
		return fmt.Errorf("mesh name has %d characters, more than %d", len(s), maxMesh)
	}
	for _, label := range strings.Split(s, ".") {
		if err := ValidName(label); err != nil {
			return fmt.Errorf("mesh name %q: %w (fix: write it like acme.example)", s, err)
		}
	}
	return nil
}

// ParseLabels reads items like "function=plan".
func ParseLabels(items []string) (Labels, error) {
	labels := make(Labels, len(items))
	for _, item := range items {
		key, value, ok := strings.Cut(item, "=")
		if !ok {
			return nil, fmt.Errorf("label %q has no value (fix: write it like function=plan)", item)
		}
		if _, twice := labels[key]; twice {
			return nil, fmt.Errorf("label %q is given twice", key)
		}
		labels[key] = value
	}
	return labels, ValidLabels(labels)
}

// ValidLabels reports what is wrong with labels: keys are names, values 1 to 63 of a-z A-Z 0-9 . _ - and begin
// and end with a letter or digit.
func ValidLabels(labels Labels) error {
	if len(labels) > maxLabels {
		return fmt.Errorf("%d labels, more than %d", len(labels), maxLabels)
	}
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		if err := ValidName(key); err != nil {
			return fmt.Errorf("label key: %w", err)
		}
		if err := validValue(labels[key]); err != nil {
			return fmt.Errorf("label %s: %w", key, err)
		}
	}
	return nil
}

func validValue(s string) error {
	if s == "" || len(s) > maxValue {
		return fmt.Errorf("value %.20q must have 1 to %d characters", s, maxValue)
	}
	for i, c := range []byte(s) {
		letter := isLowerOrDigit(c) || (c >= 'A' && c <= 'Z')
		if !letter && (!strings.ContainsRune("._-", rune(c)) || i == 0 || i == len(s)-1) {
			return fmt.Errorf("value %q may have only letters, digits and inner . _ -", s)
		}
	}
	return nil
}

func isLowerOrDigit(c byte) bool { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') }
