package overlaytest_test

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-mesh/bulkhead/overlay"
	"github.com/bulkhead-mesh/bulkhead/overlay/overlaytest"
)

// content is what a store holds, as "bucket/key=value" in the order of Each.
func content(t *testing.T, s *overlaytest.Store, buckets ...string) []string {
	t.Helper()
	all := []string{}
	err := s.View(func(tx overlay.Tx) error {
		for _, bucket := range buckets {
			err := tx.Each(bucket, func(key string, value []byte) error {
				all = append(all, bucket+"/"+key+"="+string(value))
				return nil
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestStoreTransactions(t *testing.T) {
	s, fault := new(overlaytest.Store), errors.New("no")
	put := func(key, value string, result error) error {
		return s.Update(func(tx overlay.Tx) error {
			buffer := []byte(value)
			if err := tx.Put("b", key, buffer); err != nil {
				return err
			}
			copy(buffer, "xxxxxxxx") // the store must have its own copy
			return result
		})
	}
	for _, key := range []string{"2", "1", "3"} {
		if err := put(key, "v"+key, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := put("1", "undone", fault); !errors.Is(err, fault) {
		t.Errorf("got %v", err)
	}
	backup := s.Clone()
	err := s.Update(func(tx overlay.Tx) error {
		existed, err := tx.Delete("b", "2")
		again, err2 := tx.Delete("b", "2")
		if !existed || again || tx.Get("b", "2") != nil {
			t.Errorf("deleted %v, again %v", existed, again)
		}
		return errors.Join(err, err2)
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"b/1=v1", "b/3=v3"}, content(t, s, "b", "none")); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"b/1=v1", "b/2=v2", "b/3=v3"}, content(t, backup, "b")); diff != "" {
		t.Error(diff)
	}
	err = s.View(func(tx overlay.Tx) error {
		if _, err := tx.Delete("b", "1"); err == nil {
			t.Error("a view deleted")
		}
		return tx.Put("b", "1", nil)
	})
	if err == nil {
		t.Error("a view changed the store")
	}
}

func TestStoreCrashes(t *testing.T) {
	s, crash := new(overlaytest.Store), errors.New("power cut")
	for _, keep := range []bool{false, true} {
		s.OnCommit = func() (bool, error) { return keep, crash }
		err := s.Update(func(tx overlay.Tx) error { return tx.Put("b", "k", []byte("v")) })
		if got := len(content(t, s, "b")) == 1; got != keep || !errors.Is(err, crash) {
			t.Errorf("kept %v, want %v; %v", got, keep, err)
		}
	}
}
