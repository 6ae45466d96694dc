package lab

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
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

// TestAnyPolicy draws policies, enforces each, and tries every pair of agents: kernel, specification, simulator and
// compiled plan never disagree.
func TestAnyPolicy(t *testing.T) {
	m := newTestMesh(t,
		Spec{Agent: "plan1", Labels: labels("plan", "internal")}, Spec{Agent: "plan2", Labels: labels("plan", "public")},
		Spec{Agent: "tool1", Labels: labels("tool", "internal")}, Spec{Agent: "store1", Labels: labels("store", "confidential")},
		Spec{Agent: "store2", Labels: segment.Labels{"function": "store"}})
	agents := agentsOf(t, m)
	serveAgents(t, m, agents, 53, 443, 450, 451, 6500)
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
	var passed, stopped int
	rapid.Check(t, func(rt *rapid.T) {
		p := segmenttest.Policy(rt)
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

// tryAll tries each port between each two agents, over both families, and counts what passed and what did not.
func tryAll(ctx context.Context, m *Mesh, p *segment.Policy, agents map[string]segment.Agent, client *api.Client) (allowed, denied int, err error) {
	now := time.Now()
	all := make([]segment.Agent, 0, len(agents))
	for _, a := range agents {
		all = append(all, a)
	}
	var tries errgroup.Group
	tries.SetLimit(32)
	for _, src := range m.Hosts {
		plan := segment.Compile(p, src.Name, all, now)
		for _, dst := range m.Hosts {
			if src == dst {
				continue
			}
			a, b := agents[src.Agent], agents[dst.Agent]
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
				tries.Go(func() error { return tryFlow(ctx, src, a, b, port, want, client) })
			}
		}
	}
	return allowed, denied, tries.Wait()
}

func tryFlow(ctx context.Context, src *Node, a, b segment.Agent, port segment.Port, want bool, client *api.Client) error {
	explained, err := client.Explain(ctx, a.Name, b.Name, port.String())
	if err != nil {
		return err
	}
	if (explained.Verdict == "allow") != want {
		return fmt.Errorf("%s to %s, %s: explained %q, specified %v", a.Name, b.Name, port, explained.Verdict, want)
	}
	for i := range a.Addresses {
		try := func() error {
			if src.Reaches(ctx, a.Addresses[i], b.Addresses[i], port) == want {
				return nil
			}
			return fmt.Errorf("%s to %s at %s, %s: packets do not as specified, which is %v", a.Name, b.Name, b.Addresses[i], port, want)
		}
		if !want {
			err = errors.Join(err, try()) // once: what is denied must never arrive
		} else {
			err = errors.Join(err, Eventually(ctx, patient, try)) // a packet may be lost, a handshake may take a while
		}
	}
	return err
}
