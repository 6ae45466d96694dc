package daemon

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
	"slices"

	"github.com/bulkhead-mesh/bulkhead/control/api"
	"github.com/bulkhead-mesh/bulkhead/overlay"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

// Whois is the agent that has an overlay address, by its verified certificate.
func (l local) Whois(addr netip.Addr) (api.Whois, bool) {
	return whois(l.mesh.Snapshot(), addr.Unmap())
}

// WhoisFor is Whois for an agent here, which may know of itself and of agents that it may open something to, or they
// to it.
func (l local) WhoisFor(agent string, addr netip.Addr) (api.Whois, bool) {
	s := l.mesh.Snapshot()
	w, ok := whois(s, addr.Unmap())
	if !ok || w.Agent == agent {
		return w, ok
	}
	known := s.Plan.Rules != nil && slices.ContainsFunc(s.Plan.Rules.Pairs, func(p *segment.Pair) bool {
		return p.Local.Name == agent && p.Remote.Name == w.Agent
	})
	if !known {
		return api.Whois{}, false
	}
	return w, true
}

func whois(s *overlay.Snapshot, addr netip.Addr) (api.Whois, bool) {
	for _, r := range s.Records {
		for _, c := range r.AgentCerts {
			if slices.Contains(c.Addresses, addr) {
				return whoisOf(s, r.Host, c), true
			}
		}
	}
	return api.Whois{}, false
}

func whoisOf(s *overlay.Snapshot, host string, c *identity.Certificate) api.Whois {
	w := api.Whois{
		Agent: c.Name, Host: host, Labels: segment.Labels(c.Labels), Segments: []string{}, Addresses: c.Addresses,
		ID: c.ID.String(), Certificate: fmt.Sprintf("%x", sha256.Sum256(c.Chain[0])), Expires: c.NotAfter, PolicyVersion: s.Enforced,
	}
	w.Segments = append(w.Segments, segmentsOf(s, segment.Agent{Name: c.Name, Host: host, Labels: w.Labels, Addresses: c.Addresses})...)
	return w
}
