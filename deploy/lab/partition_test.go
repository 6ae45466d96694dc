package lab

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/bulkhead-mesh/bulkhead/segment"
)

const (
	partitionBefore = `
segments:
  - name: planners
    match: {function: plan}
  - name: stores
    match: {function: store}
rules:
  - {name: old, from: planners, to: stores, allow: [tcp/5001, udp/5001], crosses: "a test"}
`
	partitionAfter = `
segments:
  - name: planners
    match: {function: plan}
  - name: stores
    match: {function: store}
rules:
  - {name: new, from: planners, to: stores, allow: [tcp/5002], crosses: "a test"}
`
)

// partitionCut is how long the cut lasts, at least.
func partitionCut() time.Duration {
	if os.Getenv("BULKHEAD_SOAK") != "" {
		return time.Minute
	}
	return 3 * time.Second
}

// TestPartition cuts a mesh in two halves. The one with control changes the policy and revokes a host of the other,
// which keeps to what it knows, even when a daemon there starts anew; healed, all follow the newest version.
func TestPartition(t *testing.T) {
	m := newTestMesh(t, Spec{}, fiveHosts[1], fiveHosts[2], fiveHosts[3], Spec{Agent: "plan3", Labels: labels("plan", "internal")})
	agents := agentsOf(t, m)
	serveAgents(t, m, agents, 5001, 5002)
	before, err := segment.Parse([]byte(partitionBefore))
	must(t, err)
	after, err := segment.Parse([]byte(partitionAfter))
	must(t, err)
	ports := []segment.Port{{Proto: segment.TCP, Number: 5001}, {Proto: segment.UDP, Number: 5001}, {Proto: segment.TCP, Number: 5002}}
	near, far := m.Hosts[:2], m.Hosts[2:]
	store, revoked := m.node("h4"), m.node("h3")
	must(t, m.Apply(t.Context(), partitionBefore))
	old := m.version(t)

	for _, n := range far {
		must(t, n.Links()[0].Part())
	}
	ends := time.Now().Add(partitionCut())
	must(t, m.Submit(t.Context(), partitionAfter))
	_, err = m.Hosts[0].Run(t.Context(), "host", "revoke", revoked.Name, "--reason", "test")
	must(t, err)
	newest := m.version(t)
	if newest != old+2 {
		t.Fatalf("two changes of version %d made version %d", old, newest)
	}
	enforces(t, near, newest)
	enforces(t, far, old)
	must(t, store.Daemon.Kill())
	must(t, store.StartDaemon())
	must(t, store.Ready(t.Context()))
	reachable(t, m.node("h5"), agents["plan3"], agents["store1"], ports[0])
	for again := true; again; again = time.Now().Before(ends) {
		checkMatrix(t, m, before, agentsAmong(agents, far), ports)
		enforces(t, far, old)
	}

	for _, n := range far {
		must(t, n.Links()[0].Heal())
	}
	rest := slices.DeleteFunc(slices.Clone(m.Hosts), func(n *Node) bool { return n == revoked })
	enforces(t, rest, newest)
	for _, n := range []*Node{m.node("h2"), m.node("h5")} {
		reachable(t, n, agents[n.Agent], agents["store1"], ports[2])
	}
	checkMatrix(t, m, after, agentsAmong(agents, rest), ports)
	checkMatrix(t, m, &segment.Policy{}, agentsAmong(agents, []*Node{revoked, store}), ports)
}

func agentsAmong(agents map[string]segment.Agent, hosts []*Node) map[string]segment.Agent {
	some := map[string]segment.Agent{}
	for _, n := range hosts {
		if a, ok := agents[n.Agent]; ok {
			some[a.Name] = a
		}
	}
	return some
}

// version is the newest that control has.
func (m *Mesh) version(t *testing.T) uint64 {
	t.Helper()
	s, err := m.Hosts[0].Status(t.Context())
	must(t, err)
	return s.Control.Version
}

// enforces waits until all of these hosts enforce a policy version.
func enforces(t *testing.T, hosts []*Node, version uint64) {
	t.Helper()
	for _, n := range hosts {
		if err := Eventually(t.Context(), 2*patient, func() error {
			s, err := n.Status(t.Context())
			if err == nil && s.PolicyVersion != version {
				err = fmt.Errorf("%s enforces policy version %d, want %d", n.Name, s.PolicyVersion, version)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
}

// reachable waits until an agent reaches another in both families: a handshake with a host that was away is tried
// again after five seconds only.
func reachable(t *testing.T, from *Node, src, dst segment.Agent, port segment.Port) {
	t.Helper()
	for i := range src.Addresses {
		must(t, Eventually(t.Context(), patient, func() error {
			if !from.Reaches(t.Context(), src.Addresses[i], dst.Addresses[i], port) {
				return fmt.Errorf("%s does not reach %s of %s at %s", src.Name, port, dst.Name, dst.Addresses[i])
			}
			return nil
		}))
	}
}
