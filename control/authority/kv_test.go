package authority_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/bulkhead-mesh/bulkhead/control/authority"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
	"github.com/bulkhead-mesh/bulkhead/platform/kv"
)

// The same on disk: what was acknowledged is there after a restart, and a token stays spent.
func TestOnDisk(t *testing.T) {
	dir := t.TempDir()
	open := func() (*kv.Store, *authority.Authority) {
		t.Helper()
		store, err := kv.Open(filepath.Join(dir, "store"), time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := authority.Init(store, authority.InitOptions{Mesh: mesh, Host: "h1", Now: time.Now()}); err != nil && !errors.Is(err, authority.ErrExists) {
			t.Fatal(err)
		}
		a, err := authority.Open(store, authority.Options{AuditPath: filepath.Join(dir, "audit.jsonl")})
		if err != nil {
			t.Fatal(err)
		}
		return store, a
	}
	shut := func(store *kv.Store, a *authority.Authority) {
		t.Helper()
		if err := errors.Join(a.Close(), store.Close()); err != nil {
			t.Fatal(err)
		}
	}
	store, a := open()
	created, err := a.CreateToken(admin, authority.TokenRequest{})
	if err != nil {
		t.Fatal(err)
	}
	token, err := authority.ParseToken(created.Token)
	if err != nil {
		t.Fatal(err)
	}
	request := func(host string) authority.EnrollRequest {
		return authority.EnrollRequest{TokenID: token.ID, Secret: token.Secret, Host: host, HostCSR: csr(t, identity.KindHost, host), WireGuard: wireguard(host), Time: time.Now()}
	}
	errs := make([]error, 20)
	var wg sync.WaitGroup
	for i := range errs {
		r := request(fmt.Sprintf("h%d", i))
		wg.Go(func() { _, errs[i] = a.Enroll("", r) })
	}
	wg.Wait()
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
		} else {
			wantCode(t, err, authority.CodeTokenUsed)
		}
	}
	change, err := a.PutPolicy(admin, 1, document)
	if won != 1 || err != nil || change.Version != 2 {
		t.Fatalf("%d enrolments, change %+v, %v", won, change, err)
	}
	audited, err := a.Audit(1000)
	if err != nil {
		t.Fatal(err)
	}
	shut(store, a)

	store, a = open()
	defer shut(store, a)
	if p := a.Policy(); p.Version != 2 || p.Document != document {
		t.Errorf("version %d after a restart", p.Version)
	}
	again, err := a.Audit(1000)
	if err != nil || len(again) != len(audited) {
		t.Errorf("%d audit entries became %d, %v", len(audited), len(again), err)
	}
	_, err = a.Enroll("", request("late"))
	wantCode(t, err, authority.CodeTokenUsed)
}
