package lab

import (
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/bulkhead-mesh/bulkhead/segment"
)

// Where the kernel cannot bind agents, other programs still cannot send from an agent's address, and what is not enforced
// is said; with `enforcement: required` the daemon does not start.
func TestWithoutBindingTheRestIsSaid(t *testing.T) {
	m := newTestMesh(t, Spec{Agent: "store1", Labels: labels("store", "confidential")}, Spec{Config: "cgroupRoot: /nowhere\n"})
	n := m.Hosts[1]
	n.env = []string{"BULKHEAD_CGROUP_ROOT="} // the file's counts
	restart := func() {
		t.Helper()
		if err := n.Daemon.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := n.StartDaemon(); err != nil {
			t.Fatal(err)
		}
	}
	restart()
	if err := n.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	c := &crew{node: n, actors: map[string]*Actor{}, agents: map[string]segment.Agent{}}
	c.declare(t, m, "retriever1", "user="+strconv.Itoa(agentUser), labels("retrieval", "internal"))
	if err := m.Apply(t.Context(), oneHostPolicy); err != nil {
		t.Fatal(err)
	}
	store := agentsOf(t, m)["store1"]
	serveAgents(t, m, map[string]segment.Agent{"store1": store}, 5001)
	program := actorProgram(t)
	agent, stranger := c.act(t, "", agentUser, program), c.act(t, "", 0, program)
	ask := Order{
		Do: "ask", Network: "tcp", Remote: netip.AddrPortFrom(store.Addresses[0], 5001).String(),
		Local: netip.AddrPortFrom(c.agents["retriever1"].Addresses[0], 0).String(),
	}
	if err := Eventually(t.Context(), patient, func() error { _, err := agent.Do(ask); return err }); err != nil {
		t.Errorf("the agent's user: %v", err)
	}
	if r, err := stranger.Tell(ask); err != nil || r.Error == "" {
		t.Errorf("another program sends from the agent's address: %+v, %v", r, err)
	}
	status, err := n.Status(t.Context())
	if err != nil || len(status.NotEnforced) != 1 || !strings.Contains(status.NotEnforced[0], "agent retriever1") {
		t.Errorf("status says %q, %v", status.NotEnforced, err)
	}
	here, err := c.list(t.Context())
	if err != nil || len(here) != 1 || len(here[0].NotEnforced) != 1 {
		t.Errorf("the list says %+v, %v", here, err)
	}
	if _, err := n.Run(t.Context(), "run", "--agent", "retriever1", "--", "true"); err == nil || !strings.Contains(err.Error(), "this host has no cgroup v2 (fix:") {
		t.Errorf("run: %v", err)
	}
	n.Config += "enforcement: required\n"
	restart()
	<-n.Daemon.Done()
	if log := n.Daemon.Log(); n.Daemon.Err() == nil || !strings.Contains(log, "enforcement is required") {
		t.Errorf("a daemon that cannot enforce all starts: %v: %s", n.Daemon.Err(), log)
	}
}
