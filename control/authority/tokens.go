package authority

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/bulkhead-mesh/bulkhead/overlay"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

const (
	defaultJoinLife = time.Hour
	maxJoinLife     = 30 * 24 * time.Hour
	defaultAPILife  = 30 * 24 * time.Hour
	maxAPILife      = 366 * 24 * time.Hour
	maxUses         = 10_000
	// forgetToken is how long a dead token still gets the answer that says why.
	forgetToken = 7 * 24 * time.Hour
)

// CreateToken makes a join token, or an API token if r has a role. Only its hash is stored.
func (a *Authority) CreateToken(p Principal, r TokenRequest) (CreatedToken, error) {
	need, kind := RoleOperator, "join"
	if r.Control {
		need, kind = RoleAdmin, "control"
	}
	if r.Role != "" {
		need, kind = RoleAdmin, "API"
	}
	token, err := newToken(a.mesh.Mesh, a.options.ControlAddrs(), identity.Fingerprint(a.root))
	if err != nil {
		return CreatedToken{}, err
	}
	created := CreatedToken{ID: token.ID, Token: token.String()}
	_, err = a.change(p, need, "create", "token/"+token.ID, func(t *txn) (string, error) {
		if err := a.completeToken(&r); err != nil {
			return "", err
		}
		if err := t.forgetTokens(); err != nil {
			return "", err
		}
		created.Expires = t.now.Add(r.TTL)
		return kind, put(t, bucketTokens, token.ID, tokenRow{Hash: hashSecret(token.Secret), TokenInfo: TokenInfo{
			ID: token.ID, Created: t.now, Author: p.Name, Expires: created.Expires,
			Uses: r.Uses, Grant: r.Grant, Control: r.Control, Role: r.Role,
		}})
	})
	if err != nil {
		return CreatedToken{}, err
	}
	return created, nil
}

// completeToken checks a request and fills its defaults in.
func (a *Authority) completeToken(r *TokenRequest) error {
	life, longest := defaultJoinLife, maxJoinLife
	if r.Role != "" {
		life, longest = defaultAPILife, maxAPILife
		if r.Role.rank() == 0 {
			return noRole(r.Role)
		}
		if r.Uses != 0 || len(r.Grant) > 0 || r.Control {
			return &Error{Code: CodeInvalid, Field: "role", Message: "an API token enrols no host", Fix: "leave uses, grant and control out, or the role"}
		}
	} else if r.Uses == 0 {
		r.Uses = 1
	}
	if r.TTL == 0 {
		r.TTL = life
	}
	if r.TTL < time.Second || r.TTL > longest {
		return &Error{Code: CodeInvalid, Field: "ttl", Message: fmt.Sprintf("%v is out of range", r.TTL), Fix: fmt.Sprintf("use 1s to %v", longest)}
	}
	if r.Uses < 0 || r.Uses > maxUses {
		return &Error{Code: CodeInvalid, Field: "uses", Message: fmt.Sprintf("%d is out of range", r.Uses), Fix: fmt.Sprintf("use 1 to %d", maxUses)}
	}
	return a.checkLabels("grant", r.Grant)
}

// checkLabels refuses malformed labels and a sensitivity that the scale does not have.
func (a *Authority) checkLabels(field string, labels segment.Labels) error {
	if err := segment.ValidLabels(labels); err != nil {
		return &Error{Code: CodeInvalid, Field: field, Message: err.Error(), Fix: "write labels as key=value"}
	}
	level, given := labels[segment.LabelSensitivity]
	if scale := a.Policy().Parsed.Scale(); given && !slices.Contains(scale, level) {
		return &Error{Code: CodeInvalid, Field: field, Message: fmt.Sprintf("the policy has no sensitivity %q", level),
			Fix: "use one of " + strings.Join(scale, ", ")}
	}
	return nil
}

// forgetTokens deletes those that died long ago.
func (t *txn) forgetTokens() error {
	var old []string
	err := each(t, bucketTokens, func(r *tokenRow) error {
		if t.now.Sub(r.Expires) > forgetToken {
			old = append(old, r.ID)
		}
		return nil
	})
	for _, id := range old {
		if _, err := t.Delete(bucketTokens, id); err != nil {
			return err
		}
	}
	return err
}

