package overlay

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
	"github.com/bulkhead-mesh/bulkhead/overlay/signed"
)

// acceptRecord verifies a record and stages it for the store.
func (m *Mesh) acceptRecord(raw []byte, from string) error {
	r, err := signed.OpenRecord(raw, m.trust, m.options.Now())
	if err != nil {
		return m.refuse("record", from, err)
	}
	return m.stage(r, from)
}

// stage takes a verified record if it is newer than what is held.
func (m *Mesh) stage(r *signed.VerifiedRecord, from string) error {
	r, err := r.Recheck(m.trust) // it may have been verified before the newest revocations came
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
	if now := m.options.Now(); !now.Before(r.HostCert.NotAfter) {
		return m.refuse("record", from, fmt.Errorf("record of %s: certificate ended %s: %w", r.Host, r.HostCert.NotAfter.Format(time.RFC3339), identity.ErrExpired))
	}
	m.leaveOut(r)
	m.staged[r.Host] = r
	return nil
}

// leaveOut drops endpoints within the overlay itself: packets for them would go round in circles.
func (m *Mesh) leaveOut(r *signed.VerifiedRecord) {
	r.Endpoints = slices.DeleteFunc(slices.Clone(r.Endpoints), func(e netip.AddrPort) bool {
		return slices.ContainsFunc(m.options.Prefixes, func(p netip.Prefix) bool { return p.Contains(e.Addr()) })
	})
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
		if records[host].HostCert.Control {
			m.sendHint(host) // what we announced before, it could not be told
		}
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
