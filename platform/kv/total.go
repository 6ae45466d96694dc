package kv

import (
	"crypto/sha256"
	"crypto/subtle"
	"fmt"

	"go.etcd.io/bbolt"
)

// The total is the checksums of all values, combined by exclusive or: damage that makes whole keys disappear, or
// appear again, leaves every value that can be read intact, and is noticed here.
const (
	bucketTotal = "\x00total"
	keyTotal    = "sum"
)

type total [sha256.Size]byte

// toggle adds a value, or takes it away again.
func (t *total) toggle(bucket, key string, value []byte) {
	sum := checksum(bucket, key, value)
	subtle.XORBytes(t[:], t[:], sum[:])
}

// add combines what a transaction changed with the total so far.
func (t *transaction) addTotal() error {
	if t.changed == (total{}) {
		return nil
	}
	sum, err := readTotal(t.tx)
	if err != nil {
		return err
	}
	subtle.XORBytes(sum[:], sum[:], t.changed[:])
	b, err := t.tx.CreateBucketIfNotExists([]byte(bucketTotal))
	if err != nil {
		return fmt.Errorf("put total: %w", err)
	}
	if err := b.Put([]byte(keyTotal), seal(bucketTotal, keyTotal, sum[:])); err != nil {
		return fmt.Errorf("put total: %w", err)
	}
	return nil
}

// readTotal is zero for a store in which nothing was ever put.
func readTotal(tx *bbolt.Tx) (sum total, err error) {
	b := tx.Bucket([]byte(bucketTotal))
	if b == nil {
		return sum, nil
	}
	value, err := unseal(bucketTotal, keyTotal, b.Get([]byte(keyTotal)))
	if err == nil && copy(sum[:], value) != len(sum) {
		err = fmt.Errorf("%w: the total is too short", ErrCorrupt)
	}
	return sum, err
}
