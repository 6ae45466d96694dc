package segment

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// DefaultScale orders sensitivities, lowest first, where a policy gives no scale.
var DefaultScale = []string{"public", "internal", "confidential", "restricted"}

// Selector chooses agents: they have each of its label keys, and meet its condition.
type Selector map[string]Condition

// Condition is what a label must be: one of Values or, for sensitivity, below or above the one value as Op says.
// As text it is "research", ["a", "b"] or "<=confidential".
type Condition struct {
	Op     string // "", "<", "<=", ">", ">="
	Values []string
}

var operators = []string{"<", "<=", ">", ">="}

// ParseCondition reads the text form of one value or bound.
func ParseCondition(s string) (Condition, error) {
	value := strings.TrimLeft(s, "<>=")
	op := s[:len(s)-len(value)]
	if op != "" && !slices.Contains(operators, op) {
		return Condition{}, fmt.Errorf("%.40q has the unknown comparison %.10q", s, op)
	}
	value = strings.TrimSpace(value)
	if err := validValue(value); err != nil {
		return Condition{}, err
	}
	return Condition{Op: op, Values: []string{value}}, nil
}

// MarshalJSON is the text form, or a list.
func (c Condition) MarshalJSON() ([]byte, error) {
	if len(c.Values) == 1 {
		return json.Marshal(c.Op + c.Values[0])
	}
	return json.Marshal(c.Values)
}

// UnmarshalJSON reads the text form, or a list of plain values.
func (c *Condition) UnmarshalJSON(b []byte) error {
	var one string
	if json.Unmarshal(b, &one) == nil {
		parsed, err := ParseCondition(one)
		*c = parsed
		return err
	}
	var many []string
	if err := json.Unmarshal(b, &many); err != nil {
		return fmt.Errorf("read condition: %w (fix: %s)", err, conditionFix)
	}
	*c = Condition{Values: many}
	return nil
}

// Matches reports whether labels meet every condition. Sensitivities compare by their place in scale; an agent
// without one meets no condition on it.
func (s Selector) Matches(labels Labels, scale []string) bool {
	for key, c := range s {
		value, ok := labels[key]
		if !ok || !c.met(value, scale) {
			return false
		}
	}
	return true
}

func (c Condition) met(value string, scale []string) bool {
	if c.Op == "" {
		return slices.Contains(c.Values, value)
	}
	if len(c.Values) != 1 {
		return false
	}
	have, bound := slices.Index(scale, value), slices.Index(scale, c.Values[0])
	if have < 0 || bound < 0 {
		return false
	}
	switch c.Op {
	case "<":
		return have < bound
	case "<=":
		return have <= bound
	case ">":
		return have > bound
	case ">=":
		return have >= bound
	default:
		return false
	}
}

// levels are the sensitivities that agents of this selector can have.
func (s Selector) levels(scale []string) []string {
	c, bounded := s[LabelSensitivity]
	if !bounded {
		return append([]string{"without sensitivity"}, scale...)
	}
	var levels []string
	for _, level := range scale {
		if c.met(level, scale) {
			levels = append(levels, level)
		}
	}
	return levels
}

// keys are the label keys in order.
func (s Selector) keys() []string { return slices.Sorted(maps.Keys(s)) }
