package authority

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

// pruneMargin is added to the longest life of a certificate before its revocation is dropped: far more
// than the clocks of hosts may differ.
const pruneMargin = 24 * time.Hour

// These reasons tell the revocation of what an identity was from that of the identity.
const (
	reasonRelabelled = "relabelled"
	reasonRole       = "role changed"
	reasonDeclared   = "declared anew"
)

// RevokeHost voids a host's certificates and those of its agents. Its name stays taken.
func (a *Authority) RevokeHost(p Principal, name, reason string) (Change, error) {
	target := "host/" + name
	return unchanged(a.change(p, RoleAdmin, "revoke", target, func(t *txn) (string, error) {
		host, err := t.host(name)
		if err != nil {
			return "", err
		}
		if host.Revoked != nil {
			return "", errUnchanged
		}
		if err := t.keepControl(host); err != nil {
			return "", err
		}
		host.revoke(t.now)
		if err := put(t, bucketHosts, name, host); err != nil {
			return "", err
		}
		if err := t.revokeCarried(name); err != nil {
			return "", err
		}
		return clip(reason), t.revoke(p, "revoke "+target, identity.Revocation{ID: target, Before: host.Floor, Reason: clip(reason)})
	}))
}

// keepControl refuses to revoke the last control host: nobody could change anything after.
func (t *txn) keepControl(host *hostRow) error {
	if !host.Control {
		return nil
	}
	names, err := t.controlHosts()
	if err == nil && len(names) < 2 {
		err = &Error{Code: CodeInvalid, Field: "host", Message: fmt.Sprintf("%q is the only control host", host.Name),
			Fix: "join another with `bulkhead token create --control` first"}
	}
	return err
}

// revokeCarried takes the agents of a revoked host out of the registry. The revocation of their host voids
// their certificates.
func (t *txn) revokeCarried(host string) error {
	var carried []*agentRow
	err := each(t, bucketAgents, func(r *agentRow) error {
		if r.Host == host && r.holds() {
			carried = append(carried, r)
		}
		return nil
	})
	for _, r := range carried {
		err = errors.Join(err, t.revokeAgent(r))
	}
	return err
}

func (t *txn) revokeAgent(r *agentRow) error {
	r.revoke(t.now)
	r.Pending, r.Withdrawn = false, nil
	return put(t, bucketAgents, r.Name, r)
}

// RevokeAgent voids an agent's certificates; its host gets no new ones, until an operator approves of it again.
func (a *Authority) RevokeAgent(p Principal, name, reason string) (Change, error) {
	target := "agent/" + name
	return unchanged(a.change(p, RoleOperator, "revoke", target, func(t *txn) (string, error) {
		row, err := t.agent(name)
		if err != nil {
			return "", err
		}
		if row.Revoked != nil {
			return "", errUnchanged
		}
		if err := t.revokeAgent(row); err != nil {
			return "", err
		}
		return clip(reason), t.revoke(p, "revoke "+target, identity.Revocation{ID: target, Before: row.Floor, Reason: clip(reason)})
	}))
}

// Relabel gives an agent other labels and voids the certificates that carry the old ones; its host renews.
// ifMatch is the policy version that was read, 0 for any. The answer has the policy's tests as they
// are with the new labels; failing ones do not stop it.
func (a *Authority) Relabel(p Principal, name string, labels segment.Labels, ifMatch uint64) (Change, error) {
	target := "agent/" + name
	var tests []segment.TestResult
	change, err := unchanged(a.change(p, RoleOperator, "relabel", target, func(t *txn) (string, error) {
		if ifMatch != 0 && ifMatch != t.Version {
			return "", conflict(t.Version)
		}
		if err := a.checkLabels("labels", labels); err != nil {
			return "", err
		}
		row, err := t.agent(name)
		if err != nil {
			return "", err
		}
		if err := row.relabellable(); err != nil {
			return "", err
		}
		if maps.Equal(row.Labels, labels) {
			return "", errUnchanged
		}
		detail := fmt.Sprintf("%v to %v", row.Labels, labels)
		row.Labels = maps.Clone(labels)
		row.void(t.now)
		if err := put(t, bucketAgents, name, row); err != nil {
			return "", err
		}
		agents, err := policyAgents(t)
		if err != nil {
			return "", err
		}
		tests = a.Policy().Parsed.RunTests(agents, t.now)
		return detail, t.revoke(p, "relabel "+target, identity.Revocation{ID: target, Before: row.Floor, Reason: reasonRelabelled})
	}))
	change.Tests = tests
	return change, err
}

// relabellable refuses agents that do not take part.
func (r *agentRow) relabellable() error {
	switch {
	case r.Withdrawn != nil:
		return noAgent(r.Name)
	case r.Revoked != nil:
		return &Error{Code: CodeRevoked, Field: "agent", Message: fmt.Sprintf("agent %q was revoked", r.Name), Fix: "approve it again with `bulkhead agent approve`"}
	case r.Pending:
		return &Error{Code: CodeInvalid, Field: "agent", Message: fmt.Sprintf("agent %q waits for approval", r.Name),
			Fix: "approve it first with `bulkhead agent approve`, or declare it with other labels on its host"}
	}
	return nil
}

// RevokeOperator voids an operator's certificates.
func (a *Authority) RevokeOperator(p Principal, name, reason string) (Change, error) {
	target := "operator/" + name
	return unchanged(a.change(p, RoleAdmin, "revoke", target, func(t *txn) (string, error) {
		var row operatorRow
		found, err := get(t, bucketOperators, name, &row)
		if err != nil {
			return "", err
		}
		if !found {
			return "", &Error{Code: CodeNotFound, Field: "operator", Message: fmt.Sprintf("no operator %q", name), Fix: "check the name in `bulkhead audit`"}
		}
		if row.Revoked != nil {
			return "", errUnchanged
		}
		row.revoke(t.now)
		if err := put(t, bucketOperators, name, row); err != nil {
			return "", err
		}
		return clip(reason), t.revoke(p, "revoke "+target, identity.Revocation{ID: target, Before: row.Floor, Reason: clip(reason)})
	}))
}

// revoke makes a new version of the same document with more revocations.
func (t *txn) revoke(p Principal, summary string, more ...identity.Revocation) error {
	current := t.a.Policy()
	return t.newPolicy(p.Name, summary, current.Document, merge(current.Revocations, more))
}

// merge adds revocations, keeping the latest of each identity.
func merge(have, more []identity.Revocation) []identity.Revocation {
	merged := slices.Clone(have)
	for _, r := range more {
		i := slices.IndexFunc(merged, func(m identity.Revocation) bool { return m.ID == r.ID })
		switch {
		case i < 0:
			merged = append(merged, r)
		case merged[i].Before.Before(r.Before):
			merged[i] = r
		}
	}
	return merged
}

// prune drops revocations of certificates that have all expired.
func prune(revocations []identity.Revocation, now time.Time) []identity.Revocation {
	return slices.DeleteFunc(slices.Clone(revocations), func(r identity.Revocation) bool {
		life := leafLife
		if strings.HasPrefix(r.ID, "operator/") {
			life = maxOperatorLife
		}
		return now.Sub(r.Before) > life+pruneMargin
	})
}
