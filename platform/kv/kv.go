// Package kv keeps named buckets of bytes in one file, transactionally and durably, on bbolt. Every value
// carries a checksum, and all of them together another: bbolt has none on its data pages, and a flipped bit shall be
// an error, not an answer.
package kv

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/bulkhead-mesh/bulkhead/overlay"
)

// Errors that a caller can explain. They are wrapped with the cause.
var (
	ErrLocked   = errors.New("store is in use by another process")
	ErrCorrupt  = errors.New("store is damaged")
	ErrReadOnly = errors.New("store cannot be written")
	ErrFull     = errors.New("no space left for the store")
)

// sumSize is how many bytes of SHA-256 stand before each value.
const sumSize = 8

// Store is an open file. It implements overlay.Store and is safe for concurrent use.
type Store struct{ db *bbolt.DB }

var _ overlay.Store = (*Store)(nil)

// Open opens the store at path and checks it, or creates an empty one. It waits up to timeout for another
// process to let go of it, then returns ErrLocked.
func Open(path string, timeout time.Duration) (*Store, error) {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		if err := create(path, timeout); err != nil {
			return nil, classify("create store", err)
		}
	}
	if err := checkFile(path, timeout); err != nil {
		return nil, classify("open store", err)
	}
	db, err := open(path, &bbolt.Options{Timeout: timeout, FreelistType: bbolt.FreelistMapType})
	if err != nil {
		return nil, classify("open store", err)
	}
	s := &Store{db: db}
	if err := s.checkValues(); err != nil {
		return nil, errors.Join(fmt.Errorf("check store: %w", err), s.Close())
	}
	return s, nil
}

// create makes an empty store under another name first: bbolt may leave a damaged file when power fails
// while it initialises one.
func create(path string, timeout time.Duration) (err error) {
	dir := filepath.Dir(path)
	tmp, err := os.CreateTemp(dir, "."+filepath.Base(path)+"-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, removeIfThere(tmp.Name())) }()
	if err := tmp.Close(); err != nil {
		return err
	}
	db, err := bbolt.Open(tmp.Name(), 0o600, &bbolt.Options{Timeout: timeout})
	if err != nil {
		return err
	}
	if err := errors.Join(db.Sync(), db.Close()); err != nil {
		return err
	}
	// Link, unlike Rename, never replaces a store that another process made meanwhile.
	if err := os.Link(tmp.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Update runs fn in a transaction. When Update returns nil, what fn put is on disk; otherwise nothing changed.
func (s *Store) Update(fn func(overlay.Tx) error) error {
	return classify("update store", s.db.Update(func(tx *bbolt.Tx) error {
		t := &transaction{tx: tx}
		if err := errors.Join(fn(t), t.fault); err != nil {
			return err
		}
		return t.addTotal()
	}))
}

// View runs fn in a read-only transaction.
func (s *Store) View(fn func(overlay.Tx) error) error {
	return classify("read store", s.db.View(func(tx *bbolt.Tx) error {
		t := &transaction{tx: tx}
		return errors.Join(fn(t), t.fault)
	}))
}

// Close waits for transactions that run.
func (s *Store) Close() error { return s.db.Close() }

// classify says what a user can do something about.
func classify(doing string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, bolterrors.ErrTimeout):
		return fmt.Errorf("%s: %w", doing, ErrLocked)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("%s: %w (fix: free some): %w", doing, ErrFull, err)
	case errors.Is(err, syscall.EROFS), errors.Is(err, fs.ErrPermission), errors.Is(err, bolterrors.ErrDatabaseReadOnly):
		return fmt.Errorf("%s: %w (fix: make it writable for this user): %w", doing, ErrReadOnly, err)
	case errors.Is(err, bolterrors.ErrInvalid), errors.Is(err, bolterrors.ErrChecksum), errors.Is(err, bolterrors.ErrVersionMismatch), errors.Is(err, bolterrors.ErrInvalidMapping):
		return fmt.Errorf("%s: %w: %w", doing, ErrCorrupt, err)
	default:
		return fmt.Errorf("%s: %w", doing, err)
	}
}

func seal(bucket, key string, value []byte) []byte {
	sum := checksum(bucket, key, value)
	return append(sum[:sumSize:sumSize], value...)
}

func unseal(bucket, key string, sealed []byte) ([]byte, error) {
	if len(sealed) < sumSize {
		return nil, fmt.Errorf("%w: %q/%q is too short", ErrCorrupt, bucket, key)
	}
	value := sealed[sumSize:]
	if sum := checksum(bucket, key, value); string(sum[:sumSize]) != string(sealed[:sumSize]) {
		return nil, fmt.Errorf("%w: %q/%q is not what was stored", ErrCorrupt, bucket, key)
	}
	return value, nil
}

// checksum covers the place too, so that a value that moved is not believed.
func checksum(bucket, key string, value []byte) [sha256.Size]byte {
	h := sha256.New()
	fmt.Fprintf(h, "%d/%s/%d/%s/", len(bucket), bucket, len(key), key)
	h.Write(value)
	return [sha256.Size]byte(h.Sum(nil))
}
