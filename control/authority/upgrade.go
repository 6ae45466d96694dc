package authority

import (
	"bytes"
	"slices"

	"github.com/bulkhead-mesh/bulkhead/overlay"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
	"github.com/bulkhead-mesh/bulkhead/overlay/signed"
)

// upgrade gives a store of an older program what this one needs: a key for JWT-SVIDs that policy tells of, and no agent
// that has the resolver's address.
func (a *Authority) upgrade() error {
	var made *jwtRow
	if a.jwt == nil {
		row, err := newJWTRow()
		if err != nil {
			return err
		}
		if a.jwt, err = newJWTSigner(row); err != nil {
			return err
		}
		made = &row
	}
	misplaced, err := a.misplaced()
	if err != nil {
		return err
	}
	told := slices.ContainsFunc(a.Policy().JWTKeys, func(k signed.JWTKey) bool {
		return k.ID == a.jwt.public.ID && bytes.Equal(k.Key, a.jwt.public.Key)
	})
	if made == nil && told && len(misplaced) == 0 {
		return nil
	}
	return a.update(func(t *txn) error {
		if made != nil {
			if err := put(t, bucketMeta, keyJWT, made); err != nil {
				return err
			}
		}
		for _, row := range misplaced {
			if err := t.move(row); err != nil {
				return err
			}
		}
		p := Principal{Name: "control/upgrade", From: "local"}
		if err := t.revoke(p, "upgrade", t.voided...); err != nil {
			return err
		}
		return t.record(p, "upgrade", "mesh/"+a.mesh.Mesh, t.Version, resultDone, "")
	})
}

// misplaced are the agents that have the resolver's address.
func (a *Authority) misplaced() (rows []*agentRow, err error) {
	err = a.store.View(func(tx overlay.Tx) error {
		return each(tx, bucketAgents, func(r *agentRow) error {
			if r.active() && slices.ContainsFunc(r.Addresses, a.isResolver) {
				rows = append(rows, r)
			}
			return nil
		})
	})
	return rows, err
}

// move gives an agent other addresses; its certificates with the old ones are void.
func (t *txn) move(row *agentRow) (err error) {
	if row.Addresses, err = t.nextAddresses(); err != nil {
		return err
	}
	row.void(t.now)
	t.voided = append(t.voided, identity.Revocation{ID: "agent/" + row.Name, Before: row.Floor, Reason: reasonDeclared})
	return put(t, bucketAgents, row.Name, row)
}
