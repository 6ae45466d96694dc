package authority_test

import (
	"testing"
	"time"
)

// An authority whose store was restored from a backup goes on from what hosts hold, and undoes no revocation.
func TestRecoverFromAnOldBackup(t *testing.T) {
	w := newWorld(t)
	w.join("h2", "scout")
	w.join("h3")
	backup := w.store.Clone()
	w.now = w.now.Add(time.Hour)
	if _, err := w.RevokeHost(admin, "h2", "stolen"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.PutPolicy(admin, 0, "segments:\n  - {name: plan, match: {function: plan}}\n"); err != nil {
		t.Fatal(err)
	}
	held := w.Policy()
	if err := w.Recover(held); err != nil || w.Policy() != held {
		t.Fatalf("its own policy made version %d, %v", w.Policy().Version, err)
	}

	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	w.store, w.auditAt = backup, w.auditAt+".restored"
	w.open()
	if w.Policy().Version >= held.Version {
		t.Fatalf("the backup has version %d", w.Policy().Version)
	}
	if err := w.Recover(held); err != nil {
		t.Fatal(err)
	}
	next := w.Policy()
	if next.Version != held.Version+1 || next.Parent != held.Digest || next.Document != held.Document {
		t.Errorf("it goes on with version %d", next.Version)
	}
	if err := next.Succeeds(held); err != nil {
		t.Errorf("hosts refuse it: %v", err)
	}
	if len(next.Revocations) != 1 || next.Revocations[0].ID != "host/h2" {
		t.Errorf("revoked are %v", next.Revocations)
	}
	change, err := w.RevokeHost(admin, "h2", "again")
	if err != nil || !change.Unchanged {
		t.Errorf("h2 is not revoked in the registry: %+v, %v", change, err)
	}
	if change, err := w.RevokeHost(admin, "h3", "too"); err != nil || change.Version != next.Version+1 {
		t.Errorf("the next change: %+v, %v", change, err)
	}
	w.reopen()
	if versions, err := w.Versions(); err != nil || w.Policy().Version != next.Version+1 || len(versions) == 0 {
		t.Errorf("after a restart: version %d, %v", w.Policy().Version, err)
	}
}
