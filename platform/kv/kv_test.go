package kv

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

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

// TestTruncationIsRefused cuts a store of many pages at many places.
func TestTruncationIsRefused(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "x.db")
	s := openTest(t, path)
	for i := range 20 {
		put(t, s, fmt.Sprint("key", i), strings.Repeat("policy ", 2000))
	}
	var used int64 // bbolt makes files longer than what is in them
	if err := s.db.View(func(tx *bbolt.Tx) error { used = tx.Size(); return nil }); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int64{0, 1, 100, 4096, 8192, used / 4, used / 2, used - 4096, used - 1} {
		cut := filepath.Join(dir, fmt.Sprint("cut", n))
		if err := os.WriteFile(cut, content[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(cut, time.Second)
		if !errors.Is(err, ErrCorrupt) {
			t.Errorf("Open of %d bytes of %d = %v, want ErrCorrupt", n, used, err)
		}
		if err == nil {
			s.Close()
		}
	}
}

// TestFullAndReadOnlyDisk fills a small file system: the change that does not fit is refused as a whole, the rest stays.
func TestFullAndReadOnlyDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test mounts a file system: run it as root")
	}
	dir := t.TempDir()
	done := make(chan struct{})
	go func() { // on a thread of its own, whose mounts nobody else sees
		defer close(done)
		runtime.LockOSThread()
		if err := fullAndReadOnly(dir); err != nil {
			t.Error(err)
		}
	}()
	<-done
}

func fullAndReadOnly(dir string) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		return err
	}
	path := filepath.Join(dir, "x.db")
	s, err := Open(path, time.Second)
	if err != nil {
		return err
	}
	write := func(key string, n int) error {
		return s.Update(func(tx overlay.Tx) error { return tx.Put("b", key, bytes.Repeat([]byte("x"), n)) })
	}
	if err := write("small", 100); err != nil {
		return err
	}
	if err := write("big", 1<<20); !errors.Is(err, ErrFull) {
		return fmt.Errorf("Update on a full disk = %w, want ErrFull", err)
	}
	if err := errors.Join(write("after", 10), s.Close()); err != nil {
		return fmt.Errorf("Update after a full disk: %w", err)
	}
	if s, err = Open(path, time.Second); err != nil {
		return err
	}
	err = s.View(func(tx overlay.Tx) error {
		if len(tx.Get("b", "small")) != 100 || tx.Get("b", "big") != nil || len(tx.Get("b", "after")) != 10 {
			return errors.New("the store does not hold exactly what was committed")
		}
		return nil
	})
	if err := errors.Join(err, s.Close(), unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, "")); err != nil {
		return err
	}
	if _, err := Open(path, time.Second); !errors.Is(err, ErrReadOnly) {
		return fmt.Errorf("Open on a read-only disk = %w, want ErrReadOnly", err)
	}
	return nil
}
