package overlay

import (
	"maps"

	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
	"github.com/bulkhead-mesh/bulkhead/overlay/signed"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

// Snapshot is the mesh at one moment. It is never changed once published.
type Snapshot struct {
	Trust    *identity.Trust
	Policy   *signed.VerifiedPolicy // nil before the first
	Records  map[string]*signed.VerifiedRecord
	Hints    map[string]Hint // what hosts last said about themselves
	Plan     HostPlan
	Enforced uint64            // policy version in the kernel
	Refused  map[string]uint64 // what was dropped, by reason
	Problems []string          // why this host is not as it should be
}

// Snapshot is the newest view. It may be kept.
func (m *Mesh) Snapshot() *Snapshot { return m.snapshot.Load() }

// Changed is closed when there is a newer snapshot than the one taken after this call.
func (m *Mesh) Changed() <-chan struct{} {
	m.changedMu.Lock()
	defer m.changedMu.Unlock()
	return m.changed
}

func (m *Mesh) publish() {
	s := &Snapshot{
		Trust: m.trust, Policy: m.policy, Records: m.records, Hints: maps.Clone(m.hints),
		Plan: m.plan, Enforced: m.enforced, Refused: maps.Clone(m.refused),
	}
	for _, err := range []error{m.problem, m.storage} {
		if err != nil {
			s.Problems = append(s.Problems, err.Error())
		}
	}
	if n := m.dropped.Load(); n > 0 {
		s.Refused["event-overflow"] = n
	}
	m.snapshot.Store(s)
	m.changedMu.Lock()
	close(m.changed)
	m.changed = make(chan struct{})
	m.changedMu.Unlock()
}

// Agents are all agents that verified, unexpired records of the snapshot carry, this host's too.
func (s *Snapshot) Agents() []segment.Agent {
	var agents []segment.Agent
	for _, r := range s.Records {
		for _, c := range r.AgentCerts {
			agents = append(agents, segment.Agent{Name: c.Name, Host: r.Host, Labels: segment.Labels(c.Labels), Addresses: c.Addresses})
		}
	}
	return agents
}