// Tokens lists the tokens, those that expired or wore out lately included, by ID.
func (a *Authority) Tokens() ([]TokenInfo, error) {
	return list(a, bucketTokens, func(_ overlay.Tx, r *tokenRow) (TokenInfo, error) { return r.TokenInfo, nil })
}

// RevokeToken makes a token unknown at once. Control and API tokens need an admin.
func (a *Authority) RevokeToken(p Principal, id string) error {
	_, err := a.change(p, RoleOperator, "revoke", "token/"+id, func(t *txn) (string, error) {
		var row tokenRow
		found, err := get(t, bucketTokens, id, &row)
		if err != nil {
			return "", err
		}
		if !found {
			return "", &Error{Code: CodeNotFound, Field: "id", Message: fmt.Sprintf("no token %q", id), Fix: "see `bulkhead token list`"}
		}
		if (row.Control || row.Role != "") && !p.Role.Allows(RoleAdmin) {
			return "", &Error{Code: CodeDenied, Message: "control and API tokens are an admin's to revoke", Fix: "ask an admin"}
		}
		_, err = t.Delete(bucketTokens, id)
		return "", err
	})
	return err
}

// checkToken finds the token with this secret. A wrong secret and an unknown ID get the same answer; only
// who holds the secret learns that it expired.
func checkToken(tx overlay.Tx, id string, secret []byte, now time.Time) (*tokenRow, error) {
	var row tokenRow
	if _, err := get(tx, bucketTokens, id, &row); err != nil {
		return nil, err
	}
	if !sameSecret(row.Hash, secret) {
		return nil, &Error{Code: CodeTokenUnknown, Field: "token", Message: "this mesh has no such token; it may have been revoked",
			Fix: "get a new one with `bulkhead token create`"}
	}
	if !now.Before(row.Expires) {
		return nil, &Error{Code: CodeTokenExpired, Field: "token", Message: "the token expired at " + row.Expires.Format(time.RFC3339),
			Fix: "get a new one with `bulkhead token create`"}
	}
	return &row, nil
}

// joinToken is checkToken for a token that shall enrol a host now.
func joinToken(tx overlay.Tx, id string, secret []byte, now time.Time) (*tokenRow, error) {
	row, err := checkToken(tx, id, secret, now)
	if err != nil {
		return nil, err
	}
	if row.Role != "" {
		return nil, &Error{Code: CodeDenied, Field: "token", Message: "this is an API token: it enrols no host",
			Fix: "get one with `bulkhead token create` without a role"}
	}
	if row.Used >= row.Uses {
		return nil, &Error{Code: CodeTokenUsed, Field: "token", Message: fmt.Sprintf("the token is used up (%d of %d)", row.Used, row.Uses),
			Fix: "get a new one with `bulkhead token create`"}
	}
	return row, nil
}

// spendToken counts one enrolment.
func (t *txn) spendToken(id string, secret []byte) (*tokenRow, error) {
	row, err := joinToken(t, id, secret, t.now)
	if err != nil {
		return nil, err
	}
	row.Used++
	return row, put(t, bucketTokens, id, row)
}

// Bearer tells whose API token this is. Failures are audited, within bounds.
func (a *Authority) Bearer(token string) (Principal, error) {
	p := Principal{Name: "token/unknown"}
	t, err := ParseToken(token)
	if err == nil && (t.Mesh != a.mesh.Mesh || t.Root != identity.Fingerprint(a.root)) {
		err = ErrTampered
	}
	if err == nil {
		p.Name = "token/" + t.ID
		p.Role, err = a.bearerRole(t)
	}
	if err != nil {
		p.Role = ""
		a.refused(&a.strangers, p, "authenticate", "", err)
		return Principal{}, err
	}
	return p, nil
}

func (a *Authority) bearerRole(t Token) (role Role, err error) {
	err = a.store.View(func(tx overlay.Tx) error {
		row, err := checkToken(tx, t.ID, t.Secret, a.now())
		if err != nil {
			return err
		}
		if row.Role == "" {
			return &Error{Code: CodeDenied, Field: "token", Message: "this is a join token: it gives no access to the API",
				Fix: "get one with `bulkhead token create --role`"}
		}
		role = row.Role
		return nil
	})
	return role, plain(err)
}
