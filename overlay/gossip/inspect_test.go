package gossip

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"log/slog"
	"math"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/memberlist"

	"github.com/bulkhead-mesh/bulkhead/overlay"
)

var (
	discard = slog.New(slog.DiscardHandler)
	noon    = time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)
	nowInc  = uint32(noon.Unix())
)

// newInspector is that of host "me", which knows "ann", "bob" and "mallory" and asked "bob" with 7.
func newInspector() *inspector {
	return &inspector{
		self:   "me",
		known:  func(h string) bool { return slices.Contains([]string{"ann", "bob", "mallory"}, h) },
		asked:  func(seq uint32, from string) bool { return seq == 7 && from == "bob" },
		now:    func() time.Time { return noon },
		states: func() int { return 100 },
	}
}

func aliveOf(host string, inc uint32) *alive {
	return &alive{Incarnation: inc, Node: host, Addr: address(host), Port: gossipPort, Meta: meta(1), Vsn: versions}
}

func meta(sequence uint64) []byte {
	b, err := overlay.Hint{RecordSequence: sequence}.AppendBinary(nil)
	if err != nil {
		panic(err)
	}
	return b
}

func mustEncode(kind messageType, m any) []byte {
	b, err := encode(kind, m)
	if err != nil {
		panic(err)
	}
	return b
}

func with[M any](m *M, change func(*M)) *M {
	change(m)
	return m
}

func compound(parts ...[]byte) []byte {
	b := []byte{byte(compoundType), byte(len(parts))}
	for _, p := range parts {
		b = binary.BigEndian.AppendUint16(b, uint16(len(p)))
	}
	return append(b, bytes.Join(parts, nil)...)
}

func checksummed(b []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{byte(crcType)}, crc32.ChecksumIEEE(b)), b...)
}

func reasons(f findings) []reason {
	var out []reason
	for _, r := range f.refused {
		out = append(out, r.reason)
	}
	return out
}

