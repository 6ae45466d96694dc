package segment

import (
	"fmt"
	"strings"
	"time"
)

// TestResult is what a policy's own test found.
type TestResult struct {
	Test   Test   `json:"test"`
	Got    string `json:"got"` // allow or deny; empty if an agent is not there
	Pass   bool   `json:"pass"`
	Detail string `json:"detail,omitempty"` // why it fails
}

// RunTests runs the policy's tests against the agents that there are.
func (p *Policy) RunTests(agents []Agent, now time.Time) []TestResult {
	byName := make(map[string]Agent, len(agents))
	for _, a := range agents {
		byName[a.Name] = a
	}
	results := make([]TestResult, 0, len(p.Tests))
	for _, t := range p.Tests {
		results = append(results, p.runTest(t, byName, now))
	}
	return results
}

func (p *Policy) runTest(t Test, agents map[string]Agent, now time.Time) TestResult {
	result := TestResult{Test: t}
	var ends [2]Agent
	for i, end := range []string{t.From, t.To} {
		name := strings.TrimPrefix(end, "agent/")
		agent, ok := agents[name]
		if !ok {
			result.Detail = fmt.Sprintf("there is no agent %q (fix: correct the name, or enrol it first)", name)
			return result
		}
		ends[i] = agent
	}
	e := p.Explain(ends[0], ends[1], t.Port, now)
	result.Got, result.Pass = e.Verdict, e.Verdict == t.Expect
	if !result.Pass {
		result.Detail = e.Reason
	}
	return result
}
