package overlay

import (
	"math/rand/v2"
	"time"
)

// rumourPause is how long a host is left alone after others made us ask it.
const rumourPause = 5 * time.Second

func (m *Mesh) acceptHints(direct, rumours map[string]Hint) {
	for host, h := range direct {
		m.acceptHint(host, h, true)
	}
	for host, h := range rumours {
		m.acceptHint(host, h, false)
	}
}

// acceptHint takes what a host says about itself, or what others say that it did. Others may lie: that counts until the
// host has been heard itself, never for what it enforces where that is waited for, and makes us ask seldom.
func (m *Mesh) acceptHint(host string, h Hint, direct bool) {
	if host == m.options.Host {
		return
	}
	if direct && m.heard[host] && m.hints[host] == h {
		m.repeat(host)
	}
	if !direct && m.trusted(m.options.Host) {
		h.Enforced = 0
	}
	if direct || !m.heard[host] {
		m.hints[host] = h
	}
	m.heard[host] = m.heard[host] || direct
	req := pullRequest{PolicyVersion: m.policyVersion(), rumour: !direct}
	if held := m.records[host]; held == nil || h.RecordSequence > held.Sequence {
		req.Want = []string{host}
	}
	if req.Want == nil && h.PolicyVersion <= req.PolicyVersion {
		return
	}
	if now := m.options.Now(); !direct {
		if now.Before(m.rumoured[host].Add(rumourPause)) {
			return // anti-entropy, or the host itself, will tell
		}
		m.rumoured[host] = now
	}
	m.pulls.want(host, req)
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
	host := alive[rand.IntN(len(alive))]
	m.sync(host)
	m.sendHint(host)
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
