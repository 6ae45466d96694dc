package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/bulkhead-mesh/bulkhead/control/authority"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

const (
	damageDisk  = 8 << 20   // bytes
	damageSpace = 400 << 10 // bytes of a policy that needs space; smaller ones may fit into pages that are free
	damageFlips = 20        // bytes changed in one round
)

var damageThree = []Spec{{}, fiveHosts[1], fiveHosts[3]} // control, plan1, store1

// bulky is a policy document of a certain size at least.
func bulky(document string) string {
	line := "# this line takes space\n"
	return document + strings.Repeat(line, damageSpace/len(line)+1)
}

// damageRules are our rules and sets in a host's kernel, without counters.
func damageRules(t *testing.T, n *Node) string {
	t.Helper()
	var ours []string
	for _, program := range []string{"iptables-save", "ip6tables-save", "ipset"} {
		args := map[string][]string{"ipset": {"save", "-sorted"}}[program]
		out, err := n.Host.Run(t.Context(), program, args...)
		must(t, err)
		must(t, out.Err())
		for line := range strings.Lines(out.Stdout) {
			if strings.HasPrefix(line, "-A ") && strings.Contains(line, "BULKHEAD") || strings.HasPrefix(line, "add bulkhead") {
				ours = append(ours, line)
			}
		}
	}
	if len(ours) == 0 {
		t.Fatalf("%s has no rules of ours", n.Name)
	}
	return strings.Join(ours, "")
}

// stopDaemon returns what the kernel is left with.
func stopDaemon(t *testing.T, n *Node) (rules string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patient)
	defer cancel()
	must(t, n.Daemon.Stop(ctx))
	return damageRules(t, n)
}

// startDamaged starts a daemon and waits until it is ready, or has refused to start: then its words are returned.
func startDamaged(t *testing.T, n *Node) (refusal string) {
	t.Helper()
	before := n.Daemon.Log()
	must(t, n.StartDaemon())
	must(t, Eventually(t.Context(), patient, func() error {
		select {
		case <-n.Daemon.Done():
			refusal = strings.TrimPrefix(n.Daemon.Log(), before)
			return nil
		default:
		}
		s, err := n.Status(t.Context())
		if err == nil && s.Phase != "ready" {
			err = fmt.Errorf("%s is %s: %s", n.Name, s.Phase, s.Reason)
		}
		return err
	}))
	return refusal
}

// wantRefusal demands an error that names the file and a fix, and that the kernel's rules stayed.
func wantRefusal(t *testing.T, n *Node, refusal, file, rules string) {
	t.Helper()
	if !strings.Contains(refusal, filepath.Join(n.StateDir(), file)) || !strings.Contains(refusal, "(fix: ") {
		t.Errorf("%s does not say which file is at fault and how to mend it: %s", n.Name, refusal)
	}
	if n.Daemon.Err() == nil {
		t.Error("the daemon refused to start and exited with 0")
	}
	if now := damageRules(t, n); now != rules {
		t.Errorf("the kernel's rules changed from:\n%sto:\n%s", rules, now)
	}
}

func damageHalve(content []byte, _ *rand.Rand) []byte { return content[:len(content)/2] }

func damageFlip(content []byte, random *rand.Rand) []byte {
	content = slices.Clone(content)
	for range damageFlips {
		content[random.IntN(len(content))] ^= byte(1 + random.IntN(255))
	}
	return content
}

// TestDamagedStore damages a stopped host's files. The daemon refuses them and leaves the kernel alone, or recovers.
func TestDamagedStore(t *testing.T) {
	m := newTestMesh(t, damageThree...)
	agents := agentsOf(t, m)
	serveAgents(t, m, agents, 5001)
	must(t, m.Apply(t.Context(), matrixPolicy))
	version := m.version(t)
	rounds := 2
	if os.Getenv("BULKHEAD_SOAK") != "" {
		rounds = 50
	}
	random := rand.New(rand.NewPCG(1, 2))
	for _, c := range []struct {
		host, file, what string
		rounds           int
		damage           func(content []byte, random *rand.Rand) []byte
	}{
		{"h3", "host.db", "cut to half", 1, damageHalve},
		{"h3", "host.db", "bytes flipped", rounds, damageFlip},
		{"h1", "control.db", "cut to half", 1, damageHalve},
		{"h1", "control.db", "bytes flipped", rounds, damageFlip},
		{"h1", "audit.log", "cut to half", 1, damageHalve},
		{"h1", "audit.log", "bytes flipped", 1, damageFlip},
	} {
		t.Run(c.file+" of "+c.host+" "+c.what, func(t *testing.T) {
			n := m.node(c.host)
			path := filepath.Join(n.StateDir(), c.file)
			for range c.rounds {
				rules := stopDaemon(t, n)
				whole, err := os.ReadFile(path)
				must(t, err)
				must(t, os.WriteFile(path, c.damage(whole, random), 0o600))
				if refusal := startDamaged(t, n); refusal != "" {
					wantRefusal(t, n, refusal, c.file, rules)
					must(t, os.WriteFile(path, whole, 0o600))
					must(t, n.StartDaemon())
					must(t, n.Ready(t.Context()))
				}
				enforces(t, []*Node{n}, version)
			}
			reachable(t, m.node("h2"), agents["plan1"], agents["store1"], segment.Port{Proto: segment.TCP, Number: 5001})
		})
	}
	checkVersions(t, m, version)
}

