package kv

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/bulkhead-mesh/bulkhead/overlay"
)

func openTest(t *testing.T, path string) *Store {
	t.Helper()
	s, err := Open(path, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func put(t *testing.T, s *Store, key, value string) {
	t.Helper()
	if err := s.Update(func(tx overlay.Tx) error { return tx.Put("b", key, []byte(value)) }); err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, s *Store, key string) (value string) {
	t.Helper()
	if err := s.View(func(tx overlay.Tx) error { value = string(tx.Get("b", key)); return nil }); err != nil {
		t.Fatal(err)
	}
	return value
}

func TestStoreKeepsWhatWasCommitted(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	s := openTest(t, path)
	put(t, s, "one", "1")
	broken := errors.New("changed my mind")
	err := s.Update(func(tx overlay.Tx) error {
		if err := tx.Put("b", "two", []byte("2")); err != nil {
			return err
		}
		return broken
	})
	if !errors.Is(err, broken) {
		t.Fatalf("Update = %v, want %v", err, broken)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openTest(t, path)
	if one, two := get(t, s, "one"), get(t, s, "two"); one != "1" || two != "" {
		t.Fatalf("one = %q, two = %q; want 1 and nothing", one, two)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v; want 0600", info.Mode(), err)
	}
}

func TestDeleteSaysWhetherThereWasOne(t *testing.T) {
	s := openTest(t, filepath.Join(t.TempDir(), "x.db"))
	put(t, s, "one", "1")
	for _, want := range []bool{true, false} {
		err := s.Update(func(tx overlay.Tx) error {
			existed, err := tx.Delete("b", "one")
			if existed != want {
				t.Errorf("Delete reports %v, want %v", existed, want)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	err := s.View(func(tx overlay.Tx) error { _, err := tx.Delete("b", "one"); return err })
	if !errors.Is(err, ErrReadOnly) {
		t.Fatalf("Delete in View = %v, want ErrReadOnly", err)
	}
}

func TestSecondProcessIsToldSo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	openTest(t, path)
	if _, err := Open(path, 10*time.Millisecond); !errors.Is(err, ErrLocked) {
		t.Fatalf("Open of an open store = %v, want ErrLocked", err)
	}
}

// TestDamageIsNoticed changes every byte of the file in turn: what is then read is what was stored, or an error.
func TestDamageIsNoticed(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "x.db")
	s := openTest(t, path)
	put(t, s, "key", "a value that stands for policy")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	damaged := filepath.Join(dir, "damaged.db")
	try := func(what string, content []byte) {
		if err := os.WriteFile(damaged, content, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(damaged, time.Second)
		if err != nil {
			return
		}
		defer s.Close()
		var got string
		err = s.View(func(tx overlay.Tx) error { got = string(tx.Get("b", "key")); return nil })
		// An older state (bbolt falls back to its other meta page) is the caller's to judge; a changed value is ours.
		if err == nil && got != "" && got != "a value that stands for policy" {
			t.Errorf("%s: read %q", what, got)
		}
	}
	for at := 0; at < len(whole); at += 13 {
		flipped := bytes.Clone(whole)
		flipped[at] ^= 0x10
		try("flip", flipped)
	}
	for _, n := range []int{0, 1, 100, len(whole) / 2, len(whole) - 1} {
		try("truncate", whole[:n])
	}
}
