package daemon

import (
	"crypto/tls"
	"sync/atomic"

	"github.com/bulkhead-mesh/bulkhead/overlay"
)

// credentialStore holds the credentials in force, in memory and on disk. It is safe for concurrent use.
type credentialStore struct {
	store   overlay.Store
	current atomic.Pointer[held]
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

// get is read only: replace puts others in force.
func (s *credentialStore) get() *Credentials { return s.current.Load().credentials }

func (s *credentialStore) certificate() *tls.Certificate { return s.current.Load().tls }

// replace stores c, then puts it in force.
func (s *credentialStore) replace(c *Credentials) error {
	if err := storeCredentials(s.store, c); err != nil {
		return err
	}
	return s.hold(c)
}
