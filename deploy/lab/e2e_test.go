package lab

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bulkhead-mesh/bulkhead/segment"
)

// binary is what `make build` made.
const binary = "../../bin/bulkhead"

func labels(function, sensitivity string) segment.Labels {
	return segment.Labels{"function": function, "sensitivity": sensitivity}
}

func newTestMesh(t *testing.T, specs ...Spec) *Mesh {
	t.Helper()
	if _, err := os.Stat(binary); err != nil {
		t.Fatalf("%v (fix: make build)", err)
	}
	m, err := NewMesh(t.Context(), binary, specs...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, n := range m.Hosts {
				if n.Daemon != nil {
					t.Logf("log of %s:\n%s", n.Name, n.Daemon.Log())
				}
			}
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

const matrixPolicy = `
segments:
  - name: planners
    match: {function: plan, sensitivity: internal}
  - name: stores
    match: {function: store, sensitivity: internal}
  - name: vaults
    match: {function: store, sensitivity: restricted}
rules:
  - {name: plan-to-store, from: planners, to: stores, allow: [tcp/5001, udp/5001, icmp]}
  - {name: store-to-vault, from: stores, to: vaults, allow: [tcp/5001], crosses: "the vault redacts"}
`

var fiveHosts = []Spec{
	{}, {Agent: "plan1", Labels: labels("plan", "internal")}, {Agent: "plan2", Labels: labels("plan", "internal")},
	{Agent: "store1", Labels: labels("store", "internal")}, {Agent: "vault1", Labels: labels("store", "restricted")},
}

// agentsOf asks each node for its own agent, by its own word.
func agentsOf(t *testing.T, m *Mesh) map[string]segment.Agent {
	t.Helper()
	agents := map[string]segment.Agent{}
	for _, n := range m.Hosts {
		s, err := n.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range s.Agents {
			agents[a.Name] = segment.Agent{Name: a.Name, Host: n.Name, Labels: a.Labels, Addresses: a.Addresses}
		}
	}
	return agents
}

func serveAgents(t *testing.T, m *Mesh, agents map[string]segment.Agent, ports ...uint16) {
	t.Helper()
	for _, n := range m.Hosts {
		if n.Agent == "" {
			continue
		}
		s, err := n.Serve(agents[n.Agent].Addresses, ports...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
	}
}

// checkMatrix holds packets against the policy's specification for every ordered pair, port and family. All pairs are
// tried at once: a refused ping takes a second.
func checkMatrix(t *testing.T, m *Mesh, policy *segment.Policy, agents map[string]segment.Agent, ports []segment.Port) {
	t.Helper()
	var pairs sync.WaitGroup
	defer pairs.Wait()
	for _, src := range m.Hosts {
		for _, dst := range m.Hosts {
			a, okA := agents[src.Agent]
			b, okB := agents[dst.Agent]
			if okA && okB && src != dst {
				pairs.Go(func() { checkPair(t, src, policy, a, b, ports) })
			}
		}
	}
}

func checkPair(t *testing.T, src *Node, policy *segment.Policy, a, b segment.Agent, ports []segment.Port) {
	for _, port := range ports {
		want := policy.Decide(a, b, port, time.Now()).Allow
		for i := range a.Addresses {
			got := src.Reaches(t.Context(), a.Addresses[i], b.Addresses[i], port)
			if want && !got { // one packet may be lost; a denied one must never arrive
				got = src.Reaches(t.Context(), a.Addresses[i], b.Addresses[i], port)
			}
			if got != want {
				t.Errorf("%s to %s of %s at %s: packets %v, policy %v", a.Name, port, b.Name, b.Addresses[i], got, want)
			}
		}
	}
}

func TestPacketsFollowPolicy(t *testing.T) {
	m := newTestMesh(t, fiveHosts...)
	agents := agentsOf(t, m)
	serveAgents(t, m, agents, 5001, 5002)
	ports := []segment.Port{{Proto: segment.TCP, Number: 5001}, {Proto: segment.TCP, Number: 5002}, {Proto: segment.UDP, Number: 5001}, {Proto: segment.ICMP}}

	t.Run("before any policy nothing passes", func(t *testing.T) {
		checkMatrix(t, m, &segment.Policy{}, agents, ports)
	})
	policy, err := segment.Parse([]byte(matrixPolicy))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Apply(t.Context(), matrixPolicy); err != nil {
		t.Fatal(err)
	}
	t.Run("every pair, port and family", func(t *testing.T) {
		checkMatrix(t, m, policy, agents, ports)
	})
	t.Run("explain agrees", func(t *testing.T) { checkExplain(t, m, policy, agents, ports) })
	t.Run("unapproved hosts are no peers", func(t *testing.T) {
		// plan2 and vault1 share no rule: neither is the other's peer, so no handshake can complete.
		for _, pair := range [][2]string{{"h3", "h5"}, {"h5", "h3"}, {"h1", "h2"}} {
			s, err := m.node(pair[0]).Status(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range s.Peers {
				if p.Name == pair[1] {
					t.Errorf("%s has the unapproved peer %s", pair[0], pair[1])
				}
			}
		}
	})
	t.Run("a killed daemon leaves the rules, a started one adopts them", func(t *testing.T) {
		store := m.node("h4")
		store.Daemon.Kill()
		if store.Reaches(t.Context(), agents["store1"].Addresses[0], agents["vault1"].Addresses[0], ports[0]) {
			t.Error("packets pass without a daemon, in clear?")
		}
		if err := store.StartDaemon(); err != nil {
			t.Fatal(err)
		}
		if err := store.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := Eventually(t.Context(), patient, func() error {
			if !store.Reaches(t.Context(), agents["store1"].Addresses[0], agents["vault1"].Addresses[0], ports[0]) {
				return fmt.Errorf("store1 does not reach vault1 again")
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	})
}

func checkExplain(t *testing.T, m *Mesh, policy *segment.Policy, agents map[string]segment.Agent, ports []segment.Port) {
	for _, a := range agents {
		for _, b := range agents {
			if a.Name == b.Name {
				continue
			}
			for _, port := range ports {
				out, err := m.node("h3").Run(t.Context(), "policy", "explain", "agent/"+a.Name, "agent/"+b.Name, port.String(), "-o", "json")
				want := policy.Decide(a, b, port, time.Now())
				verdict := map[bool]string{true: `"verdict": "allow"`, false: `"verdict": "deny"`}[want.Allow]
				if !strings.Contains(string(out), verdict) || (err == nil) != want.Allow {
					t.Errorf("explain %s %s %s = %s, %v; want %v", a.Name, b.Name, port, out, err, want)
				}
			}
		}
	}
}

func (m *Mesh) node(name string) *Node {
	for _, n := range m.Hosts {
		if n.Name == name {
			return n
		}
	}
	panic("lab: internal error: no node " + name)
}

const openPolicy = `
segments:
  - name: planners
    match: {function: plan}
  - name: stores
    match: {function: store}
rules:
  - {name: plan-to-store, from: planners, to: stores, allow: [tcp/5001, udp/5001], crosses: "a test"}
`

// cutWithin is how soon after the change the last byte of a withdrawn flow may arrive.
const cutWithin = time.Second

func TestWithdrawalCutsRunningFlows(t *testing.T) {
	m := newTestMesh(t, fiveHosts...)
	agents := agentsOf(t, m)
	serveAgents(t, m, agents, 5001)
	for _, change := range []struct {
		name string
		do   func(ctx context.Context) error
	}{
		{"rule withdrawn", func(ctx context.Context) error {
			_, err := m.Hosts[0].Run(ctx, "rule", "delete", "plan-to-store", "--wait")
			return err
		}},
		{"host revoked", func(ctx context.Context) error {
			_, err := m.Hosts[0].Run(ctx, "host", "revoke", "h2", "--reason", "test")
			return err
		}},
	} {
		t.Run(change.name, func(t *testing.T) {
			if err := m.Apply(t.Context(), openPolicy); err != nil {
				t.Fatal(err)
			}
			streams := openStreams(t, m.node("h2"), agents["plan1"].Addresses, agents["store1"].Addresses)
			if err := change.do(t.Context()); err != nil {
				t.Fatal(err)
			}
			changed := time.Now()
			silent(t, streams, changed)
		})
	}
}

// openStreams opens TCP and UDP flows over both families and waits until each carries data.
func openStreams(t *testing.T, from *Node, src, dst []netip.Addr) map[string]*Stream {
	t.Helper()
	streams := map[string]*Stream{}
	for i := range src {
		for _, network := range []string{"tcp", "udp"} {
			name := fmt.Sprintf("%s from %s", network, src[i])
			err := Eventually(t.Context(), patient, func() error {
				s, err := from.OpenStream(src[i], netip.AddrPortFrom(dst[i], 5001), network)
				if err == nil {
					streams[name] = s
				}
				return err
			})
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			t.Cleanup(streams[name].Close)
		}
	}
	for name, s := range streams {
		if err := Eventually(t.Context(), patient, func() error {
			if n, _ := s.Received(); n < 20_000 {
				return fmt.Errorf("%s has carried %d bytes", name, n)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	return streams
}

// silent demands that no stream receives anything later than cutWithin after changed, and listens for two seconds more.
func silent(t *testing.T, streams map[string]*Stream, changed time.Time) {
	t.Helper()
	<-time.After(time.Until(changed.Add(cutWithin + 2*time.Second)))
	for name, s := range streams {
		if n, last := s.Received(); last.After(changed.Add(cutWithin)) {
			t.Errorf("%s: last byte %v after the change (%d bytes)", name, last.Sub(changed), n)
		} else {
			t.Logf("%s: last byte %v after the change", name, last.Sub(changed).Round(time.Millisecond))
		}
	}
}
