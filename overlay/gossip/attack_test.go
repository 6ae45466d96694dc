package gossip

import (
	"bufio"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/bulkhead-mesh/bulkhead/overlay"
	"github.com/bulkhead-mesh/bulkhead/overlay/overlaytest"
)

// insider is a host with a valid certificate that says what it likes.
type insider struct {
	t    *testing.T
	name string
	node *overlaytest.Node
}

// withInsiders runs honest hosts that know each other and the insiders, until the honest ones are complete.
func (m *mesh) withInsiders(honest, insiders []string) []*insider {
	var out []*insider
	for _, name := range insiders {
		out = append(out, &insider{m.t, name, m.net.Node(name)})
	}
	for _, name := range honest {
		m.start(name, append(slices.Clone(honest), insiders...)...)
	}
	m.eventually(time.Minute, "honest hosts see each other", func() bool { return m.complete(honest...) })
	return out
}

func (i *insider) send(to string, packet []byte) {
	if err := i.node.Send(to, overlay.KindGossip, packet); err != nil {
		i.t.Error(err)
	}
}

func incarnation() uint32 { return uint32(time.Now().Unix()) }

// unharmed fails if an honest host was ever told that another is gone, or does not see it now.
func (m *mesh) unharmed(honest []string) {
	m.t.Helper()
	for _, name := range honest {
		h := m.hosts[name]
		for _, other := range honest {
			if h.wasTold("-" + other) {
				m.t.Errorf("%s was told that %s is gone", name, other)
			}
			if other != name && !slices.Contains(h.Alive(), other) {
				m.t.Errorf("%s does not see %s", name, other)
			}
		}
	}
}

// heard waits until an honest host's next hint has reached all: nobody has lost its voice.
func (m *mesh) heard(honest []string, within time.Duration) {
	m.t.Helper()
	for i, name := range honest {
		want := overlay.Hint{RecordSequence: rand.Uint64(), PolicyVersion: uint64(i)}
		m.hosts[name].Announce(want)
		m.eventually(within, "all have the hint of "+name, func() bool {
			return !slices.ContainsFunc(honest, func(other string) bool {
				return other != name && m.hosts[other].hintOf(name) != want
			})
		})
	}
}

func TestInsiderStorm(t *testing.T) {
	inMesh(t, func(m *mesh) {
		honest, bad := names(9), []string{"x0", "x1", "x2"}
		insiders := m.withInsiders(honest, bad)
		rng := rand.New(rand.NewPCG(1, 2))
		pick := func(hosts []string) string { return hosts[rng.IntN(len(hosts))] }
		forge := []func(from, victim string) []byte{
			func(from, victim string) []byte {
				return mustEncode(suspectType, &suspect{incarnation() + uint32(rng.IntN(accusationLead+2)), victim, pick(honest)})
			},
			func(from, victim string) []byte {
				return mustEncode(deadType, &dead{incarnation() + uint32(rng.IntN(accusationLead+2)), victim, victim})
			},
			func(from, victim string) []byte {
				return mustEncode(deadType, &dead{math.MaxUint32 - uint32(rng.IntN(3)), victim, from})
			},
			func(from, victim string) []byte {
				return mustEncode(aliveType, aliveOf(victim, incarnation()+uint32(rng.IntN(accusationLead))))
			},
			func(from, victim string) []byte {
				return mustEncode(aliveType, with(aliveOf(victim, incarnation()), func(m *alive) { m.Vsn = []uint8{9, 9, 9, 9, 9, 9} }))
			},
			func(from, victim string) []byte {
				return mustEncode(ackType, &ack{SeqNo: uint32(rng.IntN(200))})
			},
		}
		const seconds, perSecond = 60, 1000
		for range seconds * 20 {
			for range perSecond / 20 {
				for _, i := range insiders {
					i.send(pick(honest), forge[rng.IntN(len(forge))](i.name, pick(honest)))
				}
			}
			<-time.After(time.Second / 20)
		}
		m.unharmed(honest)
		for _, name := range honest {
			if stats := m.hosts[name].Stats(); stats["incarnation"] == 0 || stats["version"] == 0 || stats["unasked"] == 0 {
				t.Errorf("%s counted %v", name, stats)
			}
		}
		m.heard(honest, 15*time.Minute)
		m.unharmed(honest)
	})
}