// attacks are packets that a host with a valid certificate sends, and why nothing of them passes.
var attacks = []struct {
	name, from string
	packet     []byte
	why        reason
}{
	{"empty", "mallory", nil, reasonMalformed},
	{"stranger", "eve", mustEncode(aliveType, aliveOf("eve", nowInc)), reasonUnknownSender},
	{"our own name", "me", mustEncode(aliveType, aliveOf("ann", nowInc)), reasonForged},
	{"too long", "mallory", make([]byte, maxPacket+1), reasonOversized},
	{"encrypted", "mallory", append([]byte{byte(encryptType)}, make([]byte, 80)...), reasonType},
	{"compressed", "mallory", append([]byte{byte(compressType)}, make([]byte, 80)...), reasonType},
	{"user message", "mallory", []byte{byte(userType), 1}, reasonType},
	{"error", "mallory", mustEncode(errorType, &nack{1}), reasonType},
	{"push/pull in a packet", "mallory", mustEncode(pushPullType, &pushPullHeader{}), reasonType},
	{"label", "mallory", []byte{244, 1, 'x'}, reasonType},
	{"unknown type", "mallory", []byte{99}, reasonType},
	{"checksum wrong", "mallory", []byte{byte(crcType), 0, 0, 0, 0, byte(nackType)}, reasonMalformed},
	{"checksum in checksum", "bob", checksummed(checksummed(mustEncode(nackType, &nack{7}))), reasonType},
	{"nested compound", "bob", compound(compound(mustEncode(nackType, &nack{7}))), reasonType},
	{"truncated compound", "bob", compound(mustEncode(nackType, &nack{7}))[:8], reasonMalformed},
	{"compound with a rest", "bob", append(compound(mustEncode(nackType, &nack{7})), 0), reasonMalformed},
	{"many parts", "bob", compound(slices.Repeat([][]byte{{byte(nackType)}}, maxParts+1)...), reasonMalformed},
	{"compound of nothing", "bob", compound(), reasonMalformed},
	{"empty part", "bob", compound(nil), reasonMalformed},
	{"rest after a message", "bob", append(mustEncode(nackType, &nack{7}), 0), reasonMalformed},
	{"string of 4 GiB", "mallory", []byte("\x04\x81\xdb\xff\xff\xff\xff"), reasonMalformed},
	{"nested map", "mallory", []byte("\x04\x81\xa4Node\x81\xa4Node\xc0"), reasonMalformed},
	{"array", "mallory", []byte("\x04\x81\xa4Node\x93\x01\x02\x03"), reasonMalformed},
	{"long field", "mallory", mustEncode(aliveType, with(aliveOf("ann", nowInc), func(m *alive) { m.Meta = make([]byte, maxField+1) })), reasonMalformed},

	{"ping for another", "mallory", mustEncode(pingType, &ping{SeqNo: 1, Node: "ann", SourceNode: "mallory"}), reasonTarget},
	{"ping for anybody", "mallory", mustEncode(pingType, &ping{SeqNo: 1, SourceNode: "mallory"}), reasonTarget},
	{"ping in another's name", "mallory", mustEncode(pingType, &ping{SeqNo: 1, Node: "me", SourceNode: "ann"}), reasonForged},
	{"indirect ping to a stranger", "mallory", mustEncode(indirectPingType, &indirectPing{Node: "eve", SourceNode: "mallory"}), reasonUnknownHost},
	{"indirect ping to us", "mallory", mustEncode(indirectPingType, &indirectPing{Node: "me", SourceNode: "mallory"}), reasonTarget},
	{"indirect ping to itself", "mallory", mustEncode(indirectPingType, &indirectPing{Node: "mallory", SourceNode: "mallory"}), reasonTarget},
	{"indirect ping for another", "mallory", mustEncode(indirectPingType, &indirectPing{Node: "ann", SourceNode: "bob"}), reasonForged},
	{"answer in another's place", "mallory", mustEncode(ackType, &ack{SeqNo: 7}), reasonUnasked},
	{"answer to nothing", "bob", mustEncode(ackType, &ack{SeqNo: 8}), reasonUnasked},
	{"answer with payload", "bob", mustEncode(ackType, &ack{SeqNo: 7, Payload: []byte("x")}), reasonMalformed},
	{"nack in another's place", "mallory", mustEncode(nackType, &nack{7}), reasonUnasked},

	{"suspect a stranger", "mallory", mustEncode(suspectType, &suspect{nowInc, "eve", "mallory"}), reasonUnknownHost},
	{"suspect in a stranger's name", "mallory", mustEncode(suspectType, &suspect{nowInc, "ann", "eve"}), reasonForged},
	{"suspect with the last incarnation", "mallory", mustEncode(suspectType, &suspect{math.MaxUint32, "ann", "mallory"}), reasonIncarnation},
	{"suspect us with the last but one", "mallory", mustEncode(suspectType, &suspect{math.MaxUint32 - 1, "me", "mallory"}), reasonIncarnation},
	{"suspect ahead", "mallory", mustEncode(suspectType, &suspect{nowInc + accusationLead + 1, "ann", "mallory"}), reasonAhead},
	{"dead stranger", "mallory", mustEncode(deadType, &dead{nowInc, "eve", "mallory"}), reasonUnknownHost},
	{"dead ahead", "mallory", mustEncode(deadType, &dead{nowInc + accusationLead + 1, "ann", "ann"}), reasonAhead},
	{"leave ahead", "mallory", mustEncode(deadType, &dead{math.MaxUint32, "mallory", "mallory"}), reasonIncarnation},

	{"alive stranger", "mallory", mustEncode(aliveType, aliveOf("eve", nowInc)), reasonUnknownHost},
	{"alive elsewhere", "mallory", mustEncode(aliveType, with(aliveOf("ann", nowInc), func(m *alive) { m.Addr = net.IPv4(192, 0, 2, 1) })), reasonAddress},
	{"alive on another port", "mallory", mustEncode(aliveType, with(aliveOf("ann", nowInc), func(m *alive) { m.Port = 53 })), reasonAddress},
	{"alive without address", "mallory", mustEncode(aliveType, with(aliveOf("ann", nowInc), func(m *alive) { m.Addr = nil })), reasonAddress},
	{"alive without name", "mallory", mustEncode(aliveType, aliveOf("", nowInc)), reasonMalformed},
	{"alive with a long name", "mallory", mustEncode(aliveType, aliveOf(strings.Repeat("a", 64), nowInc)), reasonMalformed},
	{"alive with high versions", "mallory", mustEncode(aliveType, with(aliveOf("ann", nowInc), func(m *alive) { m.Vsn = []uint8{9, 9, 9, 1, 1, 1} })), reasonVersion},
	{"alive without versions", "mallory", mustEncode(aliveType, with(aliveOf("ann", nowInc), func(m *alive) { m.Vsn = nil })), reasonVersion},
	{"alive with other meta", "mallory", mustEncode(aliveType, with(aliveOf("ann", nowInc), func(m *alive) { m.Meta = make([]byte, 512) })), reasonMeta},
	{"alive with the last incarnation", "mallory", mustEncode(aliveType, aliveOf("ann", math.MaxUint32)), reasonIncarnation},
	{"alive beyond the answer to anything", "mallory", mustEncode(aliveType, aliveOf("ann", nowInc+accusationLead+refutationLead+1)), reasonIncarnation},
	{"alive us beyond what we follow", "mallory", mustEncode(aliveType, aliveOf("me", nowInc+accusationLead+1)), reasonAhead},
}

