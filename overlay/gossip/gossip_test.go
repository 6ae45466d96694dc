package gossip

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/bulkhead-mesh/bulkhead/overlay"
)

// inMesh runs a scenario with simulated time.
func inMesh(t *testing.T, scenario func(*mesh)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		<-time.After(time.Until(noon))
		m := newMesh(t)
		defer m.close()
		scenario(m)
	})
}

func TestHostsSeeEachOther(t *testing.T) {
	for _, n := range []int{1, 3, 20} {
		inMesh(t, func(m *mesh) {
			m.startAll(names(n)...)
			for name, h := range m.hosts {
				if stats := h.Stats(); stats["type"]+stats["malformed"]+stats["forged"]+stats["address"]+stats["version"]+
					stats["meta"]+stats["incarnation"]+stats["oversized"]+stats["target"] > 0 {
					t.Errorf("%d hosts: %s refused honest messages: %v", n, name, stats)
				}
			}
		})
	}
}

func TestAnnouncedHintReachesAll(t *testing.T) {
	inMesh(t, func(m *mesh) {
		hosts := names(12)
		m.startAll(hosts...)
		for i := range uint64(5) {
			m.hosts["h03"].Announce(overlay.Hint{RecordSequence: i})
		}
		want := overlay.Hint{RecordSequence: 4, PolicyVersion: 9, Enforced: 8, RecordDigest: [32]byte{1}, PolicyDigest: [32]byte{2}}
		m.hosts["h03"].Announce(want)
		m.eventually(5*time.Second, "all have the last hint", func() bool {
			for _, name := range hosts {
				if name != "h03" && m.hosts[name].hintOf("h03") != want {
					return false
				}
			}
			return true
		})
	})
}

func TestHintAnnouncedBeforeRunIsTold(t *testing.T) {
	inMesh(t, func(m *mesh) {
		m.start("a", "b").Announce(overlay.Hint{RecordSequence: 7})
		b := m.start("b", "a")
		m.eventually(20*time.Second, "b has a's hint", func() bool { return b.hintOf("a").RecordSequence == 7 })
	})
}

func TestKilledHostIsNoticed(t *testing.T) {
	for _, n := range []int{3, 12} {
		inMesh(t, func(m *mesh) {
			hosts := names(n)
			m.startAll(hosts...)
			m.kill("h01")
			rest := append([]string{"h00"}, hosts[2:]...)
			m.eventually(15*time.Second, "the others see that it is gone", func() bool { return m.complete(rest...) })
			m.eventually(time.Second, "h00 is told", func() bool { return m.hosts["h00"].wasTold("-h01") })
			m.start("h01", hosts...)
			m.eventually(time.Minute, "it is back", func() bool { return m.complete(hosts...) })
		})
	}
}

func TestLeavingHostIsGoneAtOnce(t *testing.T) {
	inMesh(t, func(m *mesh) {
		m.startAll("a", "b", "c")
		m.stop("c")
		m.eventually(8*time.Second, "the others see that it left", func() bool { return m.complete("a", "b") })
	})
}

func TestRestartedHostIsHeard(t *testing.T) {
	inMesh(t, func(m *mesh) {
		m.startAll("a", "b", "c")
		for i := range uint64(20) {
			m.hosts["c"].Announce(overlay.Hint{RecordSequence: i})
			<-time.After(time.Second)
		}
		m.kill("c")
		m.start("c", "a", "b").Announce(overlay.Hint{RecordSequence: 100})
		m.eventually(20*time.Second, "its new hint counts", func() bool {
			return m.hosts["a"].hintOf("c").RecordSequence == 100 && m.hosts["b"].hintOf("c").RecordSequence == 100
		})
	})
}

