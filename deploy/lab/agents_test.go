package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/bulkhead-mesh/bulkhead/control/api"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

const oneHostPolicy = `
segments:
  - name: planners
    match: {function: plan, sensitivity: internal}
  - name: retrievers
    match: {function: retrieval, sensitivity: internal}
  - name: stores
    match: {function: store, sensitivity: confidential}
  - name: clerks
    match: {function: clerk, sensitivity: public}
rules:
  - {name: plan-to-retrieve, from: planners, to: retrievers, allow: [tcp/5001, udp/5001]}
  - {name: retrieve-to-store, from: retrievers, to: stores, allow: [tcp/5001, udp/5002, icmp], crosses: "the store redacts"}
  - {name: clerk-to-plan, from: clerks, to: planners, allow: [tcp/5002], crosses: "plans are public in the end"}
  - {name: store-to-clerk, from: stores, to: clerks, allow: [udp/5001], crosses: "receipts"}
`

// crew is a host with several agents, each an actor, and a program that is none of them.
type crew struct {
	node     *Node
	actors   map[string]*Actor // by agent
	agents   map[string]segment.Agent
	stranger *Actor
}

// agentUser is a user of this machine without any meaning.
const agentUser = 64242

// newCrew declares and starts agents on the second host of a mesh: a unit's cgroup, one started by `run`, and a user's.
func newCrew(t *testing.T, m *Mesh) *crew {
	t.Helper()
	c := &crew{node: m.Hosts[1], actors: map[string]*Actor{}, agents: map[string]segment.Agent{}}
	program := actorProgram(t)
	for _, a := range []struct {
		name, match string
		labels      segment.Labels
	}{
		{"retriever1", "unit=retriever.service", labels("retrieval", "internal")},
		{"planner1", "run", labels("plan", "internal")},
		{"clerk1", "user=" + strconv.Itoa(agentUser), labels("clerk", "public")},
	} {
		c.add(t, m, a.name, a.match, a.labels)
	}
	for _, name := range []string{"retriever1", "planner1", "clerk1"} {
		c.await(t, name)
	}
	if err := c.node.Cgroup("system.slice/retriever.service"); err != nil {
		t.Fatal(err)
	}
	if err := c.node.Cgroup("elsewhere"); err != nil {
		t.Fatal(err)
	}
	c.start(t, "retriever1", "system.slice/retriever.service", 0, program)
	c.start(t, "clerk1", "elsewhere", agentUser, program)
	c.start(t, "planner1", "elsewhere", 0, m.Binary, "--socket", c.node.Socket(), "run", "--agent", "planner1", "--", program)
	c.stranger = c.act(t, "elsewhere", 0, program)
	return c
}

// actorProgram builds the actor where every user may run it.
func actorProgram(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "bulkhead-actor-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	program, err := BuildActor(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	return program
}

// declare adds an agent and waits for its address.
func (c *crew) declare(t *testing.T, m *Mesh, name, match string, labels segment.Labels) {
	t.Helper()
	c.add(t, m, name, match, labels)
	c.await(t, name)
}

// add adds an agent and, because its labels are outside the host's grant, has it approved.
func (c *crew) add(t *testing.T, m *Mesh, name, match string, labels segment.Labels) {
	t.Helper()
	args := []string{"agent", "add", name, "--match", match}
	for k, v := range labels {
		args = append(args, "--label", k+"="+v)
	}
	if _, err := c.node.Run(t.Context(), args...); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Hosts[0].Run(t.Context(), "agent", "approve", name); err != nil {
		t.Fatal(err)
	}
}