func TestInspectPacketRefusesAttacks(t *testing.T) {
	for _, a := range attacks {
		f := newInspector().packet(a.from, a.packet)
		if len(f.pass) > 0 || !slices.Equal(reasons(f), []reason{a.why}) {
			t.Errorf("%s: passed %d, refused %v, want %q only", a.name, len(f.pass), reasons(f), a.why)
		}
	}
}

func TestInspectPacketPasses(t *testing.T) {
	const lead = accusationLead
	for _, c := range []struct {
		name, from string
		packet     []byte
		want       [][]byte
	}{
		{"ping gets the sender's address", "ann",
			mustEncode(pingType, &ping{SeqNo: 3, Node: "me", SourceNode: "ann", SourceAddr: net.IPv4(192, 0, 2, 1), SourcePort: 53}),
			[][]byte{mustEncode(pingType, &ping{SeqNo: 3, Node: "me", SourceNode: "ann", SourceAddr: address("ann"), SourcePort: gossipPort})}},
		{"indirect ping gets both addresses", "ann",
			mustEncode(indirectPingType, &indirectPing{SeqNo: 3, Node: "bob", Nack: true, SourceNode: "ann", Target: net.IPv4(192, 0, 2, 1), Port: 53}),
			[][]byte{mustEncode(indirectPingType, &indirectPing{SeqNo: 3, Node: "bob", Nack: true, SourceNode: "ann",
				Target: address("bob"), Port: gossipPort, SourceAddr: address("ann"), SourcePort: gossipPort})}},
		{"answers that are due", "bob",
			compound(mustEncode(ackType, &ack{SeqNo: 7}), mustEncode(nackType, &nack{7})),
			[][]byte{mustEncode(ackType, &ack{SeqNo: 7}), mustEncode(nackType, &nack{7})}},
		{"suspicion, relayed", "ann",
			checksummed(mustEncode(suspectType, &suspect{nowInc + lead, "bob", "mallory"})),
			[][]byte{mustEncode(suspectType, &suspect{nowInc + lead, "bob", "mallory"})}},
		{"suspicion about us", "ann",
			mustEncode(suspectType, &suspect{nowInc, "me", "ann"}),
			[][]byte{mustEncode(suspectType, &suspect{nowInc, "me", "ann"})}},
		{"leave", "bob",
			mustEncode(deadType, &dead{nowInc, "bob", "bob"}),
			[][]byte{mustEncode(deadType, &dead{nowInc, "bob", "bob"})}},
		{"leave of another is a suspicion", "mallory",
			mustEncode(deadType, &dead{nowInc, "bob", "bob"}),
			[][]byte{mustEncode(suspectType, &suspect{nowInc, "bob", "mallory"})}},
		{"death is a suspicion by the sender", "mallory",
			mustEncode(deadType, &dead{nowInc, "bob", "ann"}),
			[][]byte{mustEncode(suspectType, &suspect{nowInc, "bob", "mallory"})}},
		{"own death is no leave", "mallory",
			mustEncode(deadType, &dead{nowInc, "mallory", "ann"}),
			[][]byte{mustEncode(suspectType, &suspect{nowInc, "mallory", "me"})}},
		{"our leave is a suspicion", "mallory",
			mustEncode(deadType, &dead{nowInc, "me", "me"}),
			[][]byte{mustEncode(suspectType, &suspect{nowInc, "me", "mallory"})}},
		{"alive, relayed, refuting", "mallory",
			mustEncode(aliveType, aliveOf("bob", nowInc+lead+1)),
			[][]byte{mustEncode(aliveType, aliveOf("bob", nowInc+lead+1))}},
		{"alive without hint", "bob",
			mustEncode(aliveType, with(aliveOf("bob", nowInc), func(m *alive) { m.Meta = []byte{} })),
			[][]byte{mustEncode(aliveType, with(aliveOf("bob", nowInc), func(m *alive) { m.Meta = nil }))}},
		{"the good of a mixed compound", "bob",
			compound(mustEncode(aliveType, aliveOf("bob", 1)), []byte{byte(userType)}, mustEncode(nackType, &nack{7})),
			[][]byte{mustEncode(aliveType, aliveOf("bob", 1)), mustEncode(nackType, &nack{7})}},
	} {
		f := newInspector().packet(c.from, c.packet)
		for _, a := range f.accused {
			f.pass = append(f.pass, a.message)
		}
		if diff := cmp.Diff(c.want, f.pass); diff != "" {
			t.Errorf("%s: refused %v (-want +got)\n%s", c.name, reasons(f), diff)
		}
	}
}