func TestPartitionHeals(t *testing.T) {
	for _, long := range []time.Duration{20 * time.Second, 10 * time.Minute} {
		inMesh(t, func(m *mesh) {
			hosts := names(8)
			m.startAll(hosts...)
			m.net.Partition(hosts[:3], hosts[3:])
			m.eventually(time.Minute, "each side sees itself only", func() bool {
				return m.complete(append([]string(nil), hosts[:3]...)...) && m.complete(append([]string(nil), hosts[3:]...)...)
			})
			<-time.After(long)
			m.net.Heal()
			m.eventually(90*time.Second, "the mesh is one again", func() bool { return m.complete(hosts...) })
		})
	}
}

func TestUnknownHostTakesPartOnceLearned(t *testing.T) {
	inMesh(t, func(m *mesh) {
		m.startAll("a", "b")
		c := m.start("c", "a", "b")
		c.Join([]string{"a"})
		m.eventually(5*time.Second, "a is told of c", func() bool { return m.hosts["a"].heardOf("c") != "" })
		<-time.After(time.Minute)
		if got := m.hosts["a"].Alive(); len(got) != 1 {
			t.Fatalf("a sees %v before c is known", got)
		}
		m.hosts["a"].learn("c")
		m.hosts["b"].learn("c")
		m.eventually(time.Second, "a and b see c at once", func() bool { return m.complete("a", "b", "c") })
	})
}

func TestMentionedHostTakesPartOnceLearned(t *testing.T) {
	inMesh(t, func(m *mesh) {
		m.start("a", "b")
		m.start("b", "a", "c")
		m.start("c", "b")
		m.eventually(time.Minute, "a is told of c by b", func() bool { return m.hosts["a"].heardOf("c") == "b" })
		m.net.Partition([]string{"a", "b"}, []string{"c"})
		m.hosts["a"].learn("c") // its message was kept, so nothing more needs to arrive
		m.eventually(time.Second, "a takes c for alive", func() bool { return len(m.hosts["a"].Alive()) == 2 })
	})
}

func TestForgottenHostIsGoneAndMayReturn(t *testing.T) {
	inMesh(t, func(m *mesh) {
		m.startAll("a", "b", "c")
		a := m.hosts["a"]
		a.forget("c")
		m.eventually(time.Second, "a is told that c is gone", func() bool { return len(a.Alive()) == 1 && a.wasTold("-c") })
		a.learn("c")
		m.eventually(time.Minute, "c is back", func() bool { return m.complete("a", "b", "c") })
	})
}

func TestRunAgain(t *testing.T) {
	inMesh(t, func(m *mesh) {
		m.startAll("a", "b")
		a := m.hosts["a"]
		m.stop("a")
		if got := a.Alive(); len(got) > 0 {
			t.Errorf("sees %v while stopped", got)
		}
		ctx, stop := context.WithCancel(m.t.Context())
		a.stop, m.hosts["a"] = stop, a
		go func() { a.done <- a.Run(ctx) }()
		m.eventually(time.Minute, "they see each other again", func() bool { return m.complete("a", "b") })
	})
}

func TestMethodsWithoutRun(t *testing.T) {
	inMesh(t, func(m *mesh) {
		h := m.start("a", "b")
		m.stop("a")
		h.HandleDatagram("b", []byte{1, 2, 3})
		h.Announce(overlay.Hint{})
		h.Learned("b")
		h.Join([]string{"b", "c"})
		if got := h.Stats()["stopped"]; got != 1 {
			t.Errorf("counted %d packets while stopped, want 1", got)
		}
	})
}

func TestVersionsAreMemberlists(t *testing.T) {
	g := New(Options{Host: "a", Logger: discard})
	c := g.config(nil)
	if got := c.BuildVsnArray(); string(got) != string(versions) {
		t.Errorf("memberlist speaks %v, the inspector wants %v", got, versions)
	}
	if memberlist.MetaMaxSize < overlay.HintSize || memberlist.MetaMaxSize > maxField {
		t.Errorf("meta of %d bytes", memberlist.MetaMaxSize)
	}
}
