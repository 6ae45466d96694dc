package kv

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-mesh/bulkhead/overlay"
)

// busyStore is the file of a store with small and large buckets, pages that branch and that run over, and free ones,
// and what it holds.
func busyStore(t testing.TB) (content []byte, held map[string]string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "x.db")
	s, err := Open(path, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	held = map[string]string{}
	write := func(bucket, key, value string) {
		held[bucket+"/"+key] = value
		if err := s.Update(func(tx overlay.Tx) error { return tx.Put(bucket, key, []byte(value)) }); err != nil {
			t.Fatal(err)
		}
	}
	write("meta", "version", "3")
	for i := range 100 {
		write("records", fmt.Sprint("host", i), strings.Repeat(fmt.Sprint("record ", i), 20))
	}
	write("policy", "current", strings.Repeat("policy ", 2000))
	write("policy", "current", strings.Repeat("newer ", 2000))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	content, err = os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content, held
}

// checkDamaged demands that a damaged store is refused, or gives nothing that was never stored.
func checkDamaged(t testing.TB, dir string, content []byte, held map[string]string) {
	t.Helper()
	path := filepath.Join(dir, "damaged.db")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Open(path, time.Second)
	if err != nil {
		if !errors.Is(err, ErrCorrupt) {
			t.Errorf("Open = %v, want ErrCorrupt", err)
		}
		return
	}
	defer s.Close()
	for place, want := range held {
		bucket, key, _ := strings.Cut(place, "/")
		var got string
		err := s.View(func(tx overlay.Tx) error { got = string(tx.Get(bucket, key)); return nil })
		// Where one of bbolt's two meta pages is damaged it falls back to the other, and so one change behind: what
		// that means is the caller's to judge.
		former := place == "policy/current" && got == strings.Repeat("policy ", 2000)
		if err != nil || got != want && !former {
			t.Errorf("%s = %q, %v", place, got, err)
		}
	}
}

// TestDamageIsNoticed changes bytes all over the file, one at a time.
func TestDamageIsNoticed(t *testing.T) {
	content, held := busyStore(t)
	dir := t.TempDir()
	for at := 0; at < len(content); at += 61 {
		damaged := bytes.Clone(content)
		damaged[at] ^= 0x11
		checkDamaged(t, dir, damaged, held)
	}
}

// FuzzDamage writes anything anywhere.
func FuzzDamage(f *testing.F) {
	content, held := busyStore(f)
	f.Add(uint32(0), []byte("\xff"))
	f.Add(uint32(os.Getpagesize()+8), []byte{0, 0, 0, 0})
	f.Add(uint32(5*os.Getpagesize()), []byte{3, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1})
	f.Fuzz(func(t *testing.T, at uint32, bytes []byte) {
		damaged := append([]byte(nil), content...)
		copy(damaged[int(at)%len(damaged):], bytes)
		checkDamaged(t, t.TempDir(), damaged, held)
	})
}
