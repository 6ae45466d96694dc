package overlay

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
	"github.com/bulkhead-mesh/bulkhead/overlay/signed"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

// Self is what this host says about itself.
type Self struct {
	Key    identity.Key
	Record signed.Record // all but sequence and issue time, which the mesh sets
}

// state is what the loop owns.
type state struct {
	trust    *identity.Trust
	self     *Self
	found    map[string]Workload
	policy   *signed.VerifiedPolicy
	records  map[string]*signed.VerifiedRecord // of all hosts, this one's too
	hints    map[string]Hint
	rumoured map[string]time.Time              // when hosts were last asked because of what others say
	heard    map[string]bool                   // hosts that gave their hint themselves: what others say of it does not count any more
	staged   map[string]*signed.VerifiedRecord // verified, not yet stored
	refused  map[string]uint64                 // what was dropped, by reason

	drivers   Drivers
	pulls     *pulls
	planner   Planner
	plan      HostPlan
	dirty     bool // the plan may differ from the state
	enforced  uint64
	problem   error     // why the kernel does not follow the plan
	retryAt   time.Time // when it is tried again
	storage   error     // why the store does not follow the state
	announced Hint
	newPolicy bool                              // it is to be enforced before any other event
	urgent    bool                              // this host is the origin of the news: tell everyone at once
	nudges    int                               // how often to repeat a policy's news to hosts that do not say they hold it
	revoked   bool                              // revocations have changed: connections are to be rechecked
	gone      []string                          // hosts that they dropped
	void      []string                          // keys of records that the store shall not hold any more
	owed      map[string]*signed.VerifiedRecord // in use, but the store failed to take them
	policyOf  string                            // who has a policy that the store failed to take
}

func newState(o Options) state {
	return state{
		trust:    &identity.Trust{Mesh: o.Mesh, Roots: o.Roots},
		records:  make(map[string]*signed.VerifiedRecord),
		hints:    make(map[string]Hint),
		heard:    make(map[string]bool),
		rumoured: make(map[string]time.Time),
		staged:   make(map[string]*signed.VerifiedRecord),
		refused:  make(map[string]uint64),
		owed:     make(map[string]*signed.VerifiedRecord),
	}
}

func (s *state) policyVersion() uint64 {
	if s.policy == nil {
		return 0
	}
	return s.policy.Version
}

func (m *Mesh) inputs() Inputs {
	in := Inputs{Host: m.options.Host, Policy: m.policy, Records: m.records, Found: m.found, Now: m.options.Now()}
	if own := m.records[m.options.Host]; own != nil {
		for _, c := range own.AgentCerts {
			if in.Now.Before(c.NotAfter) {
				in.Local = append(in.Local, AgentState{
					Agent:   segment.Agent{Name: c.Name, Host: own.Host, Labels: segment.Labels(c.Labels), Addresses: c.Addresses},
					Expires: c.NotAfter,
				})
			}
		}
	}
	slices.SortFunc(in.Local, func(a, b AgentState) int { return strings.Compare(a.Name, b.Name) })
	return in
}

// refuse counts and logs something foreign that was dropped.
func (m *Mesh) refuse(what, from string, err error) error {
	reason := what + "-" + reasonOf(err)
	m.refused[reason]++
	m.options.Logger.Warn("refused "+what, "peer", from, "reason", reason, "error", err)
	return err
}

func reasonOf(err error) string {
	for _, r := range []struct {
		err  error
		name string
	}{
		{identity.ErrExpired, "expired"}, {identity.ErrNotYetValid, "not-yet-valid"}, {identity.ErrRevoked, "revoked"},
		{identity.ErrForeign, "foreign"}, {signed.ErrSignature, "forged"}, {signed.ErrOlder, "replayed"}, {signed.ErrFork, "forked"}, {errStorage, "not-stored"}, {errUseless, "useless"},
	} {
		if errors.Is(err, r.err) {
			return r.name
		}
	}
	return "malformed"
}

