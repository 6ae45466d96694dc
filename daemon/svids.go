package daemon

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"

	"github.com/bulkhead-mesh/bulkhead/control/api"
	"github.com/bulkhead-mesh/bulkhead/control/authority"
	"github.com/bulkhead-mesh/bulkhead/daemon/spiffe"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
)

// svids are the identities that the SPIFFE Workload API hands to agents.
type svids struct{ *daemon }

var errNoSVID = errors.New("the agent has no certificate")

// SVID is an agent's own key and certificate.
func (s svids) SVID(agent string) (spiffe.SVID, error) {
	c := s.credentials.get()
	a := c.agent(agent)
	if a == nil || a.Chain == nil {
		return spiffe.SVID{}, fmt.Errorf("%w: %s", errNoSVID, agent)
	}
	key, err := identity.ParseKey(a.Key)
	if err != nil {
		return spiffe.SVID{}, fmt.Errorf("parse key of agent %s: %w", agent, err)
	}
	return spiffe.SVID{ID: identity.ID{Mesh: c.Mesh, Kind: identity.KindAgent, Name: agent}.String(), Chain: a.Chain, Key: ed25519.PrivateKey(key)}, nil
}

// Bundle is what the SVIDs of the mesh are verified by.
func (s svids) Bundle() (roots [][]byte, keys []spiffe.JWTKey) {
	if p := s.mesh.Snapshot().Policy; p != nil {
		for _, k := range p.JWTKeys {
			if public, err := k.Public(); err == nil { // it was checked when the policy was opened
				keys = append(keys, spiffe.JWTKey{ID: k.ID, Key: public})
			}
		}
	}
	return s.credentials.get().Roots, keys
}

// Changed is closed when an SVID or the bundle may have changed.
func (s svids) Changed() <-chan struct{} { return s.mesh.Changed() }

// SignJWT has control sign a JWT-SVID.
func (s svids) SignJWT(ctx context.Context, agent string, audience []string) (string, error) {
	req := authority.JWTRequest{Agent: agent, Audience: audience, From: "local"}
	return askControl(s.daemon, func(a *authority.Authority, cert *identity.Certificate) (string, error) {
		return a.SignJWT(cert, req)
	}, func(client *api.Client) (string, error) { return client.SignJWT(ctx, req) })
}
