package overlay

import (
	"fmt"

	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
	"github.com/bulkhead-mesh/bulkhead/overlay/signed"
)

const (
	bucketPolicy  = "policy"
	bucketRecords = "records"
	keyCurrent    = "current"
)

// load takes the last policy and the records that are still valid from the store.
func (m *Mesh) load() error {
	return m.options.Store.View(func(tx Tx) error {
		if raw := tx.Get(bucketPolicy, keyCurrent); raw != nil {
			p, err := signed.OpenPolicy(clone(raw), m.trust, m.options.Now())
			if err != nil {
				return fmt.Errorf("load policy: %w", err)
			}
			m.policy = p
			m.trust = &identity.Trust{Mesh: m.trust.Mesh, Roots: m.trust.Roots, Revocations: p.Revocations}
		}
		return tx.Each(bucketRecords, func(key string, raw []byte) error {
			r, err := signed.OpenRecord(clone(raw), m.trust, m.options.Now())
			if err != nil {
				m.refused["record-"+reasonOf(err)]++
				m.options.Logger.Warn("stored record is not valid now", "key", key, "error", err)
				return nil
			}
			m.leaveOut(r)
			if held := m.records[r.Host]; held == nil || r.Sequence > held.Sequence {
				m.records[r.Host] = r
			}
			if key != r.Host { // a seed: it is stored under its name with the next change
				m.staged[r.Host] = m.records[r.Host]
				m.void = append(m.void, key)
			}
			return nil
		})
	})
}

func clone(b []byte) []byte { return append([]byte(nil), b...) }

func (m *Mesh) storePolicy(p *signed.VerifiedPolicy) error {
	err := m.options.Store.Update(func(tx Tx) error { return tx.Put(bucketPolicy, keyCurrent, p.Raw) })
	if err != nil {
		return fmt.Errorf("%w: policy version %d: %w", errStorage, p.Version, err)
	}
	return nil
}

// storeRecords puts records and deletes those that void names, all or nothing.
func (m *Mesh) storeRecords(records map[string]*signed.VerifiedRecord, void []string) error {
	err := m.options.Store.Update(func(tx Tx) error {
		for _, key := range void {
			if _, err := tx.Delete(bucketRecords, key); err != nil {
				return err
			}
		}
		for host, r := range records {
			if err := tx.Put(bucketRecords, host, r.Raw); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("%w: records: %w", errStorage, err)
	}
	return nil
}

// Seed puts the policy and the records that a joining host was given into its new store. They are
// verified when a mesh is made from the store, like all else in it.
func Seed(store Store, policy []byte, records [][]byte) error {
	return store.Update(func(tx Tx) error {
		if err := tx.Put(bucketPolicy, keyCurrent, policy); err != nil {
			return err
		}
		for i, raw := range records {
			if err := tx.Put(bucketRecords, fmt.Sprintf("seed-%d", i), raw); err != nil {
				return err
			}
		}
		return nil
	})
}
