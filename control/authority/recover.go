package authority

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
	"github.com/bulkhead-mesh/bulkhead/overlay/signed"
)

// Recover goes on from a policy that hosts hold and this authority does not know, as after its store was restored from a
// backup: hosts would refuse every version that it makes, and later believe one without the revocations made since. The
// next version has that policy's document and both sides' revocations. It does nothing if held is the authority's own.
func (a *Authority) Recover(held *signed.VerifiedPolicy) error {
	if known, err := a.PolicyAt(held.Version); err == nil && known.Digest == held.Digest {
		return nil
	}
	return a.update(func(t *txn) error {
		current := a.Policy()
		if current.Version > held.Version {
			return fmt.Errorf("recover policy: version %d is held by hosts, %d is newer here and was not made from it", held.Version, current.Version)
		}
		if err := t.Put(bucketPolicies, number(held.Version), held.Raw); err != nil {
			return err
		}
		if err := put(t, bucketVersions, number(held.Version), VersionInfo{
			Version: held.Version, Issued: held.Issued, Author: held.Author,
			Digest: hex.EncodeToString(held.Digest[:]), Summary: "found with the hosts of the mesh",
		}); err != nil {
			return err
		}
		revocations := merge(held.Revocations, current.Revocations)
		if err := t.markRevoked(revocations); err != nil {
			return err
		}
		t.Version = held.Version + 1
		summary := fmt.Sprintf("recovered: hosts hold version %d, here was version %d", held.Version, current.Version)
		p := Principal{Name: "control/recovery", From: "local"}
		if err := a.signVersion(t, signed.Policy{
			Mesh: a.mesh.Mesh, Version: t.Version, Parent: held.Digest, Issued: t.now,
			Author: p.Name, Document: held.Document, Revocations: prune(revocations, t.now),
		}, summary, t.now); err != nil {
			return err
		}
		a.options.Logger.Warn("the authority's store is older than the mesh: it goes on from what hosts hold; tokens and labels are those of the store",
			"store", current.Version, "mesh", held.Version, "next", t.Version)
		return t.record(p, "recover", "policy", t.Version, resultDone, summary)
	})
}

// markRevoked makes the registry say what revocations do, so that nobody whom they name renews.
func (t *txn) markRevoked(revocations []identity.Revocation) error {
	var errs error
	for _, r := range revocations {
		kind, name, _ := strings.Cut(r.ID, "/")
		switch identity.Kind(kind) {
		case identity.KindHost:
			errs = errors.Join(errs, mark(t, bucketHosts, name, r, func(row *hostRow) *certified { return &row.certified }))
		case identity.KindAgent:
			errs = errors.Join(errs, mark(t, bucketAgents, name, r, func(row *agentRow) *certified { return &row.certified }))
		case identity.KindOperator:
			errs = errors.Join(errs, mark(t, bucketOperators, name, r, func(row *operatorRow) *certified { return &row.certified }))
		}
	}
	return errs
}

func mark[T any](t *txn, bucket, name string, r identity.Revocation, part func(*T) *certified) error {
	row := new(T)
	found, err := get(t, bucket, name, row)
	if err != nil || !found {
		return err
	}
	c := part(row)
	if c.Revoked != nil || !c.Floor.Before(r.Before) {
		return nil
	}
	c.Floor = r.Before
	if r.Reason != reasonRelabelled && r.Reason != reasonRole && r.Reason != reasonDeclared {
		at := r.Before.UTC().Truncate(time.Second)
		c.Revoked = &at
	}
	return put(t, bucket, name, row)
}