// await waits until an agent has addresses, and notes them.
func (c *crew) await(t *testing.T, name string) {
	t.Helper()
	err := Eventually(t.Context(), patient, func() error {
		here, err := c.list(t.Context())
		if err != nil {
			return err
		}
		for _, a := range here {
			if a.Name == name && len(a.Addresses) > 0 {
				c.agents[name] = segment.Agent{Name: name, Host: c.node.Name, Labels: a.Labels, Addresses: a.Addresses}
				return nil
			}
		}
		return fmt.Errorf("%s has no address: %v", name, here)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func (c *crew) list(ctx context.Context) (agents []api.LocalAgent, err error) {
	out, err := c.node.Run(ctx, "agent", "list", "--here", "-o", "json")
	if err != nil {
		return nil, err
	}
	return agents, json.Unmarshal(out, &agents)
}

func (c *crew) start(t *testing.T, agent, group string, uid int, program string, args ...string) {
	t.Helper()
	c.actors[agent] = c.act(t, group, uid, program, args...)
}

func (c *crew) act(t *testing.T, group string, uid int, program string, args ...string) *Actor {
	t.Helper()
	a, err := c.node.Act(group, uid, program, args...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Errorf("%s: %v", program, err)
		}
	})
	return a
}

// serve has every agent of the crew serve on ports of its own addresses.
func (c *crew) serve(t *testing.T, ports ...uint16) {
	t.Helper()
	for name, actor := range c.actors {
		for _, addr := range c.agents[name].Addresses {
			for _, port := range ports {
				for _, network := range []string{"tcp", "udp"} {
					if _, err := actor.Do(Order{Do: "serve", Network: network, Local: netip.AddrPortFrom(addr, port).String()}); err != nil {
						t.Fatalf("%s serves %s/%d: %v", name, network, port, err)
					}
				}
			}
		}
	}
}

// reach asks a peer's echo from an agent, and says whether it answered, and which address the agent had.
func (c *crew) reach(src string, from, dst netip.Addr, port segment.Port) (bool, string, error) {
	actor := c.actors[src]
	if port.Proto == segment.ICMP {
		r, err := actor.Tell(Order{Do: "exec", Command: []string{"ping", "-n", "-c1", "-W1", "-I", from.String(), dst.String()}})
		return r.Error == "", "", err
	}
	r, err := actor.Tell(Order{Do: "ask", Network: port.Proto.String(), Remote: netip.AddrPortFrom(dst, port.Number).String()})
	return r.Error == "", r.Local, err
}

// Several agents share a host and are kept apart as if each had a machine of its own: every pair, port and family, on
// the host and between hosts, is as explained.
func TestAgentsOfOneHost(t *testing.T) {
	dir := podmanDir(t)
	m := newTestMesh(t, Spec{Agent: "store1", Labels: labels("store", "confidential")}, podmanSpec(dir), Spec{Agent: "planner2", Labels: labels("plan", "internal")})
	c := newCrew(t, m)
	c.contain(t, m, dir, "boxed1", labels("store", "confidential"))
	if err := m.Apply(t.Context(), oneHostPolicy); err != nil {
		t.Fatal(err)
	}
	policy, err := segment.Parse([]byte(oneHostPolicy))
	if err != nil {
		t.Fatal(err)
	}
	single := agentsOf(t, m)
	all := map[string]segment.Agent{}
	for _, some := range []map[string]segment.Agent{single, c.agents} {
		for name, a := range some {
			all[name] = a
		}
	}
	c.serve(t, 5001, 5002)
	serveAgents(t, m, single, 5001, 5002)
	ports := []segment.Port{{Proto: segment.TCP, Number: 5001}, {Proto: segment.TCP, Number: 5002}, {Proto: segment.UDP, Number: 5001}, {Proto: segment.UDP, Number: 5002}, {Proto: segment.ICMP}}

	var passed int
	var tries errgroup.Group
	for src := range c.actors {
		tries.Go(func() error {
			for dst, b := range all {
				if dst == src {
					continue
				}
				for _, port := range ports {
					if src == "boxed1" && port.Proto == segment.ICMP {
						continue // its image has no ping
					}
					want := policy.Decide(all[src], b, port, time.Now()).Allow
					for i, addr := range b.Addresses {
						err := c.try(t.Context(), all[src], i, dst, addr, port, want)
						if err != nil {
							t.Error(err)
						}
					}
				}
			}
			return nil
		})
	}
	if err := tries.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, src := range []*Node{m.Hosts[0], m.Hosts[2]} {
		for _, b := range c.agents {
			for _, port := range ports {
				want := policy.Decide(all[src.Agent], b, port, time.Now()).Allow
				for i := range b.Addresses {
					if err := tryPackets(t.Context(), src, all[src.Agent], b, i, port, want); err != nil {
						t.Error(err)
					}
					if want {
						passed++
					}
				}
			}
		}
	}
	if passed == 0 {
		t.Error("nothing was allowed")
	}
	checkExplain(t, m, policy, all, ports)
	t.Run("a stranger reaches nobody", func(t *testing.T) { c.strangerReachesNobody(t, all) })
}

// try tries once what must be denied, and for a while what must pass: the source must be the agent's own address.
func (c *crew) try(ctx context.Context, src segment.Agent, family int, dst string, addr netip.Addr, port segment.Port, want bool) error {
	check := func() error {
		got, local, err := c.reach(src.Name, src.Addresses[family], addr, port)
		switch {
		case err != nil:
			return err
		case got != want:
			return fmt.Errorf("%s to %s at %s, %s: packets %v, policy %v", src.Name, dst, addr, port, got, want)
		case got && local != "" && local != src.Addresses[family].String() && hostOf(local) != src.Addresses[family].String():
			return fmt.Errorf("%s to %s, %s: from %s, not its own address %s", src.Name, dst, port, local, src.Addresses[family])
		}
		return nil
	}
	if !want {
		return check()
	}
	return Eventually(ctx, patient, check)
}

func hostOf(hostPort string) string {
	host, _, err := net.SplitHostPort(hostPort)
	if err != nil {
		return hostPort
	}
	return host
}

func (c *crew) strangerReachesNobody(t *testing.T, all map[string]segment.Agent) {
	for name, a := range all {
		for _, addr := range a.Addresses {
			for _, network := range []string{"tcp", "udp", "udp-loose"} {
				to := netip.AddrPortFrom(addr, 5001).String()
				if r, err := c.stranger.Tell(Order{Do: "ask", Network: network, Remote: to}); err != nil || r.Error == "" {
					t.Errorf("%s to %s at %s: %+v, %v", network, name, to, r, err)
				}
			}
		}
	}
	for name, a := range c.agents {
		for _, addr := range a.Addresses {
			if r, err := c.stranger.Tell(Order{Do: "serve", Network: "tcp", Local: netip.AddrPortFrom(addr, 7000).String()}); err != nil || r.Error == "" {
				t.Errorf("a stranger binds the address of %s: %+v, %v", name, r, err)
			}
		}
	}
}
