package platform

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-mesh/bulkhead/overlay"
)

const crashEnv = "BULKHEAD_TEST_APPLY_FOR_EVER"

// crashConfigs are the two that the process that gets killed applies by turns.
func crashConfigs() [2]overlay.FirewallConfig {
	both := append(grant(overlay.In, protoTCP, 443, 443), grant(overlay.Out, protoTCP, 30000, 40000)...)
	a := append(grant(overlay.In, protoTCP, 1000, 1100), grant(overlay.In, protoUDP, 5000, 6000)...)
	b := append(grant(overlay.In, protoTCP, 2000, 2005), grant(overlay.Out, protoUDP, 7000, 8000)...)
	return [2]overlay.FirewallConfig{config(append(a, both...)...), config(append(b, both...)...)}
}

// TestKillAtAnyMoment is also the process that is killed, when told so.
func TestKillAtAnyMoment(t *testing.T) {
	if os.Getenv(crashEnv) != "" {
		applyForEver(t)
	}
	w := newWorld(t)
	const seed = 11
	random := rand.New(rand.NewPCG(seed, 0))
	configs := crashConfigs()
	prefixes := []netip.Prefix{prefix4, prefix6}
	w.fence(t)
	w.here.must(t, func() error { return w.firewall.Apply(context.Background(), configs[0]) })
	for round := range 50 {
		w.killOne(t, time.Duration(random.IntN(60))*time.Millisecond)
		w.here.must(t, func() error {
			return w.settled(func(found sets) error { return withinBoth(found, configs, prefixes) })
		})
		w.firewall = w.newFirewall(t)
		w.fence(t) // which reads rules back
		w.here.must(t, func() error {
			if err := w.firewall.checkSets(); err != nil {
				return fmt.Errorf("seed %d round %d: %w", seed, round, err)
			}
			return nil
		})
	}
	w.here.must(t, func() error { return w.firewall.Apply(context.Background(), configs[1]) })
	if err := w.check(t); err != nil {
		t.Fatal(err)
	}
}

func applyForEver(t *testing.T) {
	f, err := NewFirewall(FirewallOptions{
		Interface: "bulkhead0", Prefixes: []netip.Prefix{prefix4, prefix6}, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Fence(t.Context()); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(os.Stderr, "fenced")
	for i := 0; ; i++ {
		if err := f.Apply(t.Context(), crashConfigs()[i%2]); err != nil {
			t.Fatal(err)
		}
	}
}

// killOne starts a process that applies for ever, and kills it after a while.
func (w *world) killOne(t *testing.T, after time.Duration) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestKillAtAnyMoment$")
	cmd.Env = append(os.Environ(), crashEnv+"=1")
	ready, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	w.here.must(t, cmd.Start)
	buf := make([]byte, 1024)
	if n, err := ready.Read(buf); err != nil || !strings.HasPrefix(string(buf[:n]), "fenced") {
		t.Errorf("%q, %v", buf[:n], err)
	}
	timer := time.NewTimer(after)
	defer timer.Stop()
	<-timer.C
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	cmd.Wait() // says that it was killed
}

// settled checks the sets until no child of the killed process is left, and once more.
func (w *world) settled(check func(sets) error) error {
	for last := false; ; {
		found, err := readSets(time.Now())
		if err != nil {
			return err
		}
		if err := check(found); err != nil || last {
			return err
		}
		if last, err = noProcessHere(); err != nil {
			return err
		}
	}
}

// noProcessHere reports whether no process but this is in this thread's network namespace.
func noProcessHere() (bool, error) {
	here, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		return false, err
	}
	all, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		return false, err
	}
	self := fmt.Sprintf("/proc/%d/ns/net", os.Getpid())
	return !slices.ContainsFunc(all, func(path string) bool {
		if path == self {
			return false
		}
		ns, err := os.Readlink(path)
		return err == nil && ns == here
	}), nil
}

// withinBoth: what passes by the sets is allowed by one of the configurations, and what both allow passes.
func withinBoth(found sets, configs [2]overlay.FirewallConfig, prefixes []netip.Prefix) error {
	now := time.Now()
	a, _ := desiredSets(configs[0], prefixes, now)
	b, _ := desiredSets(configs[1], prefixes, now)
	for name, s := range found {
		if strings.HasPrefix(name, tmpPrefix) {
			continue
		}
		for e := range s.entries {
			if !a.has(name, e) && !b.has(name, e) {
				return fmt.Errorf("ipset %s has %+v, which no configuration allows", name, e)
			}
		}
	}
	for name, s := range a {
		for e := range s.entries {
			if b.has(name, e) && !found.has(name, e) {
				return fmt.Errorf("ipset %s lacks %+v, which both configurations allow", name, e)
			}
		}
	}
	return nil
}

func (s sets) has(name string, e entry) bool {
	set := s[name]
	if set == nil {
		return false
	}
	_, ok := set.entries[e]
	return ok
}
