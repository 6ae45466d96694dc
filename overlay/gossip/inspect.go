package gossip

import (
	"crypto/sha256"
	"math"
	"net"
	"slices"
	"strconv"
	"time"

	"github.com/bulkhead-mesh/bulkhead/overlay"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

const (
	// Every host has the same port and an address made of its name, so addresses carry no information.
	gossipPort = 7946
	maxPacket  = 1400 // bytes; ours are at most 1100

	// Incarnations follow the clock: a host starts with the Unix time in seconds. So an upper bound that
	// nobody can walk up with many small steps needs no memory of what was seen.
	accusationLead = 1 << 16 // seconds ahead of the clock that a claim may be which its subject must beat
	refutationLead = 600     // what the subject may be ahead of that, for its answers and for clock skew
)

// versions is what every host speaks: memberlist protocol and delegate protocol, each min, max, current.
var versions = []uint8{1, 5, 2, 1, 1, 1}

// reason says why a message was refused; it is a key of Stats.
type reason string

const (
	reasonMalformed     reason = "malformed"
	reasonOversized     reason = "oversized"
	reasonType          reason = "type" // encrypted, compressed, user, error, unknown
	reasonUnknownSender reason = "unknown-sender"
	reasonUnknownHost   reason = "unknown-host"
	reasonForged        reason = "forged" // speaks in the name of another host
	reasonTarget        reason = "target" // a ping for somebody else, an indirect ping that makes no sense
	reasonAddress       reason = "address"
	reasonVersion       reason = "version"
	reasonMeta          reason = "meta"
	reasonIncarnation   reason = "incarnation"
	reasonAhead         reason = "ahead"   // a somewhat high incarnation, as an attacked host may have to use
	reasonUnasked       reason = "unasked" // an answer to no ping of ours to that host
	reasonDuplicate     reason = "duplicate"
	reasonContradicted  reason = "contradicted" // the accused is there
)

// inspector judges what other hosts send to memberlist. It holds no state of its own.
type inspector struct {
	self   string
	known  func(host string) bool             // of other hosts
	asked  func(seq uint32, from string) bool // whether an answer is due
	now    func() time.Time
	states func() int // how many node states a push/pull may hold
}

// findings are the outcome of judging one packet or push/pull.
type findings struct {
	pass    [][]byte // messages for memberlist, encoded anew
	accused []accusation
	refused []refusal
	unknown []mention
}

type refusal struct {
	reason   reason
	evidence []byte
}

// mention is an alive message about a host that is not known yet; without message, the host itself spoke.
type mention struct {
	host    string
	message []byte
}

func (f *findings) refuse(why reason, evidence []byte) {
	// A copy, or a long message would stay in memory for what the log shows of it.
	f.refused = append(f.refused, refusal{why, slices.Clone(evidence[:min(len(evidence), maxEvidence)])})
}

// packet judges each message of a packet from a proven sender.
func (in *inspector) packet(from string, b []byte) (f findings) {
	if !in.sender(&f, from, b) {
		return f
	}
	if len(b) > maxPacket {
		f.refuse(reasonOversized, b)
		return f
	}
	inner, err := stripCRC(b)
	if err != nil {
		f.refuse(reasonMalformed, b)
		return f
	}
	parts, err := split(inner)
	if err != nil {
		f.refuse(reasonMalformed, b)
		return f
	}
	for _, part := range parts {
		in.message(&f, from, part)
	}
	return f
}

// sender says whether from may speak at all: only other hosts with a verified record do.
func (in *inspector) sender(f *findings, from string, evidence []byte) bool {
	switch {
	case from == in.self: // a second host with our certificate
		f.refuse(reasonForged, evidence)
		return false
	case !in.known(from):
		f.refuse(reasonUnknownSender, evidence)
		f.unknown = append(f.unknown, mention{host: from})
		return false
	}
	return true
}

// message judges one message and adds the outcome to f.
func (in *inspector) message(f *findings, from string, b []byte) {
	kind, body := messageType(b[0]), b[1:]
	var (
		out any
		why reason
	)
	switch kind {
	case pingType:
		out, why = judge(body, func(m *ping) reason { return in.ping(m, from) })
	case indirectPingType:
		out, why = judge(body, func(m *indirectPing) reason { return in.indirectPing(m, from) })
	case ackType:
		out, why = judge(body, func(m *ack) reason { return in.ack(m, from) })
	case nackType:
		out, why = judge(body, func(m *nack) reason { return in.answer(m.SeqNo, from) })
	case suspectType:
		out, why = judge(body, func(m *suspect) reason { return in.suspect(m, from) })
	case aliveType:
		out, why = judge(body, in.alive)
	case deadType:
		out, why = judge(body, func(m *dead) reason { return in.dead(m, from) })
		if m, ok := out.(*dead); ok && m.From != m.Node {
			kind = suspectType
		}
	default:
		why = reasonType
	}
	if why == "" {
		encoded, err := encode(kind, out)
		if err == nil {
			in.accept(f, from, out, encoded)
			return
		}
		why = reasonMalformed
	}
	f.refuse(why, b)
	if m, ok := out.(*alive); ok && why == reasonUnknownHost {
		f.unknown = append(f.unknown, mention{m.Node, slices.Clone(b)})
	}
}

// accept adds a message that may pass. Accusations of others are kept apart: they need a closer look.
func (in *inspector) accept(f *findings, from string, m any, encoded []byte) {
	accused := in.self
	switch m := m.(type) {
	case *suspect:
		accused = m.Node
	case *dead:
		if m.Node != m.From {
			accused = m.Node
		}
	}
	if accused != in.self {
		f.accused = append(f.accused, accusation{accused, from, encoded})
		return
	}
	f.pass = append(f.pass, encoded)
}

// judge decodes body and lets rule look at it and correct it.
func judge[M any](body []byte, rule func(*M) reason) (any, reason) {
	m := new(M)
	if err := decode(body, m); err != nil {
		return nil, reasonMalformed
	}
	return m, rule(m)
}

func (in *inspector) ping(m *ping, from string) reason {
	switch {
	case m.Node != in.self:
		return reasonTarget
	case m.SourceNode != from:
		return reasonForged
	}
	m.SourceAddr, m.SourcePort = address(from), gossipPort
	return ""
}

func (in *inspector) indirectPing(m *indirectPing, from string) reason {
	switch {
	case m.SourceNode != from:
		return reasonForged
	case m.Node == in.self, m.Node == from:
		return reasonTarget
	case !in.isKnown(m.Node):
		return reasonUnknownHost
	}
	m.Target, m.Port = address(m.Node), gossipPort
	m.SourceAddr, m.SourcePort = address(from), gossipPort
	return ""
}

func (in *inspector) ack(m *ack, from string) reason {
	if len(m.Payload) > 0 { // no host of ours sends one
		return reasonMalformed
	}
	m.Payload = nil
	return in.answer(m.SeqNo, from)
}

// answer keeps a host from vouching for another that it was not asked about.
func (in *inspector) answer(seq uint32, from string) reason {
	if !in.asked(seq, from) {
		return reasonUnasked
	}
	return ""
}

func (in *inspector) suspect(m *suspect, from string) reason {
	switch {
	case !in.isKnown(m.Node):
		return reasonUnknownHost
	case m.From != from && !in.isKnown(m.From):
		return reasonForged
	}
	return in.claim(m.Incarnation)
}

// dead lets a host say that it leaves. What it says about others is one more suspicion.
func (in *inspector) dead(m *dead, from string) reason {
	if m.Node == from && m.From == from {
		return in.answerable(m.Incarnation)
	}
	if m.From = from; m.Node == from {
		m.From = in.self // a dead message with From equal to Node would be a leave
	}
	return in.suspect((*suspect)(m), from)
}

func (in *inspector) alive(m *alive) reason {
	switch {
	case segment.ValidName(m.Node) != nil:
		return reasonMalformed
	case !slices.Equal(m.Addr, address(m.Node)) || m.Port != gossipPort:
		return reasonAddress
	case !slices.Equal(m.Vsn, versions):
		return reasonVersion
	case !validMeta(m.Meta):
		return reasonMeta
	case !in.isKnown(m.Node):
		if why := in.answerable(m.Incarnation); why != "" {
			return why
		}
		return reasonUnknownHost
	}
	if len(m.Meta) == 0 {
		m.Meta = nil
	}
	if m.Node == in.self { // memberlist goes beyond what others claim of us
		return in.claim(m.Incarnation)
	}
	return in.answerable(m.Incarnation)
}

// claim bounds what its subject has to beat.
func (in *inspector) claim(incarnation uint32) reason {
	if why := in.answerable(incarnation); why != "" {
		return why
	}
	if incarnation > in.limit(accusationLead) {
		return reasonAhead
	}
	return ""
}

// answerable bounds what a host may say of itself.
func (in *inspector) answerable(incarnation uint32) reason {
	if incarnation > in.limit(accusationLead+refutationLead) {
		return reasonIncarnation
	}
	return ""
}

func (in *inspector) isKnown(host string) bool { return host == in.self || in.known(host) }

// limit returns the highest incarnation that is lead seconds ahead of the clock.
func (in *inspector) limit(lead int64) uint32 {
	return uint32(min(max(in.now().Unix()+lead, 0), math.MaxUint32-1<<20))
}

func validMeta(meta []byte) bool {
	if len(meta) == 0 {
		return true
	}
	_, err := overlay.ParseHint(meta)
	return err == nil
}

// address returns the synthetic address of a host: a unique local one, hashed from its name.
func address(host string) net.IP {
	sum := sha256.Sum256([]byte("bulkhead gossip " + host))
	ip := net.IP(sum[:net.IPv6len])
	ip[0] = 0xfd
	return ip
}

// hostPort returns the synthetic address as memberlist writes it.
func hostPort(host string) string {
	return net.JoinHostPort(address(host).String(), strconv.Itoa(gossipPort))
}