func TestInspectPacketReportsUnknownHosts(t *testing.T) {
	b := mustEncode(aliveType, aliveOf("eve", nowInc))
	f := newInspector().packet("ann", b)
	if diff := cmp.Diff([]mention{{"eve", b}}, f.unknown, cmp.AllowUnexported(mention{})); diff != "" {
		t.Errorf("relayed (-want +got)\n%s", diff)
	}
	f = newInspector().packet("eve", b)
	if diff := cmp.Diff([]mention{{host: "eve"}}, f.unknown, cmp.AllowUnexported(mention{})); diff != "" {
		t.Errorf("direct (-want +got)\n%s", diff)
	}
}

func stateOf(host string, state memberlist.NodeStateType) nodeState {
	return nodeState{host, address(host), gossipPort, meta(1), nowInc, int(state), versions}
}

func pushPullOf(header pushPullHeader, states ...nodeState) []byte {
	b := mustEncode(pushPullType, &header)
	for _, s := range states {
		b = append(b, mustEncode(0, &s)[1:]...)
	}
	return b
}

func inspectStream(from string, b []byte) ([]byte, findings, error) {
	return newInspector().pushPull(from, bufio.NewReader(bytes.NewReader(b)))
}

func TestInspectStreamRefusesWhole(t *testing.T) {
	one := pushPullOf(pushPullHeader{Nodes: 1}, stateOf("ann", memberlist.StateAlive))
	for _, c := range []struct {
		name, from string
		stream     []byte
		why        reason
	}{
		{"stranger", "eve", one, reasonUnknownSender},
		{"our own name", "me", one, reasonForged},
		{"ping", "ann", mustEncode(pingType, &ping{Node: "me"}), reasonType},
		{"user message", "ann", []byte{byte(userType)}, reasonType},
		{"compressed", "ann", append([]byte{byte(compressType)}, one...), reasonType},
		{"encrypted", "ann", append([]byte{byte(encryptType)}, one...), reasonType},
		{"error", "ann", append([]byte{byte(errorType)}, one...), reasonType},
		{"label", "ann", append([]byte{244, 1, 'x'}, one...), reasonType},
		{"too many nodes", "ann", pushPullOf(pushPullHeader{Nodes: 101}), reasonOversized},
		{"negative nodes", "ann", pushPullOf(pushPullHeader{Nodes: -1}), reasonOversized},
		{"user state", "ann", pushPullOf(pushPullHeader{UserStateLen: 1}), reasonOversized},
		{"fewer nodes than said", "ann", pushPullOf(pushPullHeader{Nodes: 2}, stateOf("ann", memberlist.StateAlive)), reasonMalformed},
		{"cut off", "ann", one[:len(one)-1], reasonMalformed},
		{"string of 4 GiB", "ann", []byte("\x06\x81\xdb\xff\xff\xff\xff"), reasonMalformed},
	} {
		body, f, err := inspectStream(c.from, c.stream)
		if err == nil || body != nil || !slices.Equal(reasons(f), []reason{c.why}) {
			t.Errorf("%s: error %v, refused %v, want %q", c.name, err, reasons(f), c.why)
		}
	}
}

