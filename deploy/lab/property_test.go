package lab

import (
	"context"
	"flag"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"pgregory.net/rapid"

	"github.com/bulkhead-mesh/bulkhead/control/api"
	"github.com/bulkhead-mesh/bulkhead/segment"
	"github.com/bulkhead-mesh/bulkhead/segment/segmenttest"
)

// drawnPorts are those that drawn rules open, and their neighbours.
var drawnPorts = []segment.Port{
	{Proto: segment.TCP, Number: 443}, {Proto: segment.TCP, Number: 450}, {Proto: segment.TCP, Number: 451},
	{Proto: segment.TCP, Number: 6500}, {Proto: segment.UDP, Number: 443}, {Proto: segment.UDP, Number: 53}, {Proto: segment.ICMP},
}

// soaking asks for the long form of tests.
var soaking = os.Getenv("BULKHEAD_SOAK") != ""

// TestAnyPolicy draws policies, enforces each, and tries every pair of agents, three of which share a host: kernel,
// specification, simulator and compiled plan never disagree.
func TestAnyPolicy(t *testing.T) {
	m := newTestMesh(t, Spec{Agent: "plan1", Labels: labels("plan", "internal")}, Spec{}, Spec{Agent: "store2", Labels: segment.Labels{"function": "store"}})
	shared := &crew{node: m.Hosts[1], agents: map[string]segment.Agent{}}
	for name, labels := range map[string]segment.Labels{
		"plan2": labels("plan", "public"), "tool1": labels("tool", "internal"), "store1": labels("store", "confidential"),
	} {
		if err := shared.node.Cgroup(name); err != nil {
			t.Fatal(err)
		}
		shared.declare(t, m, name, "cgroup=/"+name, labels)
	}
	agents := agentsOf(t, m)
	for _, a := range agents {
		s, err := m.node(a.Host).Serve(a.Addresses, 53, 443, 450, 451, 6500)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
	}
	client, err := api.Dial(api.DialOptions{Socket: m.Hosts[0].Socket()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	policies := "10"
	if soaking {
		policies = "200"
	}
	if err := flag.Set("rapid.checks", policies); err != nil {
		t.Fatal(err)
	}
	drawn := rapid.Custom(func(rt *rapid.T) *segment.Policy { return segmenttest.Policy(rt) }).
		Filter(func(p *segment.Policy) bool { return allowsAny(p, agents) })
	var passed, stopped int
	rapid.Check(t, func(rt *rapid.T) {
		p := drawn.Draw(rt, "policy")
		document, err := p.Marshal()
		if err != nil {
			rt.Fatal(err)
		}
		if err := m.Apply(t.Context(), string(document)); err != nil {
			rt.Fatal(err)
		}
		allowed, denied, err := tryAll(t.Context(), m, p, agents, client)
		if err != nil {
			rt.Fatalf("%v\nunder the policy\n%s", err, document)
		}
		passed, stopped = passed+allowed, stopped+denied
	})
	t.Logf("%d flows passed, %d were stopped", passed, stopped)
	if passed == 0 || stopped == 0 {
		t.Error("the policies drawn were all alike")
	}
}

// allowsAny keeps policies that allow nothing here from being most of those drawn.
func allowsAny(p *segment.Policy, agents map[string]segment.Agent) bool {
	for _, a := range agents {
		for _, b := range agents {
			allowed := func(port segment.Port) bool { return p.Decide(a, b, port, time.Now()).Allow }
			if a.Name != b.Name && slices.ContainsFunc(drawnPorts, allowed) {
				return true
			}
		}
	}
	return false
}

// tryAll tries each port between each two agents, over both families, and counts what passed and what did not.
func tryAll(ctx context.Context, m *Mesh, p *segment.Policy, agents map[string]segment.Agent, client *api.Client) (allowed, denied int, err error) {
	now := time.Now()
	all := make([]segment.Agent, 0, len(agents))
	for _, a := range agents {
		all = append(all, a)
	}
	var tries errgroup.Group
	tries.SetLimit(96) // most wait for a ping
	for _, a := range all {
		src := m.node(a.Host)
		plan := segment.Compile(p, a.Host, all, now)
		for _, b := range all {
			if a.Name == b.Name {
				continue
			}
			for _, port := range drawnPorts {
				want := p.Decide(a, b, port, now).Allow
				if want {
					allowed++
				} else {
					denied++
				}
				if got := plan.Allows(a.Name, b.Name, port, now); got != want {
					return 0, 0, fmt.Errorf("%s to %s, %s: compiled %v, specified %v", a.Name, b.Name, port, got, want)
				}
				tries.Go(func() error { return tryExplain(ctx, client, a, b, port, want) })
				for i := range a.Addresses {
					tries.Go(func() error { return tryPackets(ctx, src, a, b, i, port, want) })
				}
			}
		}
	}
	return allowed, denied, tries.Wait()
}

func tryExplain(ctx context.Context, client *api.Client, a, b segment.Agent, port segment.Port, want bool) error {
	explained, err := client.Explain(ctx, a.Name, b.Name, port.String())
	if err == nil && (explained.Verdict == "allow") != want {
		err = fmt.Errorf("%s to %s, %s: explained %q, specified %v", a.Name, b.Name, port, explained.Verdict, want)
	}
	return err
}

func tryPackets(ctx context.Context, src *Node, a, b segment.Agent, family int, port segment.Port, want bool) error {
	try := func() error {
		group := "" // of one that is the whole host
		if src.Agent != a.Name {
			group = a.Name
		}
		if got := src.ReachesFrom(ctx, group, a.Addresses[family], b.Addresses[family], port); got != want {
			return fmt.Errorf("%s to %s at %s, %s: packets %v, specified %v", a.Name, b.Name, b.Addresses[family], port, got, want)
		}
		return nil
	}
	if !want {
		return try() // once: what is denied must never arrive
	}
	// Two hosts that open a WireGuard handshake at the same moment try again after five seconds.
	return Eventually(ctx, patient, try)
}