func TestAttacksLeaveMeshUnharmed(t *testing.T) {
	inMesh(t, func(m *mesh) {
		m.net.Node("eve")
		honest := []string{"me", "ann", "bob"}
		mallory := m.withInsiders(honest, []string{"mallory"})[0]
		for _, a := range attacks {
			if a.from != "mallory" || len(a.packet) > 1100 {
				continue
			}
			before := m.hosts["me"].Stats()[string(a.why)]
			mallory.send("me", a.packet)
			synctest.Wait()
			if got := m.hosts["me"].Stats()[string(a.why)]; got != before+1 {
				t.Errorf("%s: counted %d as %q, want 1", a.name, got-before, a.why)
			}
		}
		<-time.After(30 * time.Second)
		m.unharmed(honest)
		m.heard(honest, 5*time.Second)
	})
}

// TestIncarnationCannotBeWalkedUp accuses a host again and again with the highest incarnation that
// passes. If that could be repeated, 65536 accusations would wrap the counter and silence the host.
func TestIncarnationCannotBeWalkedUp(t *testing.T) {
	inMesh(t, func(m *mesh) {
		honest := names(4)
		x := m.withInsiders(honest, []string{"x"})[0]
		for range 3000 {
			for _, name := range honest {
				x.send(name, mustEncode(suspectType, &suspect{incarnation() + accusationLead, "h00", "x"}))
				x.send(name, mustEncode(deadType, &dead{incarnation() + accusationLead, "h00", "x"}))
				x.send(name, mustEncode(aliveType, aliveOf("h00", incarnation()+accusationLead)))
			}
			<-time.After(20 * time.Millisecond)
		}
		m.unharmed(honest)
		m.heard(honest, 10*time.Second)
	})
}

func TestDeadHostCannotBeKeptAlive(t *testing.T) {
	inMesh(t, func(m *mesh) {
		honest := names(4)
		x := m.withInsiders(honest, []string{"x"})[0]
		m.kill("h01")
		start := time.Now()
		rest := []string{"h00", "h02", "h03"}
		for !m.complete(rest...) {
			if time.Since(start) > 20*time.Second {
				t.Fatal("h01 is still taken for alive")
			}
			for seq := range uint32(200) {
				for _, name := range rest {
					x.send(name, mustEncode(ackType, &ack{SeqNo: seq}))
				}
			}
			<-time.After(200 * time.Millisecond)
		}
	})
}

func TestInventedNamesStayBounded(t *testing.T) {
	inMesh(t, func(m *mesh) {
		x := m.withInsiders([]string{"a", "b"}, []string{"x"})[0]
		a := m.hosts["a"]
		m.start("new", "a", "b").Join([]string{"a"})
		m.eventually(5*time.Second, "a hears of the new host", func() bool { return a.heardOf("new") == "new" })
		for i := range 100_000 {
			x.send("a", mustEncode(aliveType, aliveOf(fmt.Sprintf("n%06d", i), incarnation())))
			if i%100 == 0 {
				<-time.After(time.Second)
			}
		}
		if n := a.mentions.size(); n > maxMentions {
			t.Errorf("%d messages kept", n)
		}
		if got := a.Stats()["unknown-host"]; got < 90_000 {
			t.Errorf("counted %d of 100000", got)
		}
		a.learn("new")
		m.eventually(time.Second, "the new host was not crowded out", func() bool { return slices.Contains(a.Alive(), "new") })
		m.unharmed([]string{"a", "b"})
	})
}

