package gossip

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/go-msgpack/v2/codec"
	"github.com/hashicorp/memberlist"

	"github.com/bulkhead-mesh/bulkhead/overlay"
	"github.com/bulkhead-mesh/bulkhead/overlay/overlaytest"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

var fuzzSenders = []string{"ann", "bob", "mallory", "eve", "me"}

func seedPackets(f *testing.F) {
	for _, a := range attacks {
		if len(a.packet) < 1200 {
			f.Add(uint8(slices.Index(fuzzSenders, a.from)), a.packet)
		}
	}
	for _, b := range [][]byte{
		mustEncode(pingType, &ping{SeqNo: 3, Node: "me", SourceNode: "bob", SourceAddr: address("bob"), SourcePort: gossipPort}),
		mustEncode(indirectPingType, &indirectPing{SeqNo: 3, Node: "ann", Nack: true, SourceNode: "bob"}),
		mustEncode(ackType, &ack{SeqNo: 7}),
		mustEncode(nackType, &nack{7}),
		mustEncode(suspectType, &suspect{nowInc, "ann", "bob"}),
		mustEncode(deadType, &dead{nowInc, "bob", "bob"}),
		mustEncode(deadType, &dead{nowInc, "me", "ann"}),
		mustEncode(aliveType, aliveOf("bob", nowInc)),
		checksummed(compound(mustEncode(nackType, &nack{7}), mustEncode(aliveType, aliveOf("me", nowInc)))),
	} {
		f.Add(uint8(1), b)
	}
}

// decodeLikeMemberlist reads a message as memberlist does, without our framing.
func decodeLikeMemberlist(t *testing.T, r io.Reader, m any) {
	t.Helper()
	if err := codec.NewDecoder(r, new(codec.MsgpackHandle)).Decode(m); err != nil {
		t.Fatalf("memberlist cannot decode what passed: %v", err)
	}
}

// checkMessage fails unless the message is about and from known hosts at their own addresses.
func checkMessage(t *testing.T, in *inspector, from string, b []byte) {
	t.Helper()
	known := func(hosts ...string) {
		t.Helper()
		for _, h := range hosts {
			if !in.isKnown(h) {
				t.Fatalf("message of type %d names %q", b[0], h)
			}
		}
	}
	at := func(host string, ip []byte, port uint16) {
		t.Helper()
		if !bytes.Equal(ip, address(host)) || port != gossipPort {
			t.Fatalf("message of type %d places %q at %v:%d", b[0], host, ip, port)
		}
	}
	r := bytes.NewReader(b[1:])
	var incarnation uint32
	switch messageType(b[0]) {
	case pingType:
		var m ping
		decodeLikeMemberlist(t, r, &m)
		if m.Node != in.self || m.SourceNode != from {
			t.Fatalf("ping %+v", m)
		}
		at(from, m.SourceAddr, m.SourcePort)
	case indirectPingType:
		var m indirectPing
		decodeLikeMemberlist(t, r, &m)
		known(m.Node)
		if m.SourceNode != from {
			t.Fatalf("indirect ping %+v", m)
		}
		at(from, m.SourceAddr, m.SourcePort)
		at(m.Node, m.Target, m.Port)
	case ackType, nackType:
		var m ack
		decodeLikeMemberlist(t, r, &m)
		if !in.asked(m.SeqNo, from) || m.Payload != nil {
			t.Fatalf("ack %+v", m)
		}
	case suspectType:
		var m suspect
		decodeLikeMemberlist(t, r, &m)
		known(m.Node, m.From)
		incarnation = m.Incarnation
	case deadType:
		var m dead
		decodeLikeMemberlist(t, r, &m)
		if m.Node != from || m.From != from {
			t.Fatalf("dead %+v from %q", m, from)
		}
		incarnation = m.Incarnation
	case aliveType:
		var m alive
		decodeLikeMemberlist(t, r, &m)
		known(m.Node)
		at(m.Node, m.Addr, m.Port)
		if !bytes.Equal(m.Vsn, versions) || !validMeta(m.Meta) {
			t.Fatalf("alive %+v", m)
		}
		incarnation = m.Incarnation
	default:
		t.Fatalf("type %d passed", b[0])
	}
	if incarnation > nowInc+accusationLead+refutationLead {
		t.Fatalf("incarnation %d passed", incarnation)
	}
}

