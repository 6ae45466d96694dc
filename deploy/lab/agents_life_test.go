package lab

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pins are what a host's daemon has in the kernel's file system for programs.
func pins(t *testing.T, h *Host) []string {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(namespaceDir, h.Namespace()), &st); err != nil {
		t.Fatal(err)
	}
	found, err := filepath.Glob(fmt.Sprintf("/sys/fs/bpf/bulkhead/*-%d/*", st.Ino))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// A killed daemon's bindings stand: nobody takes what is an agent's. A new daemon takes them over, flows go on with it, and
// down leaves nothing.
func TestBindingsOutliveTheDaemon(t *testing.T) {
	m := newTestMesh(t, Spec{Agent: "store1", Labels: labels("store", "confidential")}, Spec{})
	c := newCrew(t, m)
	if err := m.Apply(t.Context(), oneHostPolicy); err != nil {
		t.Fatal(err)
	}
	c.serve(t, 5001, 5002)
	serveAgents(t, m, agentsOf(t, m), 5001)
	store := agentsOf(t, m)["store1"]
	retriever, planner := c.actors["retriever1"], c.actors["planner1"]
	far := Order{Do: "hold", Network: "tcp", Remote: netip.AddrPortFrom(store.Addresses[0], 5001).String()}
	near := Order{Do: "hold", Network: "tcp", Remote: netip.AddrPortFrom(c.agents["retriever1"].Addresses[0], 5001).String()}
	held := func() error { _, err := retriever.Do(far); return err }
	if err := Eventually(t.Context(), patient, held); err != nil {
		t.Fatal(err)
	}
	if _, err := planner.Do(near); err != nil {
		t.Fatal(err)
	}
	if err := c.node.Daemon.Kill(); err != nil {
		t.Fatal(err)
	}
	bound := func(when string) {
		t.Helper()
		c.strangerReachesNobody(t, c.agents)
		if r, err := retriever.Tell(Order{Do: "serve", Network: "tcp", Local: netip.AddrPortFrom(c.agents["planner1"].Addresses[0], 7100).String()}); err != nil || !strings.Contains(r.Error, "not permitted") {
			t.Errorf("%s an agent takes another's address: %+v, %v", when, r, err)
		}
	}
	bound("without a daemon")
	if err := c.node.StartDaemon(); err != nil {
		t.Fatal(err)
	}
	if err := c.node.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	bound("with a new daemon")
	for name, a := range map[string]*Actor{"on the host": planner, "to another host": retriever} {
		if err := Eventually(t.Context(), patient, func() error { _, err := a.Do(Order{Do: "say"}); return err }); err != nil {
			t.Errorf("the flow %s has ended: %v", name, err)
		}
	}
	if _, err := planner.Do(Order{Do: "ask", Network: "tcp", Remote: near.Remote}); err != nil {
		t.Errorf("an agent cannot open what it may: %v", err)
	}
	if err := c.node.Daemon.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.node.Run(t.Context(), "down"); err != nil {
		t.Fatal(err)
	}
	if left := pins(t, c.node.Host); len(left) > 0 {
		t.Errorf("down leaves %v", left)
	}
	for _, command := range [][]string{{"ip", "rule", "show"}, {"ip", "-6", "rule", "show"}} {
		out, err := c.node.Host.Run(t.Context(), command[0], command[1:]...)
		if err != nil || strings.Contains(out.Stdout, "fwmark") {
			t.Errorf("down leaves rules: %s, %v", out.Stdout, err)
		}
	}
}

// An agent's program may end and start, and its cgroup may go and come.
func TestAgentsComeAndGo(t *testing.T) {
	m := newTestMesh(t, Spec{Agent: "store1", Labels: labels("store", "confidential")}, Spec{})
	program := actorProgram(t)
	c := &crew{node: m.Hosts[1], actors: map[string]*Actor{}, agents: agentsOf(t, m)}
	if err := m.Apply(t.Context(), oneHostPolicy); err != nil {
		t.Fatal(err)
	}
	serveAgents(t, m, c.agents, 5001)
	c.declare(t, m, "retriever1", "unit=retriever@*.service", labels("retrieval", "internal"))
	ask := Order{Do: "ask", Network: "tcp", Remote: netip.AddrPortFrom(c.agents["store1"].Addresses[0], 5001).String()}
	for round := range 3 {
		group := fmt.Sprintf("system.slice/retriever@%d.service", round)
		if err := c.node.Cgroup(group); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			a, err := c.node.Act(group, 0, program)
			if err != nil {
				t.Fatal(err)
			}
			if err := Eventually(t.Context(), patient, func() error { _, err := a.Do(ask); return err }); err != nil {
				t.Error(err)
			}
			if err := a.Kill(); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.node.RemoveCgroup(group); err != nil {
			t.Fatal(err)
		}
	}
	c.node.Cgroup("user.slice/user-1000.slice/user@1000.service/app.slice/retriever@9.service")
	a, err := c.node.Act("user.slice/user-1000.slice/user@1000.service/app.slice/retriever@9.service", 0, program)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if r, err := a.Tell(ask); err != nil || r.Error == "" {
		t.Errorf("a unit of a user's own manager is the agent: %+v, %v", r, err)
	}
}

