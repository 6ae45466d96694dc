package authority

import (
	"crypto/ed25519"
	"fmt"
	"time"

	"github.com/bulkhead-mesh/bulkhead/overlay"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

// maxOperatorLife bounds an operator's certificate, and so how long its revocation is carried in policy.
const maxOperatorLife = 366 * 24 * time.Hour

// OperatorInfo is what the registry knows of an operator.
type OperatorInfo struct {
	Name    string     `json:"name"`
	Role    Role       `json:"role"`
	Issued  time.Time  `json:"issued"`
	Expires time.Time  `json:"expires"`
	Revoked *time.Time `json:"revoked,omitempty"`
}

// IssueOperator certifies an operator's key with a role, for at most a year; again for a known name.
func (a *Authority) IssueOperator(p Principal, name string, role Role, pub ed25519.PublicKey, life time.Duration) ([][]byte, error) {
	var chain [][]byte
	_, err := a.change(p, RoleAdmin, "issue", "operator/"+name, func(t *txn) (string, error) {
		if err := checkOperator(name, role, pub, life); err != nil {
			return "", err
		}
		var row operatorRow
		if _, err := get(t, bucketOperators, name, &row); err != nil {
			return "", err
		}
		demoted := row.Role != "" && row.Role != role && row.NotAfter.After(t.now)
		if demoted { // a certificate with the old role shall not outlive this
			row.void(t.now)
		}
		row = operatorRow{Name: name, Role: role, certified: certified{Floor: row.Floor}}
		row.issue(t.now, life)
		if demoted {
			if err := t.revoke(p, "change role of operator/"+name, identity.Revocation{ID: "operator/" + name, Before: row.Floor, Reason: reasonRole}); err != nil {
				return "", err
			}
		}
		var err error
		chain, err = a.issuing.Issue(identity.Request{
			ID:     identity.ID{Mesh: a.mesh.Mesh, Kind: identity.KindOperator, Name: name},
			Claims: identity.Claims{Issued: row.Issued, Role: string(role)}, PublicKey: pub, Life: row.NotAfter.Sub(t.now),
		}, t.now)
		if err != nil {
			return "", fmt.Errorf("issue certificate of operator %s: %w", name, err)
		}
		return fmt.Sprintf("role %s, %v", role, life), put(t, bucketOperators, name, row)
	})
	if err != nil {
		return nil, err
	}
	return chain, nil
}

func checkOperator(name string, role Role, pub ed25519.PublicKey, life time.Duration) error {
	if err := segment.ValidName(name); err != nil {
		return invalidName("name", err)
	}
	if role.rank() == 0 {
		return noRole(role)
	}
	if len(pub) != ed25519.PublicKeySize {
		return &Error{Code: CodeInvalid, Field: "publicKey", Message: fmt.Sprintf("%d bytes are no Ed25519 key", len(pub)), Fix: "send the 32 bytes of one"}
	}
	if life < time.Minute || life > maxOperatorLife {
		return &Error{Code: CodeInvalid, Field: "life", Message: fmt.Sprintf("%v is out of range", life), Fix: fmt.Sprintf("use 1m to %v", maxOperatorLife)}
	}
	return nil
}

func noRole(role Role) error {
	return &Error{Code: CodeInvalid, Field: "role", Message: fmt.Sprintf("no role %q", role), Fix: "use viewer, operator or admin"}
}

// Operators lists the operators, by name.
func (a *Authority) Operators() ([]OperatorInfo, error) {
	return list(a, bucketOperators, func(_ overlay.Tx, r *operatorRow) (OperatorInfo, error) {
		return OperatorInfo{Name: r.Name, Role: r.Role, Issued: r.Issued, Expires: r.NotAfter, Revoked: r.Revoked}, nil
	})
}
