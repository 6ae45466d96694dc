package overlay

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
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
	trust   *identity.Trust
	self    *Self
	policy  *signed.VerifiedPolicy
	records map[string]*signed.VerifiedRecord // of all hosts, this one's too
	hints   map[string]Hint
	heard   map[string]bool                   // hosts that gave their hint themselves: what others say of it does not count any more
	staged  map[string]*signed.VerifiedRecord // verified, not yet stored
	refused map[string]uint64                 // what was dropped, by reason

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
		trust:   &identity.Trust{Mesh: o.Mesh, Roots: o.Roots},
		records: make(map[string]*signed.VerifiedRecord),
		hints:   make(map[string]Hint),
		heard:   make(map[string]bool),
		staged:  make(map[string]*signed.VerifiedRecord),
		refused: make(map[string]uint64),
		owed:    make(map[string]*signed.VerifiedRecord),
	}
}

func (s *state) policyVersion() uint64 {
	if s.policy == nil {
		return 0
	}
	return s.policy.Version
}

func (m *Mesh) inputs() Inputs {
	in := Inputs{Host: m.options.Host, Policy: m.policy, Records: m.records, Now: m.options.Now()}
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
		{identity.ErrForeign, "foreign"}, {signed.ErrSignature, "forged"}, {signed.ErrOlder, "replayed"}, {signed.ErrFork, "forked"}, {errStorage, "not-stored"},
	} {
		if errors.Is(err, r.err) {
			return r.name
		}
	}
	return "malformed"
}

// received takes one frame of a pull's answer. It runs in a pull worker.
func (m *Mesh) received(from string, kind byte, raw []byte) {
	m.do(func() {
		switch kind {
		case frameRecord:
			_ = m.acceptRecord(raw, from)
		case framePolicy:
			_ = m.acceptPolicy(raw, from)
		default:
			_ = m.refuse("frame", from, errFrame)
		}
	})
}

// acceptRecord verifies a record and stages it for the store.
func (m *Mesh) acceptRecord(raw []byte, from string) error {
	r, err := signed.OpenRecord(raw, m.trust, m.options.Now())
	if err != nil {
		return m.refuse("record", from, err)
	}
	held := m.records[r.Host]
	if s := m.staged[r.Host]; s != nil {
		held = s
	}
	switch {
	case held != nil && r.Digest == held.Digest:
		return nil
	case r.Host == m.options.Host && from != m.options.Host:
		// Our own words from before a state directory was restored: speak louder than they.
		if held == nil || r.Sequence >= held.Sequence {
			return m.signSelf(r.Sequence + 1)
		}
		return nil
	case held != nil && r.Sequence < held.Sequence:
		return m.refuse("record", from, fmt.Errorf("record of %s has sequence %d, below %d: %w", r.Host, r.Sequence, held.Sequence, signed.ErrOlder))
	case held != nil && r.Sequence == held.Sequence:
		return m.refuse("record", from, fmt.Errorf("record of %s differs at sequence %d: %w", r.Host, r.Sequence, signed.ErrFork))
	}
	m.staged[r.Host] = r
	return nil
}

// flushRecords stores what was staged in one transaction and acts on it.
func (m *Mesh) flushRecords() {
	if len(m.staged)+len(m.void) == 0 {
		return
	}
	maps.Copy(m.owed, m.staged)
	m.payStore()
	if len(m.staged) == 0 {
		return
	}
	records := maps.Clone(m.records)
	var learned []string
	for host, r := range m.staged {
		if records[host] == nil && host != m.options.Host {
			learned = append(learned, host)
		}
		records[host] = r
	}
	m.records = records
	clear(m.staged)
	m.dirty = true
	m.publish() // before gossip asks whether they are known
	for _, host := range learned {
		m.options.Logger.Info("learned host", "host", host)
		m.drivers.Gossip.Learned(host)
	}
	if len(learned) <= greetAtOnce {
		m.drivers.Gossip.Join(learned)
	}
}

// payStore stores what is owed to the store. A record is used unstored, because any peer has it; the status says so.
func (m *Mesh) payStore() {
	if m.storage = m.storeRecords(m.owed, m.void); m.storage != nil {
		m.options.Logger.Error("store records", "error", m.storage)
		return
	}
	clear(m.owed)
	m.void = nil
}

// retryStore tries again what a full or failed disk did not take.
func (m *Mesh) retryStore() {
	if m.policyOf != "" {
		m.pulls.want(m.policyOf, pullRequest{PolicyVersion: m.policyVersion()})
		m.policyOf = ""
	}
	if len(m.owed)+len(m.void) > 0 {
		m.payStore()
	}
}

// greetAtOnce is how many hosts learned together are asked for a gossip exchange at once: a newcomer, whose own
// first words were refused because it was unknown, but not a whole mesh.
const greetAtOnce = 3