func TestInspectStreamJudgesEachState(t *testing.T) {
	change := func(s nodeState, change func(*nodeState)) nodeState { change(&s); return s }
	accused := []accusation{{"ann", "mallory", mustEncode(suspectType, &suspect{nowInc, "ann", "mallory"})}}
	suspected := change(stateOf("me", memberlist.StateSuspect), func(s *nodeState) { s.Meta = nil })
	left := change(stateOf("mallory", memberlist.StateLeft), func(s *nodeState) { s.Meta = nil })
	alive := stateOf("ann", memberlist.StateAlive)
	for _, c := range []struct {
		name    string
		state   nodeState
		want    []nodeState
		why     reason
		accused []accusation
	}{
		{"alive", alive, []nodeState{alive}, "", nil},
		{"alive, refuting", change(alive, func(s *nodeState) { s.Incarnation = nowInc + accusationLead + 1 }),
			[]nodeState{change(alive, func(s *nodeState) { s.Incarnation = nowInc + accusationLead + 1 })}, "", nil},
		{"dead is an accusation", stateOf("ann", memberlist.StateDead), nil, "", accused},
		{"suspect us", stateOf("me", memberlist.StateDead), []nodeState{suspected}, "", nil},
		{"leave of another is an accusation", stateOf("ann", memberlist.StateLeft), nil, "", accused},
		{"own leave", stateOf("mallory", memberlist.StateLeft), []nodeState{left}, "", nil},
		{"no such state", stateOf("ann", 4), nil, reasonMalformed, nil},
		{"stranger", stateOf("eve", memberlist.StateAlive), nil, reasonUnknownHost, nil},
		{"dead stranger", stateOf("eve", memberlist.StateDead), nil, reasonUnknownHost, nil},
		{"address", change(alive, func(s *nodeState) { s.Addr = net.IPv4(192, 0, 2, 1) }), nil, reasonAddress, nil},
		{"versions", change(alive, func(s *nodeState) { s.Vsn = []uint8{5, 5, 5, 5, 5, 5} }), nil, reasonVersion, nil},
		{"incarnation", change(alive, func(s *nodeState) { s.Incarnation = math.MaxUint32 }), nil, reasonIncarnation, nil},
		{"dead with incarnation", change(stateOf("ann", memberlist.StateDead), func(s *nodeState) { s.Incarnation = math.MaxUint32 - 1 }), nil, reasonIncarnation, nil},
	} {
		body, f, err := inspectStream("mallory", pushPullOf(pushPullHeader{Nodes: 1, Join: true}, c.state))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		want := pushPullOf(pushPullHeader{Nodes: len(c.want), Join: true}, c.want...)
		if diff := cmp.Diff(want, body); diff != "" {
			t.Errorf("%s: refused %v (-want +got)\n%s", c.name, reasons(f), diff)
		}
		if diff := cmp.Diff(c.accused, f.accused, cmp.AllowUnexported(accusation{})); diff != "" {
			t.Errorf("%s: accusations (-want +got)\n%s", c.name, diff)
		}
		if c.why != "" && !slices.Equal(reasons(f), []reason{c.why}) {
			t.Errorf("%s: refused %v, want %q", c.name, reasons(f), c.why)
		}
	}
	body, f, err := inspectStream("mallory", pushPullOf(pushPullHeader{Nodes: 2}, alive, alive))
	if err != nil || !slices.Equal(reasons(f), []reason{reasonDuplicate}) ||
		!bytes.Equal(body, pushPullOf(pushPullHeader{Nodes: 1}, alive)) {
		t.Errorf("duplicate: error %v, refused %v", err, reasons(f))
	}
}