// What passes is about known hosts at their own addresses, accuses nobody but us, and passes again unchanged.
func FuzzInspectPacket(f *testing.F) {
	seedPackets(f)
	f.Fuzz(func(t *testing.T, who uint8, b []byte) {
		in, from := newInspector(), fuzzSenders[int(who)%len(fuzzSenders)]
		found := in.packet(from, b)
		if n := len(found.pass) + len(found.accused) + len(found.refused); n == 0 || n > maxParts {
			t.Fatalf("%d outcomes", n)
		}
		for _, m := range found.pass {
			checkMessage(t, in, from, m)
			again := in.packet(from, m)
			if len(again.pass) != 1 || !bytes.Equal(again.pass[0], m) || len(again.refused)+len(again.accused) > 0 {
				t.Fatalf("%x: passes first, then %+v", m, again)
			}
		}
		for _, a := range found.accused {
			checkMessage(t, in, from, a.message)
			again := in.packet(from, a.message)
			if a.host == in.self || len(again.accused) != 1 || !bytes.Equal(again.accused[0].message, a.message) {
				t.Fatalf("%x: accuses %q first, then %+v", a.message, a.host, again)
			}
		}
		for _, u := range found.unknown {
			if in.isKnown(u.host) || segment.ValidName(u.host) != nil {
				t.Fatalf("%q is reported as unknown", u.host)
			}
		}
	})
}

// What passes lists known hosts once each, at their own addresses, leaves no other, and passes again unchanged.
func FuzzInspectStream(f *testing.F) {
	for state := memberlist.StateAlive; state <= memberlist.StateLeft; state++ {
		f.Add(uint8(2), pushPullOf(pushPullHeader{Nodes: 3, Join: true},
			stateOf("ann", state), stateOf("mallory", state), stateOf("me", state)))
	}
	f.Add(uint8(0), pushPullOf(pushPullHeader{Nodes: 2}, stateOf("eve", memberlist.StateAlive), stateOf("bob", 9)))
	f.Add(uint8(0), pushPullOf(pushPullHeader{Nodes: 1 << 30, UserStateLen: -1}))
	f.Add(uint8(3), pushPullOf(pushPullHeader{}))
	f.Fuzz(func(t *testing.T, who uint8, b []byte) {
		in, from := newInspector(), fuzzSenders[int(who)%len(fuzzSenders)]
		body, found, err := in.pushPull(from, bufio.NewReader(bytes.NewReader(b)))
		for _, a := range found.accused {
			checkMessage(t, in, from, a.message)
		}
		if err != nil {
			if body != nil {
				t.Fatal("a refused push/pull passes")
			}
			return
		}
		if len(body) > len(b)+200*(len(found.unknown)+4) {
			t.Fatalf("%d bytes became %d", len(b), len(body))
		}
		again, second, err := in.pushPull(from, bufio.NewReader(bytes.NewReader(body)))
		if err != nil || !bytes.Equal(again, body) || len(second.refused)+len(second.accused)+len(second.unknown) > 0 {
			t.Fatalf("%x: passes first, then %v %+v", body, err, second)
		}
		checkPushPull(t, in, from, body)
	})
}

func checkPushPull(t *testing.T, in *inspector, from string, body []byte) {
	dec := codec.NewDecoder(bytes.NewReader(body[1:]), new(codec.MsgpackHandle))
	var header pushPullHeader
	if err := dec.Decode(&header); err != nil || header.UserStateLen != 0 {
		t.Fatalf("header %+v: %v", header, err)
	}
	seen := make(map[string]bool)
	for range header.Nodes {
		var s nodeState
		if err := dec.Decode(&s); err != nil {
			t.Fatalf("memberlist cannot decode what passed: %v", err)
		}
		left := s.State == int(memberlist.StateLeft) && s.Name == from
		suspected := s.State == int(memberlist.StateSuspect) && s.Name == in.self
		if seen[s.Name] || !in.isKnown(s.Name) || !bytes.Equal(s.Addr, address(s.Name)) || s.Port != gossipPort ||
			!bytes.Equal(s.Vsn, versions) || !validMeta(s.Meta) || s.State != int(memberlist.StateAlive) && !left && !suspected {
			t.Fatalf("state %+v from %q", s, from)
		}
		seen[s.Name] = true
	}
}

// Nothing that a host sends stops memberlist, which does not recover from its own panics, or brings in a host.
func FuzzMemberlist(f *testing.F) {
	seedPackets(f)
	net := overlaytest.NewNetwork()
	ctx, stop := context.WithCancel(context.Background())
	known := newInspector().known
	g := New(Options{
		Host: "me", Network: net.Node("me"), Known: known, Candidates: func() []string { return nil },
		OnHint: func(string, overlay.Hint) {}, OnUnknown: func(string, string) {}, OnLiveness: func(string, bool) {},
		Logger: discard,
	})
	g.tune = func(c *memberlist.Config) { // what memberlist starts shall end soon after the test
		c.ProbeInterval, c.ProbeTimeout = 50*time.Millisecond, 10*time.Millisecond
	}
	g.inspector.asked = func(uint32, string) bool { return true }
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	f.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			f.Error(err)
		}
		net.Close()
	})
	f.Fuzz(func(t *testing.T, who uint8, b []byte) {
		g.senders.forget(fuzzSenders[int(who)%len(fuzzSenders)])
		g.HandleDatagram(fuzzSenders[int(who)%len(fuzzSenders)], b)
		for _, host := range g.Alive() {
			if !known(host) {
				t.Fatalf("%q is alive", host)
			}
		}
		if len(done) > 0 {
			t.Fatal("gossip ended")
		}
	})
}
