package segment

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// maxProblems is how many problems one error lists; the first ones are mended first anyway.
const maxProblems = 100

// Problem is one fault of a policy. Line and Column count from 1; both are 0 where there is no text.
type Problem struct {
	Line    int    `json:"line,omitempty"`
	Column  int    `json:"column,omitempty"`
	Field   string `json:"field"` // like rules[0].from; "document" for the text as a whole
	Message string `json:"message"`
	Fix     string `json:"fix"`
}

// String is one line: where, what, and how to mend it.
func (p Problem) String() string {
	var at string
	if p.Line > 0 {
		at = fmt.Sprintf("line %d, column %d: ", p.Line, p.Column)
	}
	return fmt.Sprintf("%s%s: %s (fix: %s)", at, p.Field, p.Message, p.Fix)
}

// PolicyError is what is wrong with a policy: at least one problem, in the order of the text.
type PolicyError struct{ Problems []Problem }

// Error has a line for each problem.
func (e *PolicyError) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// refuse makes the error of a policy with problems.
func refuse(problems ...Problem) error {
	slices.SortStableFunc(problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	if more := len(problems) - maxProblems; more > 0 {
		rest := problems[maxProblems]
		rest.Field, rest.Message, rest.Fix = "document", fmt.Sprintf("there are %d problems more", more), "mend those above first"
		problems = append(problems[:maxProblems:maxProblems], rest)
	}
	return &PolicyError{Problems: problems}
}