// acceptPolicy verifies a policy, stores it, and only then lets it count.
func (m *Mesh) acceptPolicy(raw []byte, from string) error {
	p, err := signed.OpenPolicy(raw, m.trust, m.options.Now())
	if err != nil {
		return m.refuse("policy", from, err)
	}
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
	m.trust = &identity.Trust{Mesh: m.trust.Mesh, Roots: m.trust.Roots, Revocations: p.Revocations}
	m.options.Logger.Info("policy accepted", "version", p.Version, "peer", from)
	m.recheck()
	if from == m.options.Host {
		m.urgent, m.nudges = true, maxNudges
	}
	m.dirty = true
	return nil
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
	m.publish() // before gossip asks whether they are known
	for _, host := range m.gone {
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

func (m *Mesh) acceptSelf(s Self) error {
	m.self = &s
	var least uint64
	if own := m.records[m.options.Host]; own != nil {
		least = own.Sequence + 1
	}
	return m.signSelf(least)
}

// signSelf signs this host's record with a sequence of at least least. The clock in milliseconds is the
// usual sequence, so that a restored state directory does not repeat one.
func (m *Mesh) signSelf(least uint64) error {
	if m.self == nil {
		return nil
	}
	now := m.options.Now()
	record := m.self.Record
	record.Mesh, record.Host = m.options.Mesh, m.options.Host
	record.Sequence = max(least, uint64(now.UnixMilli()))
	cert, err := m.trust.Verify(record.Certificate, identity.KindHost, now)
	if err != nil {
		return fmt.Errorf("own certificate: %w", err)
	}
	record.Issued, record.Expires = now, cert.NotAfter
	raw, err := signed.SignRecord(record, m.self.Key)
	if err != nil {
		return fmt.Errorf("sign record: %w", err)
	}
	m.urgent = true
	return m.acceptRecord(raw, m.options.Host)
}

// acceptHint takes what a host says about itself, or what others say that it did.
func (m *Mesh) acceptHint(host string, h Hint, direct bool) {
	if host == m.options.Host {
		return
	}
	if direct && m.heard[host] && m.hints[host] == h {
		m.repeat(host)
	}
	if direct || !m.heard[host] {
		m.hints[host] = h
	}
	m.heard[host] = m.heard[host] || direct
	req := pullRequest{PolicyVersion: m.policyVersion()}
	held := m.records[host]
	if held == nil || h.RecordSequence > held.Sequence {
		req.Want = []string{host}
	}
	if req.Want != nil || h.PolicyVersion > req.PolicyVersion {
		m.pulls.want(host, req)
	}
}

// repeat answers a control host that says the same again: it has not heard what is enforced here. Control hosts do not
// answer, so that no two go on for ever.
func (m *Mesh) repeat(host string) {
	own, asker := m.records[m.options.Host], m.records[host]
	if own != nil && asker != nil && asker.HostCert.Control && !own.HostCert.Control {
		m.sendHint(host)
	}
}

// sync asks host for all that it holds and we do not.
func (m *Mesh) sync(host string) {
	have := make(map[string]uint64, len(m.records))
	for name, r := range m.records {
		have[name] = r.Sequence
	}
	m.pulls.want(host, pullRequest{Have: have, PolicyVersion: m.policyVersion()})
}

func (m *Mesh) syncRandom() {
	alive := m.drivers.Gossip.Alive()
	if len(alive) == 0 {
		return
	}
	m.sync(alive[rand.IntN(len(alive))])
}

// hint is what this host says about itself now.
func (m *Mesh) hint() Hint {
	h := Hint{Enforced: m.enforced}
	if own := m.records[m.options.Host]; own != nil {
		h.RecordSequence, h.RecordDigest = own.Sequence, own.Digest
	}
	if m.policy != nil {
		h.PolicyVersion, h.PolicyDigest = m.policy.Version, m.policy.Digest
	}
	return h
}

// announce spreads the hint when it changed: by gossip to all in the end, and directly to those who
// wait for it: to everyone what began here, to control hosts what is enforced here.
func (m *Mesh) announce() {
	h := m.hint()
	if h == m.announced {
		return
	}
	m.drivers.Gossip.Announce(h)
	m.announced = h
	for host, r := range m.records {
		if host != m.options.Host && (m.urgent || r.HostCert.Control) {
			m.sendHint(host)
		}
	}
	m.urgent = false
}

// nudge tells the news again to live hosts that have not said that they enforce it: a datagram may be lost either way.
func (m *Mesh) nudge() {
	behind := false
	for _, host := range m.drivers.Gossip.Alive() {
		if m.hints[host].Enforced < m.policyVersion() {
			behind = true
			m.sendHint(host)
		}
	}
	m.nudges--
	if !behind {
		m.nudges = 0
	}
}

func (m *Mesh) sendHint(host string) {
	payload, err := m.hint().AppendBinary(nil)
	if err == nil {
		err = m.drivers.Network.Send(host, KindHint, payload)
	}
	if err != nil {
		m.options.Logger.Debug("send hint", "peer", host, "error", err)
	}
}

// errStorage wraps every failure to store.
var errStorage = errors.New("store state")
