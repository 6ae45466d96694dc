package overlaytest

import (
	"errors"
	"maps"
	"slices"
	"sync"

	"github.com/bulkhead-mesh/bulkhead/overlay"
)

// Store is an overlay.Store in memory. The zero value is empty and ready; it is safe for concurrent use.
type Store struct {
	// OnCommit, if set, decides what becomes of a transaction whose function succeeded: whether its
	// effects are kept, and the error that Update returns. So a test crashes the store before or after
	// it committed. Set it while no transaction runs.
	OnCommit func() (keep bool, err error)

	mu      sync.RWMutex
	buckets map[string]map[string][]byte
}

var errReadOnly = errors.New("change store: transaction is read-only")

// Update runs fn in a transaction that takes effect whole, or not at all if fn fails.
func (s *Store) Update(fn func(overlay.Tx) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := &tx{buckets: maps.Clone(s.buckets), cloned: map[string]bool{}, writable: true}
	if t.buckets == nil {
		t.buckets = map[string]map[string][]byte{}
	}
	if err := fn(t); err != nil {
		return err
	}
	keep, err := true, error(nil)
	if s.OnCommit != nil {
		keep, err = s.OnCommit()
	}
	if keep {
		s.buckets = t.buckets
	}
	return err
}

// View runs fn in a transaction that cannot change anything.
func (s *Store) View(fn func(overlay.Tx) error) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return fn(&tx{buckets: s.buckets})
}

// tx clones a bucket when it first changes it, so that dropping the transaction undoes it.
type tx struct {
	buckets  map[string]map[string][]byte
	cloned   map[string]bool
	writable bool
}

func (t *tx) Get(bucket, key string) []byte {
	value, ok := t.buckets[bucket][key]
	if ok && value == nil {
		return []byte{}
	}
	return slices.Clone(value)
}

func (t *tx) own(bucket string) map[string][]byte {
	if !t.cloned[bucket] {
		t.cloned[bucket] = true
		b := maps.Clone(t.buckets[bucket])
		if b == nil {
			b = map[string][]byte{}
		}
		t.buckets[bucket] = b
	}
	return t.buckets[bucket]
}

func (t *tx) Put(bucket, key string, value []byte) error {
	if !t.writable {
		return errReadOnly
	}
	t.own(bucket)[key] = slices.Clone(value)
	return nil
}

func (t *tx) Delete(bucket, key string) (existed bool, err error) {
	if !t.writable {
		return false, errReadOnly
	}
	b := t.own(bucket)
	_, existed = b[key]
	delete(b, key)
	return existed, nil
}

func (t *tx) Each(bucket string, fn func(key string, value []byte) error) error {
	for _, key := range slices.Sorted(maps.Keys(t.buckets[bucket])) {
		value := t.Get(bucket, key)
		if value == nil {
			continue // fn deleted it
		}
		if err := fn(key, value); err != nil {
			return err
		}
	}
	return nil
}

// Clone is a copy of the store as it is now, without OnCommit: a backup.
func (s *Store) Clone() *Store {
	s.mu.RLock()
	defer s.mu.RUnlock()
	buckets := make(map[string]map[string][]byte, len(s.buckets))
	for name, b := range s.buckets {
		buckets[name] = maps.Clone(b)
	}
	return &Store{buckets: buckets}
}
