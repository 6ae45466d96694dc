package segment

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

const (
	maxLabels = 32 // of one agent or selector
	maxValue  = 63 // bytes
)

// ParseLabels reads items like "function=plan".
func ParseLabels(items []string) (Labels, error) {
	labels := make(Labels, len(items))
	for _, item := range items {
		key, value, ok := strings.Cut(item, "=")
		if !ok {
			return nil, fmt.Errorf("label %.80q has no value (fix: write it like function=plan)", item)
		}
		if _, twice := labels[key]; twice {
			return nil, fmt.Errorf("label %.80q is given twice (fix: leave one of them out)", key)
		}
		labels[key] = value
	}
	if err := ValidLabels(labels); err != nil {
		return nil, err
	}
	return labels, nil
}

// String is the labels as people write them, sorted: function=plan, sensitivity=internal.
func (l Labels) String() string {
	items := make([]string, 0, len(l))
	for _, key := range slices.Sorted(maps.Keys(l)) {
		items = append(items, key+"="+l[key])
	}
	return strings.Join(items, ", ")
}

// ValidLabels reports what is wrong with labels: keys are names, values 1 to 63 of a-z A-Z 0-9 . _ - and begin
// and end with a letter or digit.
func ValidLabels(labels Labels) error {
	if len(labels) > maxLabels {
		return fmt.Errorf("there are %d labels, more than %d", len(labels), maxLabels)
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
