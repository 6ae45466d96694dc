package authority

import (
	"encoding/hex"
	"fmt"
	"time"

	"github.com/bulkhead-mesh/bulkhead/overlay"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
	"github.com/bulkhead-mesh/bulkhead/overlay/signed"
)

// newPolicy signs and stores the next version.
func (t *txn) newPolicy(author, summary, document string, revocations []identity.Revocation) error {
	current := t.a.Policy()
	if current.Version != t.Version {
		return fmt.Errorf("policy version %d is stored but could not be opened", t.Version)
	}
	t.Version++
	return t.a.signVersion(t, signed.Policy{
		Mesh: t.a.mesh.Mesh, Version: t.Version, Parent: current.Digest, Issued: t.now,
		Author: author, Document: document, Revocations: prune(revocations, t.now),
	}, summary, t.now)
}

// signVersion signs a version and stores it with its description. What hosts would refuse is not stored.
func (a *Authority) signVersion(tx overlay.Tx, p signed.Policy, summary string, now time.Time) error {
	p.JWTKeys = []signed.JWTKey{a.jwt.public}
	raw, err := signed.SignPolicy(p, a.signer, a.mesh.Policy.Chain)
	if err != nil {
		return fmt.Errorf("sign policy %d: %w", p.Version, err)
	}
	opened, err := a.openPolicy(raw, now)
	if err != nil {
		return fmt.Errorf("open policy %d after signing: %w", p.Version, err)
	}
	if err := tx.Put(bucketPolicies, number(p.Version), raw); err != nil {
		return err
	}
	return put(tx, bucketVersions, number(p.Version), VersionInfo{
		Version: p.Version, Issued: p.Issued, Author: p.Author,
		Digest: hex.EncodeToString(opened.Digest[:]), Summary: clip(summary),
	})
}

func (a *Authority) openPolicy(raw []byte, now time.Time) (*signed.VerifiedPolicy, error) {
	return signed.OpenPolicy(raw, &identity.Trust{Mesh: a.mesh.Mesh, Roots: a.Roots()}, now)
}

// PolicyAt is a stored version, verified; an Error with CodeNotFound if there is none.
func (a *Authority) PolicyAt(version uint64) (*signed.VerifiedPolicy, error) {
	var raw []byte
	err := a.store.View(func(tx overlay.Tx) error {
		raw = append(raw, tx.Get(bucketPolicies, number(version))...)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read policy %d: %w", version, err)
	}
	if len(raw) == 0 {
		return nil, &Error{Code: CodeNotFound, Field: "version", Message: fmt.Sprintf("no policy version %d", version),
			Fix: "choose one that `bulkhead policy versions` lists"}
	}
	p, err := a.openPolicy(raw, a.now())
	if err != nil {
		return nil, fmt.Errorf("open policy %d: %w", version, err)
	}
	return p, nil
}

// Versions lists every policy version, oldest first.
func (a *Authority) Versions() ([]VersionInfo, error) {
	return list(a, bucketVersions, func(_ overlay.Tx, v *VersionInfo) (VersionInfo, error) { return *v, nil })
}
