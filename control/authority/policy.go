package authority

import (
	"errors"
	"fmt"
	"slices"

	"github.com/bulkhead-mesh/bulkhead/overlay/signed"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

const (
	// maxDocument keeps a signed bundle well below what hosts accept.
	maxDocument = 1 << 20
	// maxRaces is how often a change without a version is tried again because another came first.
	maxRaces = 16
)

// errRaced is returned when the policy changed while a successor was prepared.
var errRaced = errors.New("policy changed meanwhile")

// edit makes the document of a new version from the current one.
type edit func(current *signed.VerifiedPolicy) (document string, err error)

// PutPolicy replaces the policy document. ifMatch is the version it was made from, 0 for any. What Check
// would not accept is refused; a document equal to the current one makes no version.
func (a *Authority) PutPolicy(p Principal, ifMatch uint64, document string) (Change, error) {
	return a.editPolicy(p, ifMatch, "put", "policy", func(*signed.VerifiedPolicy) (string, error) { return document, nil })
}

// Rollback makes a new version with the document of an old one. Revocations stay.
func (a *Authority) Rollback(p Principal, version uint64) (Change, error) {
	return a.editPolicy(p, 0, "rollback", fmt.Sprintf("version/%d", version), func(*signed.VerifiedPolicy) (string, error) {
		old, err := a.PolicyAt(version)
		if err != nil {
			return "", err
		}
		return old.Document, nil
	})
}

// CreateSegment adds a segment to the policy.
func (a *Authority) CreateSegment(p Principal, ifMatch uint64, s segment.Segment) (Change, error) {
	return a.editParsed(p, ifMatch, "create", "segment/"+s.Name, func(policy *segment.Policy) error {
		if slices.ContainsFunc(policy.Segments, func(other segment.Segment) bool { return other.Name == s.Name }) {
			return &Error{Code: CodeExists, Field: "name", Message: fmt.Sprintf("there is a segment %q already", s.Name), Fix: "choose another name, or delete it first"}
		}
		policy.Segments = append(slices.Clone(policy.Segments), s)
		return nil
	})
}

// DeleteSegment removes a segment; one that rules use is refused.
func (a *Authority) DeleteSegment(p Principal, ifMatch uint64, name string) (Change, error) {
	return a.editParsed(p, ifMatch, "delete", "segment/"+name, func(policy *segment.Policy) error {
		i := slices.IndexFunc(policy.Segments, func(s segment.Segment) bool { return s.Name == name })
		if i < 0 {
			return &Error{Code: CodeNotFound, Field: "name", Message: fmt.Sprintf("no segment %q", name), Fix: "see `bulkhead segment list`"}
		}
		policy.Segments = slices.Delete(slices.Clone(policy.Segments), i, i+1)
		return nil
	})
}

// CreateRule adds a rule to the policy.
func (a *Authority) CreateRule(p Principal, ifMatch uint64, r segment.Rule) (Change, error) {
	return a.editParsed(p, ifMatch, "create", "rule/"+r.Name, func(policy *segment.Policy) error {
		if slices.ContainsFunc(policy.Rules, func(other segment.Rule) bool { return other.Name == r.Name }) {
			return &Error{Code: CodeExists, Field: "name", Message: fmt.Sprintf("there is a rule %q already", r.Name), Fix: "choose another name, or delete it first"}
		}
		policy.Rules = append(slices.Clone(policy.Rules), r)
		return nil
	})
}

// DeleteRule removes a rule.
func (a *Authority) DeleteRule(p Principal, ifMatch uint64, name string) (Change, error) {
	return a.editParsed(p, ifMatch, "delete", "rule/"+name, func(policy *segment.Policy) error {
		i := slices.IndexFunc(policy.Rules, func(r segment.Rule) bool { return r.Name == name })
		if i < 0 {
			return &Error{Code: CodeNotFound, Field: "name", Message: fmt.Sprintf("no rule %q", name), Fix: "see `bulkhead rule list`"}
		}
		policy.Rules = slices.Delete(slices.Clone(policy.Rules), i, i+1)
		return nil
	})
}

// Check tells what PutPolicy would say of a document, and changes nothing.
func (a *Authority) Check(document string) (CheckResult, error) {
	current := a.Policy()
	result := CheckResult{Version: current.Version, Unchanged: document == current.Document}
	parsed, err := parseDocument(document)
	if refusal, ok := errors.AsType[*Error](err); ok && len(refusal.Problems) > 0 {
		result.Problems = refusal.Problems
		return result, nil
	}
	if err != nil {
		return CheckResult{}, err
	}
	agents, err := a.PolicyAgents()
	if err != nil {
		return CheckResult{}, err
	}
	now := a.now()
	result.Policy = parsed
	result.Tests = parsed.RunTests(agents, now)
	result.Difference = segment.Diff(current.Parsed, parsed, agents, now)
	result.OK = checkTests(result.Tests) == nil
	return result, nil
}

// editParsed changes a copy of the parsed policy and writes it as a new document.
func (a *Authority) editParsed(p Principal, ifMatch uint64, action, target string, change func(*segment.Policy) error) (Change, error) {
	return a.editPolicy(p, ifMatch, action, target, func(current *signed.VerifiedPolicy) (string, error) {
		policy := *current.Parsed
		if err := change(&policy); err != nil {
			return "", err
		}
		if err := policyRefused(policy.Validate()); err != nil {
			return "", err
		}
		document, err := policy.Marshal()
		if err != nil {
			return "", fmt.Errorf("write policy: %w", err)
		}
		return string(document), nil
	})
}

// editPolicy prepares a new version outside the transaction, as tests and difference may take a while,
// and commits it if no other came between.
func (a *Authority) editPolicy(p Principal, ifMatch uint64, action, target string, make edit) (Change, error) {
	if err := a.authorize(p, RoleOperator, action, target); err != nil {
		return Change{}, err
	}
	for range maxRaces {
		change, err := a.tryEdit(p, ifMatch, action, target, make)
		if !errors.Is(err, errRaced) {
			return change, err
		}
	}
	err := conflict(a.Policy().Version)
	a.refused(&a.members, p, action, target, err)
	return Change{}, err
}

func (a *Authority) tryEdit(p Principal, ifMatch uint64, action, target string, make edit) (Change, error) {
	current := a.Policy()
	change, document, err := a.prepare(current, ifMatch, make)
	if errors.Is(err, errUnchanged) {
		return Change{Version: current.Version, Unchanged: true}, nil
	}
	if err != nil {
		a.refused(&a.members, p, action, target, err)
		return Change{}, err
	}
	change.Version, err = a.change(p, RoleOperator, action, target, func(t *txn) (string, error) {
		if t.Version != current.Version {
			return "", errRaced
		}
		return "", t.newPolicy(p.Name, action+" "+target, document, current.Revocations)
	})
	return change, err
}

// prepare makes and judges the successor of current.
func (a *Authority) prepare(current *signed.VerifiedPolicy, ifMatch uint64, make edit) (Change, string, error) {
	if ifMatch != 0 && ifMatch != current.Version {
		return Change{}, "", conflict(current.Version)
	}
	document, err := make(current)
	if err != nil {
		return Change{}, "", err
	}
	if document == current.Document {
		return Change{}, "", errUnchanged
	}
	parsed, err := parseDocument(document)
	if err != nil {
		return Change{}, "", err
	}
	agents, err := a.PolicyAgents()
	if err != nil {
		return Change{}, "", err
	}
	now := a.now()
	tests := parsed.RunTests(agents, now)
	if err := checkTests(tests); err != nil {
		return Change{}, "", err
	}
	return Change{Tests: tests, Difference: segment.Diff(current.Parsed, parsed, agents, now)}, document, nil
}

func parseDocument(document string) (*segment.Policy, error) {
	if len(document) > maxDocument {
		return nil, &Error{Code: CodeInvalid, Field: "document", Message: fmt.Sprintf("%d bytes of policy", len(document)), Fix: fmt.Sprintf("use at most %d", maxDocument)}
	}
	parsed, err := segment.Parse([]byte(document))
	if err != nil {
		return nil, policyRefused(err)
	}
	return parsed, nil
}

// policyRefused gives a policy's problems a code.
func policyRefused(err error) error {
	if err == nil {
		return nil
	}
	refusal := &Error{Code: CodePolicyRefused, Message: err.Error()}
	if problems, ok := errors.AsType[*segment.PolicyError](err); ok {
		refusal.Problems = problems.Problems
		refusal.Message = "the policy is refused: " + err.Error()
	}
	return refusal
}

func checkTests(tests []segment.TestResult) error {
	failed := 0
	for _, t := range tests {
		if !t.Pass {
			failed++
		}
	}
	if failed == 0 {
		return nil
	}
	return &Error{Code: CodeTestsFailed, Field: "tests", Message: fmt.Sprintf("%d of %d policy tests fail", failed, len(tests)),
		Fix: "correct the rules, or the tests", Tests: tests}
}

func conflict(current uint64) *Error {
	return &Error{Code: CodeVersionConflict, Field: "version", Message: fmt.Sprintf("the policy is at version %d by now", current),
		Fix: "read it again and repeat the change"}
}
