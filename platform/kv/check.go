package kv

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"time"

	"go.etcd.io/bbolt"
)

// guard turns what bbolt does on a damaged file into an error: it panics, or reads beyond the end.
func guard(err *error) func() {
	before := debug.SetPanicOnFault(true)
	return func() {
		debug.SetPanicOnFault(before)
		if r := recover(); r != nil {
			*err = fmt.Errorf("%w: %v", ErrCorrupt, r)
		}
	}
}

func open(path string, options *bbolt.Options) (db *bbolt.DB, err error) {
	defer guard(&err)()
	return bbolt.Open(path, 0o600, options)
}

// whole refuses a file that lost its end. An empty one too, which bbolt would take for a store to be made.
// The shortest store has two pages of meta data.
func whole(path string, timeout time.Duration) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.Size() < int64(2*os.Getpagesize()) {
		return fmt.Errorf("%w: the file has only %d bytes", ErrCorrupt, info.Size())
	}
	db, err := open(path, &bbolt.Options{Timeout: timeout, ReadOnly: true}) // reads the meta pages only
	if err != nil {
		return err
	}
	var size int64
	err = db.View(func(tx *bbolt.Tx) error { size = tx.Size(); return nil })
	if err := errors.Join(err, db.Close()); err != nil {
		return err
	}
	if info.Size() < size {
		return fmt.Errorf("%w: the file has %d bytes of %d", ErrCorrupt, info.Size(), size)
	}
	return nil
}

// check reads the whole file. bbolt's own check comes last: it runs on a goroutine of its own, where nobody can
// catch what the first two find.
func (s *Store) check() (err error) {
	defer guard(&err)()
	return s.db.View(func(tx *bbolt.Tx) error {
		if err := checkPages(tx); err != nil {
			return err
		}
		if err := checkValues(tx); err != nil {
			return err
		}
		var faults error
		for fault := range tx.Check() { // to its end: the channel's sender waits for us
			faults = errors.Join(faults, fmt.Errorf("%w: %w", ErrCorrupt, fault))
		}
		return faults
	})
}

// checkPages looks at how long each page says that it is.
func checkPages(tx *bbolt.Tx) error {
	count := int(tx.Size()) / tx.DB().Info().PageSize
	for id := 0; id < count; id++ {
		page, err := tx.Page(id)
		if err != nil {
			return fmt.Errorf("%w: page %d: %w", ErrCorrupt, id, err)
		}
		if page == nil || page.Type == "free" {
			continue
		}
		if page.OverflowCount >= count-id {
			return fmt.Errorf("%w: page %d claims to span %d more", ErrCorrupt, id, page.OverflowCount)
		}
		id += page.OverflowCount
	}
	return nil
}

// checkValues looks every key up, and verifies every checksum.
func checkValues(tx *bbolt.Tx) error {
	return tx.ForEach(func(name []byte, b *bbolt.Bucket) error {
		if tx.Bucket(name) == nil {
			return fmt.Errorf("%w: bucket %q is not found by its name", ErrCorrupt, name)
		}
		return b.ForEach(func(key, value []byte) error {
			if !bytes.Equal(b.Get(key), value) {
				return fmt.Errorf("%w: %s/%q is not found by its key", ErrCorrupt, name, key)
			}
			_, err := unseal(string(name), string(key), value)
			return err
		})
	})
}