// kernelObjects counts what a host with agents could leak: programs and maps that its daemon holds or has pinned, entries of
// its sets, its addresses, rules, and the cgroups below it.
func kernelObjects(t *testing.T, h *Node) map[string]int {
	t.Helper()
	count := func(script string) int {
		out, err := h.Host.Run(t.Context(), "sh", "-c", script)
		if err != nil {
			t.Fatal(err)
		}
		n, err := strconv.Atoi(strings.TrimSpace(out.Stdout))
		if err != nil {
			t.Fatalf("%s: %s %s", script, out.Stdout, out.Stderr)
		}
		return n
	}
	return map[string]int{
		"programs": count(fmt.Sprintf("ls -l /proc/%d/fd | grep -c bpf-prog", h.Daemon.PID())),
		"maps":     count(fmt.Sprintf("ls -l /proc/%d/fd | grep -c bpf-map", h.Daemon.PID())),
		"entries":  count("ipset save | grep -c ^add"), "addresses": count("ip -o addr show dev bulkhead0 | wc -l"),
		"rules": count("(ip rule; ip -6 rule) | grep -c fwmark"), "cgroups": count("find " + h.CgroupRoot() + " -type d | wc -l"),
		"pins": len(pins(t, h.Host)),
	}
}

// Fifty agents come and go, and meanwhile hundreds of programs a second: nothing stays.
func TestManyAgentsLeaveNothing(t *testing.T) {
	m := newTestMesh(t, Spec{Agent: "store1", Labels: labels("store", "confidential")}, Spec{})
	n := m.Hosts[1]
	before := kernelObjects(t, n)
	const agents, programs = 50, 1500
	for i := range agents {
		if err := n.Cgroup(fmt.Sprintf("many/%d", i)); err != nil {
			t.Fatal(err)
		}
		if _, err := n.Run(t.Context(), "agent", "add", fmt.Sprintf("agent%d", i), "--match", fmt.Sprintf("cgroup=/many/%d", i)); err != nil {
			t.Fatal(err)
		}
	}
	during := kernelObjects(t, n)
	if during["addresses"] < before["addresses"]+2*agents || during["programs"] != before["programs"] {
		t.Errorf("with %d agents there are %v, before %v", agents, during, before)
	}
	resident := func() int {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", n.Daemon.PID()))
		if err != nil {
			t.Fatal(err)
		}
		pages, err := strconv.Atoi(strings.Fields(string(data))[1])
		if err != nil {
			t.Fatal(err)
		}
		return pages * os.Getpagesize() >> 20
	}
	started, memory := time.Now(), resident()
	shortLived(t, n.Host, agents, programs)
	t.Logf("%d programs in %v; resident %d MB, then %d MB", programs, time.Since(started).Round(time.Millisecond), memory, resident())
	for i := range agents {
		if _, err := n.Run(t.Context(), "agent", "remove", fmt.Sprintf("agent%d", i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.RemoveCgroup("many"); err != nil {
		t.Fatal(err)
	}
	err := Eventually(t.Context(), patient, func() error {
		if after := kernelObjects(t, n); fmt.Sprint(after) != fmt.Sprint(before) {
			return fmt.Errorf("before %v, after %v", before, after)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// shortLived starts programs in all agents' cgroups that open a socket and end.
func shortLived(t *testing.T, h *Host, agents, programs int) {
	t.Helper()
	var running sync.WaitGroup
	slots := make(chan struct{}, 8)
	for i := range programs {
		slots <- struct{}{}
		running.Go(func() {
			defer func() { <-slots }()
			cmd := h.command(context.Background(), "bash", []string{"-c", ": >/dev/udp/10.201.0.1/9"})
			if err := h.startIn(h.group.below(fmt.Sprintf("many/%d", i%agents)), cmd); err != nil {
				t.Error(err)
				return
			}
			_ = cmd.Wait() // it is denied: there is no rule
		})
	}
	running.Wait()
}
