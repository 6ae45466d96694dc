package kv

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"time"

	"go.etcd.io/bbolt"
)

// open turns a panic of bbolt into an error.
func open(path string, options *bbolt.Options) (db *bbolt.DB, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", ErrCorrupt, r)
		}
	}()
	return bbolt.Open(path, 0o600, options)
}

// checkFile checks what bbolt trusts, before it does. The shortest store has two pages of meta data, which alone are
// read when it is opened for reading; an empty file would be taken for a store to be made.
func checkFile(path string, timeout time.Duration) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.Size() < int64(firstPage*os.Getpagesize()) {
		return fmt.Errorf("%w: the file has only %d bytes", ErrCorrupt, info.Size())
	}
	db, err := open(path, &bbolt.Options{Timeout: timeout, ReadOnly: true})
	if err != nil {
		return err
	}
	return errors.Join(db.View(func(tx *bbolt.Tx) error { return checkLayout(tx, path) }), db.Close())
}

// checkValues looks every key up, and verifies every checksum and that no key is missing.
func (s *Store) checkValues() (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", ErrCorrupt, r)
		}
	}()
	return s.db.View(func(tx *bbolt.Tx) error {
		want, err := readTotal(tx)
		if err != nil {
			return err
		}
		var got total
		err = tx.ForEach(func(name []byte, b *bbolt.Bucket) error {
			if tx.Bucket(name) == nil {
				return fmt.Errorf("%w: bucket %q is not found by its name", ErrCorrupt, name)
			}
			return b.ForEach(func(key, value []byte) error {
				if !bytes.Equal(b.Get(key), value) {
					return fmt.Errorf("%w: %q/%q is not found by its key", ErrCorrupt, name, key)
				}
				plain, err := unseal(string(name), string(key), value)
				if string(name) != bucketTotal {
					got.toggle(string(name), string(key), plain)
				}
				return err
			})
		})
		if err == nil && got != want {
			err = fmt.Errorf("%w: keys are missing", ErrCorrupt)
		}
		return err
	})
}