// acceptPolicy verifies a policy and takes it.
func (m *Mesh) acceptPolicy(raw []byte, from string) error {
	p, err := signed.OpenPolicy(raw, m.trust, m.options.Now())
	if err != nil {
		return m.refuse("policy", from, err)
	}
	return m.takePolicy(p, from)
}

// takePolicy stores a verified policy, if it is newer than what is held, and only then lets it count.
func (m *Mesh) takePolicy(p *signed.VerifiedPolicy, from string) error {
	if m.policy != nil {
		if p.Digest == m.policy.Digest {
			return nil
		}
		if err := p.Succeeds(m.policy); err != nil {
			return m.refuse("policy", from, err)
		}
	}
	if err := m.storePolicy(p); err != nil {
		m.storage = err
		if from != m.options.Host {
			m.policyOf = from
		}
		return m.refuse("policy", from, err)
	}
	m.storage, m.policyOf = nil, ""
	m.policy = p
	m.options.Logger.Info("policy accepted", "version", p.Version, "peer", from)
	if revocations := keep(m.trust.Revocations, p.Revocations, m.options.Now()); !slices.Equal(m.trust.Revocations, revocations) {
		m.trust = &identity.Trust{Mesh: m.trust.Mesh, Roots: m.trust.Roots, Revocations: revocations}
		m.recheck()
	}
	if from == m.options.Host {
		m.urgent, m.nudges = true, maxNudges
	}
	m.dirty, m.newPolicy = true, true
	return nil
}

// revocationKept is how long a revocation counts that a newer policy does not have: longer than what it voids can live.
const revocationKept = 48 * time.Hour

// keep are the revocations of a newer policy and those that it should not have lost, as one does that was made after the
// authority's store was restored from a backup.
func keep(old, newer []identity.Revocation, now time.Time) []identity.Revocation {
	kept := slices.Clone(newer)
	for _, r := range old {
		i := slices.IndexFunc(kept, func(k identity.Revocation) bool { return k.ID == r.ID })
		switch {
		case i < 0 && now.Sub(r.Before) < revocationKept:
			kept = append(kept, r)
		case i >= 0 && kept[i].Before.Before(r.Before):
			kept[i] = r
		}
	}
	return kept
}

// recheck drops every host and agent whose certificate a revocation made void, also of records not yet stored.
func (m *Mesh) recheck() {
	if len(m.trust.Revocations) == 0 {
		return
	}
	m.records = maps.Clone(m.records)
	for _, records := range []map[string]*signed.VerifiedRecord{m.records, m.staged} {
		for host, r := range records {
			kept, err := r.Recheck(m.trust)
			if err == nil {
				records[host] = kept
				continue
			}
			m.options.Logger.Info("host dropped", "host", host, "reason", reasonOf(err))
			delete(records, host)
			delete(m.owed, host)
			delete(m.hints, host)
			delete(m.heard, host)
			delete(m.rumoured, host)
			m.gone, m.void = append(m.gone, host), append(m.void, host)
		}
	}
	m.revoked = true
}

// dismiss ends gossip and connections with hosts whose certificates became void.
func (m *Mesh) dismiss() {
	if !m.revoked {
		return
	}
	for _, host := range m.gone { // gossip asks whether they are known: that is published
		m.drivers.Gossip.Forget(host)
	}
	m.revoked, m.gone = false, nil
	m.drivers.Void()
}

// expire drops hosts whose certificate has ended.
func (m *Mesh) expire() {
	now := m.options.Now()
	var ended []string
	for host, r := range m.records {
		if !now.Before(r.HostCert.NotAfter) {
			ended = append(ended, host)
		}
	}
	if len(ended) == 0 {
		return
	}
	m.records = maps.Clone(m.records)
	for _, host := range ended {
		delete(m.records, host)
		m.refused["record-expired"]++
		m.options.Logger.Warn("host dropped", "host", host, "reason", "expired")
	}
	m.publish() // before gossip asks whether they are known
	for _, host := range ended {
		if host != m.options.Host {
			m.drivers.Gossip.Forget(host)
		}
	}
}

// errStorage wraps every failure to store.
var errStorage = errors.New("store state")