// TestDisk gives each host a small disk and takes away what a disk is for.
func TestDisk(t *testing.T) {
	m := newTestMesh(t, damageThree...)
	agents := agentsOf(t, m)
	serveAgents(t, m, agents, 5001, 5002)
	for _, n := range []*Node{m.node("h1"), m.node("h3")} {
		stopDaemon(t, n)
		disk, err := n.MountDisk(t.Context(), n.StateDir(), damageDisk)
		must(t, err)
		n.Disk = disk
		must(t, n.StartDaemon())
		must(t, n.Ready(t.Context()))
	}
	must(t, m.Apply(t.Context(), partitionBefore))
	t.Run("read-only", func(t *testing.T) {
		for _, n := range []*Node{m.node("h1"), m.node("h3")} {
			diskReadOnly(t, n)
		}
	})
	t.Run("full on a host", func(t *testing.T) { diskFullOnHost(t, m, agents) })
	t.Run("full on control", func(t *testing.T) { diskFullOnControl(t, m) })
}

func diskReadOnly(t *testing.T, n *Node) {
	rules := stopDaemon(t, n)
	must(t, n.Disk.Protect(t.Context()))
	refusal := startDamaged(t, n)
	if refusal == "" {
		t.Fatalf("%s runs on a disk that it cannot write to", n.Name)
	}
	wantRefusal(t, n, refusal, "host.db", rules)
	must(t, n.Disk.Unprotect(t.Context()))
	must(t, n.StartDaemon())
	must(t, n.Ready(t.Context()))
}

// diskFullOnHost applies a policy that a host cannot store: it keeps to the old one, says so, and catches up.
func diskFullOnHost(t *testing.T, m *Mesh, agents map[string]segment.Agent) {
	planner, full := m.node("h2"), m.node("h3")
	port := segment.Port{Proto: segment.TCP, Number: 5002}
	old, rules := m.version(t), damageRules(t, full)
	must(t, full.Disk.Fill())
	must(t, m.Submit(t.Context(), bulky(partitionAfter)))
	enforces(t, []*Node{m.node("h1"), planner}, old+1)
	must(t, Eventually(t.Context(), patient, func() error {
		s, err := full.Status(t.Context())
		if err == nil && (s.Phase != "degraded" || !strings.Contains(s.Reason, "no space")) {
			err = fmt.Errorf("a host with a full disk is %s: %s", s.Phase, s.Reason)
		}
		return err
	}))
	enforces(t, []*Node{full}, old)
	if now := damageRules(t, full); now != rules {
		t.Errorf("the kernel's rules changed from:\n%sto:\n%s", rules, now)
	}
	if planner.Reaches(t.Context(), agents["plan1"].Addresses[0], agents["store1"].Addresses[0], port) {
		t.Error("a policy that is not stored has effect")
	}
	must(t, full.Disk.Free())
	enforces(t, []*Node{full}, old+1)
	must(t, full.Ready(t.Context()))
	reachable(t, planner, agents["plan1"], agents["store1"], port)
	must(t, full.Daemon.Kill())
	must(t, full.StartDaemon())
	must(t, full.Ready(t.Context()))
	enforces(t, []*Node{full}, old+1)
}

// diskFullOnControl applies a policy that control cannot store: it is refused in clear words and takes no version.
func diskFullOnControl(t *testing.T, m *Mesh) {
	control := m.Hosts[0]
	old := m.version(t)
	must(t, control.Disk.Fill())
	for range 2 {
		if err := m.Submit(t.Context(), bulky(partitionBefore)); err == nil || !strings.Contains(err.Error(), "no space left") || !strings.Contains(err.Error(), "(fix: ") {
			t.Errorf("policy applied on a full disk: %v, want that there is no space left, and a fix", err)
		}
		checkVersions(t, m, old)
	}
	must(t, control.Disk.Free())
	must(t, m.Apply(t.Context(), bulky(partitionBefore)))
	enforces(t, m.Hosts, old+1)
	must(t, control.Daemon.Kill())
	must(t, control.StartDaemon())
	must(t, control.Ready(t.Context()))
	checkVersions(t, m, old+1)
}

// checkVersions demands that control has the versions 1 to newest, each once.
func checkVersions(t *testing.T, m *Mesh, newest uint64) {
	t.Helper()
	out, err := m.Hosts[0].Run(t.Context(), "policy", "versions", "-o", "json")
	must(t, err)
	var versions []authority.VersionInfo
	must(t, json.Unmarshal(out, &versions))
	for i, v := range versions {
		if v.Version != uint64(i+1) {
			t.Errorf("version %d stands in place %d", v.Version, i+1)
		}
	}
	if len(versions) != int(newest) {
		t.Errorf("control has %d versions, want %d", len(versions), newest)
	}
}
