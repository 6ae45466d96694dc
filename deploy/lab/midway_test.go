package lab

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bulkhead-mesh/bulkhead/segment"
)

const closedPolicy = "segments: []\nrules: []\n"

// seeded is a source of random moments. Its seed is logged, and $BULKHEAD_SEED sets it.
func seeded(t *testing.T) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if given := os.Getenv("BULKHEAD_SEED"); given != "" {
		var err error
		seed, err = strconv.ParseUint(given, 10, 64)
		must(t, err)
	}
	t.Logf("BULKHEAD_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// enforcement is what decides about packets, in the parts that each change in one step.
type enforcement struct{ sets, rules6, rules4 string }

// wideSet is one that a rule of its own names. Emptied, it is as good as gone: its rule is about to go.
var wideSet = regexp.MustCompile(`^create (bulkhead-[io][46][tu]-\S+)`)

func enforcementOf(t *testing.T, h *Host) enforcement {
	t.Helper()
	listing := list(t, h, "ipset", "save")
	var sets []string
	for line := range strings.Lines(listing) {
		if m := wideSet.FindStringSubmatch(line); m != nil && !strings.Contains(listing, "add "+m[1]+" ") {
			continue
		}
		if strings.HasPrefix(line, "create") { // its sizes follow the number of entries
			line = strings.Join(strings.Fields(line)[:3], " ") + "\n"
		}
		sets = append(sets, line)
	}
	slices.Sort(sets)
	return enforcement{strings.Join(sets, ""), list(t, h, "ip6tables-save"), list(t, h, "iptables-save")}
}

// mixed says which part is of none of the policies; it is nil if each is whole.
func (e enforcement) mixed(of []enforcement) error {
	if !slices.ContainsFunc(of, func(o enforcement) bool { return o.sets == e.sets }) {
		return fmt.Errorf("the sets are of no policy:\n%s", e.sets)
	}
	if !slices.ContainsFunc(of, func(o enforcement) bool { return o.rules6 == e.rules6 }) {
		return fmt.Errorf("the IPv6 rules are of no policy:\n%s", e.rules6)
	}
	if !slices.ContainsFunc(of, func(o enforcement) bool { return o.rules4 == e.rules4 }) {
		return fmt.Errorf("the IPv4 rules are of no policy:\n%s", e.rules4)
	}
	return nil
}

// TestKilledMidwayIsNeverOpen kills a host's daemon while policies alternate that need other rules, not sets alone, and
// an empty one. Each part of what the kernel then has is one policy's, whole; the next daemon gets to the newest version.
func TestKilledMidwayIsNeverOpen(t *testing.T) {
	m := newTestMesh(t, Spec{}, fiveHosts[1], fiveHosts[3])
	store := m.node("h3")
	documents := []string{closedPolicy, openPolicy, widePolicy}
	var whole []enforcement
	for _, document := range documents {
		must(t, m.Apply(t.Context(), document))
		whole = append(whole, enforcementOf(t, store.Host))
	}
	kills, between := 12, 0
	if soaking {
		kills = 50
	}
	random := seeded(t)
	stop := rotate(t, m, documents)
	for i := range kills {
		<-time.After(time.Duration(random.IntN(400)) * time.Millisecond) // the moment is what is tried
		must(t, store.kill())
		var left enforcement
		if err := Eventually(t.Context(), patient, func() error { // a child that has begun a change ends it
			left = enforcementOf(t, store.Host)
			return left.mixed(whole)
		}); err != nil {
			t.Fatalf("kill %d: %v", i, err)
		}
		if !slices.Contains(whole, left) {
			between++ // then its rules let nothing pass that its sets do not hold
		}
		newest := m.version(t)
		must(t, store.StartDaemon())
		if i%3 != 0 {
			continue // the next kill comes while it starts
		}
		must(t, store.Ready(t.Context()))
		must(t, Eventually(t.Context(), patient, func() error {
			s, err := store.Status(t.Context())
			if err == nil && s.PolicyVersion < newest {
				err = fmt.Errorf("it enforces version %d, and %d was there when it began", s.PolicyVersion, newest)
			}
			return err
		}))
	}
	stop()
	t.Logf("%d kills, %d of them between sets and rules", kills, between)
	must(t, store.Ready(t.Context()))
	must(t, m.Settled(t.Context()))
	must(t, m.Apply(t.Context(), documents[1]))
	if now := enforcementOf(t, store.Host); now != whole[1] {
		t.Errorf("the last policy is not enforced: %v", now.mixed(whole[1:2]))
	}
}

// rotate applies policies in turn, as fast as control signs them, until stop is called.
func rotate(t *testing.T, m *Mesh, documents []string) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			if err := m.Submit(ctx, documents[i%len(documents)]); err != nil && ctx.Err() == nil {
				t.Error(err)
				return
			}
		}
	})
	return sync.OnceFunc(func() {
		cancel()
		running.Wait()
	})
}

// TestKilledDaemonLeaksNothing: what is sent to an agent's address after the daemon was killed stays on the host, though
// a default route invites it.
func TestKilledDaemonLeaksNothing(t *testing.T) {
	m := newTestMesh(t, Spec{}, fiveHosts[1], fiveHosts[3])
	agents := agentsOf(t, m)
	must(t, m.Apply(t.Context(), openPolicy))
	plan := m.node("h2")
	shell(t, plan.Host, "ip route add default via 192.168.77.1; ip -6 route add default via fd77::1")
	sniffer, err := plan.Links()[0].Sniff()
	must(t, err)
	must(t, plan.kill())
	for i, to := range agents["store1"].Addresses {
		for _, port := range []segment.Port{{Proto: segment.TCP, Number: 5001}, {Proto: segment.UDP, Number: 5001}, {Proto: segment.ICMP}} {
			if plan.Reaches(t.Context(), plan.Addresses()[i], to, port) {
				t.Errorf("%s of %s answers", port, to)
			}
		}
	}
	packets, err := sniffer.Close()
	must(t, err)
	rules := wireRulesOf(m, agents)
	for _, p := range packets {
		if fault := rules.fault(p); fault != "" && fault != "foreign" { // such as ICMP errors: nobody is at the port
			t.Errorf("%s: %s", p, fault)
		}
	}
}
