// Package identitytest makes meshes' certificates for tests.
package identitytest

import (
	"crypto/sha256"
	"crypto/x509"
	"net/netip"
	"testing"
	"time"

	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
)

// Now is when a CA of New issues.
var Now = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

// Life is that of certificates that a CA issues.
const Life = 24 * time.Hour

// CA is the authority of one mesh.
type CA struct {
	Mesh    string
	Root    *identity.Authority
	Issuing *identity.Authority
	Now     time.Time // of what is issued next

	t testing.TB
}

// Credential is a certified key.
type Credential struct {
	Key   identity.Key
	Chain [][]byte
}

// New makes the authority of a mesh, at Now.
func New(t testing.TB, mesh string) *CA {
	t.Helper()
	return NewAt(t, mesh, Now)
}

// NewAt makes the authority of a mesh, for tests that run on another clock.
func NewAt(t testing.TB, mesh string, now time.Time) *CA {
	t.Helper()
	root, err := identity.NewRoot(mesh, now)
	if err != nil {
		t.Fatal(err)
	}
	issuing, err := root.NewIssuing(now)
	if err != nil {
		t.Fatal(err)
	}
	return &CA{Mesh: mesh, Root: root, Issuing: issuing, Now: now, t: t}
}

// Trust is what the mesh's certificates are judged by.
func (c *CA) Trust(revocations ...identity.Revocation) *identity.Trust {
	return &identity.Trust{Mesh: c.Mesh, Roots: []*x509.Certificate{c.Root.Certificate()}, Revocations: revocations}
}

// WireGuard is the WireGuard public key that is certified for a host of that name.
func WireGuard(host string) [32]byte { return sha256.Sum256([]byte("WireGuard key of " + host)) }

// Host certifies a host.
func (c *CA) Host(name string) Credential {
	c.t.Helper()
	return c.Issue(identity.Request{ID: c.id(identity.KindHost, name)})
}

// Control certifies a host with the control role.
func (c *CA) Control(name string) Credential {
	c.t.Helper()
	return c.Issue(identity.Request{ID: c.id(identity.KindHost, name), Claims: identity.Claims{Control: true}})
}

// Agent certifies an agent of a host.
func (c *CA) Agent(name, host string, labels map[string]string, addrs ...netip.Addr) Credential {
	c.t.Helper()
	return c.Issue(identity.Request{
		ID: c.id(identity.KindAgent, name), Claims: identity.Claims{Host: host, Labels: labels}, Addresses: addrs,
	})
}

// Operator certifies an operator with a role.
func (c *CA) Operator(name, role string) Credential {
	c.t.Helper()
	return c.Issue(identity.Request{ID: c.id(identity.KindOperator, name), Claims: identity.Claims{Role: role}})
}

// Signer certifies a signer of policy.
func (c *CA) Signer() Credential {
	c.t.Helper()
	return c.Issue(identity.Request{ID: c.id(identity.KindPolicy, "1")})
}

// Issue certifies what r says: with a new key, for Life, and a host with its WireGuard key, unless r says otherwise.
func (c *CA) Issue(r identity.Request) Credential {
	c.t.Helper()
	var credential Credential
	if r.PublicKey == nil {
		key, err := identity.GenerateKey()
		if err != nil {
			c.t.Fatal(err)
		}
		credential.Key, r.PublicKey = key, key.Public()
	}
	if r.Life == 0 {
		r.Life = Life
	}
	if r.ID.Kind == identity.KindHost && r.Claims.WireGuard == [32]byte{} {
		r.Claims.WireGuard = WireGuard(r.ID.Name)
	}
	authority := c.Issuing
	if r.ID.Kind == identity.KindPolicy {
		authority = c.Root
	}
	chain, err := authority.Issue(r, c.Now)
	if err != nil {
		c.t.Fatal(err)
	}
	credential.Chain = chain
	return credential
}

func (c *CA) id(kind identity.Kind, name string) identity.ID {
	return identity.ID{Mesh: c.Mesh, Kind: kind, Name: name}
}
