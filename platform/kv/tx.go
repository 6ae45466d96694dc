package kv

import (
	"fmt"

	"go.etcd.io/bbolt"
)

// transaction implements overlay.Tx. A damaged value reads as absent and makes the whole transaction fail.
type transaction struct {
	tx      *bbolt.Tx
	fault   error
	changed total
}

// Get returns the value, or nil if there is none.
func (t *transaction) Get(bucket, key string) []byte {
	b := t.tx.Bucket([]byte(bucket))
	if b == nil {
		return nil
	}
	sealed := b.Get([]byte(key))
	if sealed == nil {
		return nil
	}
	value, err := unseal(bucket, key, sealed)
	if err != nil {
		t.fault = err
		return nil
	}
	return value
}

// Put sets a value.
func (t *transaction) Put(bucket, key string, value []byte) error {
	b, err := t.tx.CreateBucketIfNotExists([]byte(bucket))
	if err != nil {
		return fmt.Errorf("put %s/%s: %w", bucket, key, err)
	}
	t.dropOld(b, bucket, key)
	if err := b.Put([]byte(key), seal(bucket, key, value)); err != nil {
		return fmt.Errorf("put %s/%s: %w", bucket, key, err)
	}
	t.changed.toggle(bucket, key, value)
	return nil
}

// dropOld takes what is there, if anything, out of the total.
func (t *transaction) dropOld(b *bbolt.Bucket, bucket, key string) {
	sealed := b.Get([]byte(key))
	if sealed == nil {
		return
	}
	old, err := unseal(bucket, key, sealed)
	if err != nil {
		t.fault = err
		return
	}
	t.changed.toggle(bucket, key, old)
}

// Delete removes a value and reports whether there was one.
func (t *transaction) Delete(bucket, key string) (bool, error) {
	if !t.tx.Writable() {
		return false, fmt.Errorf("delete %s/%s: %w", bucket, key, ErrReadOnly)
	}
	b := t.tx.Bucket([]byte(bucket))
	if b == nil || b.Get([]byte(key)) == nil {
		return false, nil
	}
	t.dropOld(b, bucket, key)
	if err := b.Delete([]byte(key)); err != nil {
		return false, fmt.Errorf("delete %s/%s: %w", bucket, key, err)
	}
	return true, nil
}

// Each calls fn for every value of a bucket in key order until fn returns an error.
func (t *transaction) Each(bucket string, fn func(key string, value []byte) error) error {
	b := t.tx.Bucket([]byte(bucket))
	if b == nil {
		return nil
	}
	return b.ForEach(func(key, sealed []byte) error {
		value, err := unseal(bucket, string(key), sealed)
		if err != nil {
			return err
		}
		return fn(string(key), value)
	})
}
