package gossip

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestMentionsEvictWhoMentionsMost(t *testing.T) {
	s := newMentions()
	s.put("honest", mention{"new", []byte("alive")}, noon)
	for i := range 3 * maxMentions {
		s.put("liar", mention{fmt.Sprint(i), []byte("alive")}, noon)
	}
	if s.size() != maxMentions {
		t.Errorf("%d kept, want %d", s.size(), maxMentions)
	}
	if from, message := s.take("new"); from != "honest" || string(message) != "alive" {
		t.Errorf("the honest mention is %q from %q", message, from)
	}
	if from, _ := s.take("new"); from != "" {
		t.Error("a mention can be taken twice")
	}
}

func TestMentionsTellAgainAfterAWhile(t *testing.T) {
	s := newMentions()
	var told []bool
	for _, after := range []time.Duration{0, time.Second, mentionRetell, mentionRetell + time.Second} {
		told = append(told, s.put("a", mention{"new", nil}, noon.Add(after)))
	}
	if diff := cmp.Diff([]bool{true, false, true, false}, told); diff != "" {
		t.Error(diff)
	}
}

func TestMentionsKeepWhoSpokeForItself(t *testing.T) {
	s := newMentions()
	s.put("new", mention{"new", nil}, noon)
	s.put("a", mention{"new", []byte("alive")}, noon)
	if from, message := s.take("new"); from != "new" || string(message) != "alive" {
		t.Errorf("kept %q from %q", message, from)
	}
}

func TestAskedKnowsWhoOwesAnAnswer(t *testing.T) {
	var a asked
	a.note("bob", checksummed(compound(
		mustEncode(pingType, &ping{SeqNo: 5, Node: "bob"}), mustEncode(suspectType, &suspect{}))), noon)
	a.note("ann", mustEncode(indirectPingType, &indirectPing{SeqNo: 5, Node: "bob"}), noon)
	a.note("mallory", mustEncode(ackType, &ack{SeqNo: 5}), noon)
	for _, c := range []struct {
		seq  uint32
		from string
		at   time.Time
		want bool
	}{
		{5, "bob", noon, true},
		{5, "ann", noon.Add(answerTime), true},
		{5, "ann", noon.Add(answerTime + 1), false},
		{5, "mallory", noon, false},
		{6, "bob", noon, false},
	} {
		if got := a.due(c.seq, c.from, c.at); got != c.want {
			t.Errorf("%d from %s after %v: %v", c.seq, c.from, c.at.Sub(noon), got)
		}
	}
	for seq := range uint32(3 * maxAsked) {
		a.add(seq, "bob", noon)
	}
	if len(a.probes) > maxAsked {
		t.Errorf("%d probes kept", len(a.probes))
	}
}

func TestAccusationsFollowTheEvidence(t *testing.T) {
	a := newAccusations()
	c := accusation{host: "ann"}
	a.heard("ann", true, noon)
	if got := a.add(c, noon.Add(evidenceLife)); got != contradicted {
		t.Errorf("just heard: %v", got)
	}
	if got := a.add(c, noon.Add(evidenceLife+1)); got != unclear {
		t.Errorf("not heard lately: %v", got)
	}
	a.add(c, noon.Add(evidenceLife+1))
	if len(a.waiting) != 1 {
		t.Errorf("%d checks of one host", len(a.waiting))
	}
	a.heard("ann", false, noon.Add(time.Minute))
	if got := a.add(c, noon.Add(time.Minute)); got != confirmed {
		t.Errorf("just did not answer: %v", got)
	}
}

func TestRefusalsNameTheLiarOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		r := newRefusals(slog.New(slog.NewTextHandler(&out, nil)))
		for range 100 {
			r.add("mallory", reasonForged, []byte{0xab, 0xcd})
			r.add("ann", reasonUnknownHost, nil)
		}
		if n := strings.Count(out.String(), "\n"); n != 1 || !strings.Contains(out.String(), "host=mallory reason=forged message=abcd") {
			t.Errorf("logged %d lines: %s", n, &out)
		}
		<-time.After(refusalLogEvery)
		r.add("mallory", reasonForged, make([]byte, 1000))
		if n := strings.Count(out.String(), "\n"); n != 2 || out.Len() > 1000 {
			t.Errorf("logged %d lines, %d bytes", n, out.Len())
		}
		if diff := cmp.Diff(map[string]uint64{"forged": 101, "unknown-host": 100}, r.stats()); diff != "" {
			t.Error(diff)
		}
	})
}

func TestLogKeepsLevelsAndLimits(t *testing.T) {
	var out bytes.Buffer
	handler := slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}})
	l := newLog(slog.New(handler))
	for _, line := range []string{"[DEBUG] memberlist: a", "[INFO] memberlist: b", "[WARN] memberlist: c", "[ERR] memberlist: d", "Err: e", "] f", ""} {
		l.Print(line)
	}
	want := "level=DEBUG msg=a\nlevel=DEBUG msg=b\nlevel=INFO msg=c\nlevel=WARN msg=d\nlevel=WARN msg=\"Err: e\"\nlevel=WARN msg=\"] f\"\nlevel=WARN msg=\"\"\n"
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
	for range 1000 {
		l.Print("[ERR] memberlist: again")
	}
	if n := strings.Count(out.String(), "\n"); n > 100 {
		t.Errorf("%d lines", n)
	}
}

func TestJoinsTakeEachHostOnce(t *testing.T) {
	j := newJoins()
	j.add("a")
	j.add("a")
	host, _ := j.next()
	j.add(host)
	if _, more := j.next(); more {
		t.Error("a host is joined twice at a time")
	}
	j.done(host)
	j.add(host)
	if got, _ := j.next(); got != "a" {
		t.Error("a host is not joined again")
	}
}
