package daemon

import (
	"crypto/tls"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/bulkhead-mesh/bulkhead/overlay"
)

// credentialStore holds the credentials in force, in memory and on disk. It is safe for concurrent use.
type credentialStore struct {
	store   overlay.Store
	current atomic.Pointer[held]
	changes sync.Mutex // one change at a time
}

type held struct {
	credentials *Credentials
	tls         *tls.Certificate
}

func newCredentialStore(store overlay.Store) (*credentialStore, error) {
	c, err := loadCredentials(store)
	if err != nil {
		return nil, err
	}
	s := &credentialStore{store: store}
	return s, s.hold(c)
}

func (s *credentialStore) hold(c *Credentials) error {
	cert, err := c.tls()
	if err != nil {
		return err
	}
	s.current.Store(&held{credentials: c, tls: cert})
	return nil
}

// get is read only: change puts others in force.
func (s *credentialStore) get() *Credentials { return s.current.Load().credentials }

func (s *credentialStore) certificate() *tls.Certificate { return s.current.Load().tls }

// change gives fn a copy, stores it, and puts it in force. What fn refuses changes nothing.
func (s *credentialStore) change(fn func(*Credentials) error) error {
	s.changes.Lock()
	defer s.changes.Unlock()
	c := *s.get()
	c.Agents, c.Withdrawn = slices.Clone(c.Agents), slices.Clone(c.Withdrawn)
	if err := fn(&c); err != nil {
		return err
	}
	if err := storeCredentials(s.store, &c); err != nil {
		return err
	}
	return s.hold(&c)
}