func TestIndirectPingsGoToKnownHostsOnly(t *testing.T) {
	inMesh(t, func(m *mesh) {
		x := m.withInsiders([]string{"a", "b"}, []string{"x"})[0]
		var reached atomic.Int64
		stranger := m.net.Node("stranger")
		stranger.OnDatagram(overlay.KindGossip, func(string, []byte) { reached.Add(1) })
		for range 100 {
			x.send("a", mustEncode(indirectPingType, &indirectPing{SeqNo: 1, Node: "stranger", SourceNode: "x"}))
			x.send("a", mustEncode(indirectPingType, &indirectPing{SeqNo: 1, Node: "b", SourceNode: "stranger", Nack: true}))
			x.send("a", mustEncode(pingType, &ping{SeqNo: 1, Node: "a", SourceNode: "stranger", SourceAddr: address("stranger"), SourcePort: gossipPort}))
		}
		<-time.After(5 * time.Second)
		if n := reached.Load(); n > 0 {
			t.Errorf("%d packets to a host that is no member", n)
		}
		m.unharmed([]string{"a", "b"})
	})
}

func TestHostileStreams(t *testing.T) {
	inMesh(t, func(m *mesh) {
		honest := []string{"a", "b"}
		x := m.withInsiders(honest, []string{"x"})[0]
		all := func(state memberlist.NodeStateType, inc uint32) []byte {
			var states []nodeState
			for _, name := range append(honest, "x") {
				s := stateOf(name, state)
				s.Incarnation = inc
				states = append(states, s)
			}
			return pushPullOf(pushPullHeader{Nodes: len(states), Join: true}, states...)
		}
		for _, body := range [][]byte{
			all(memberlist.StateDead, incarnation()+accusationLead),
			all(memberlist.StateLeft, incarnation()+accusationLead),
			all(memberlist.StateDead, math.MaxUint32),
			all(memberlist.StateAlive, math.MaxUint32),
			pushPullOf(pushPullHeader{Nodes: 1 << 20}),
			pushPullOf(pushPullHeader{UserStateLen: 20 << 20}),
			append([]byte{byte(compressType)}, make([]byte, 4096)...),
			append([]byte{byte(encryptType)}, make([]byte, 4096)...),
			[]byte(strings.Repeat("\x06", 1<<20)),
		} {
			s, err := x.node.Open(m.t.Context(), "a", overlay.KindGossip)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = s.Write(body)
			_, _ = bufio.NewReader(s).ReadByte()
			_ = s.Close()
			<-time.After(time.Second)
		}
		<-time.After(30 * time.Second)
		m.unharmed(honest)
		m.heard(honest, 5*time.Second)
		stats := m.hosts["a"].Stats()
		if stats["oversized"] != 2 || stats["type"] != 2 || stats["incarnation"] != 6 {
			t.Errorf("counted %v", stats)
		}
	})
}

// TestHostileAnswer lets an insider answer the push/pulls that honest hosts open to it.
func TestHostileAnswer(t *testing.T) {
	inMesh(t, func(m *mesh) {
		honest := []string{"a", "b"}
		x := m.withInsiders(honest, []string{"x"})[0]
		answers := [][]byte{
			pushPullOf(pushPullHeader{Nodes: 2}, stateOf("a", memberlist.StateLeft), stateOf("b", memberlist.StateLeft)),
			append([]byte{byte(errorType)}, make([]byte, 4096)...),
			[]byte("\x06\x81\xdb\xff\xff\xff\xff"),
			nil,
		}
		var asked atomic.Int64
		x.node.OnStream(overlay.KindGossip, func(_ context.Context, _ string, s overlay.Stream) {
			_, _ = bufio.NewReader(s).ReadByte()
			_, _ = s.Write(answers[int(asked.Add(1))%len(answers)])
		})
		m.eventually(5*time.Minute, "it was asked many times", func() bool { return int(asked.Load()) > 4*len(answers) })
		m.unharmed(honest)
		m.heard(honest, 5*time.Second)
	})
}

func TestStreamsPerHostAreBounded(t *testing.T) {
	inMesh(t, func(m *mesh) {
		x := m.withInsiders([]string{"a", "b"}, []string{"x"})[0]
		for range 20 { // that say nothing
			if _, err := x.node.Open(m.t.Context(), "a", overlay.KindGossip); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if got := m.hosts["a"].Stats()["busy"]; got != 20-streamsPerSender {
			t.Errorf("refused %d, want %d", got, 20-streamsPerSender)
		}
		<-time.After(2 * streamTimeout)
		if a := m.hosts["a"]; a.senders.streams != 0 {
			t.Errorf("%d streams left after the timeout", a.senders.streams)
		}
	})
}
