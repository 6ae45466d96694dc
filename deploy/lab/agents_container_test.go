package lab

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/bulkhead-mesh/bulkhead/segment"
)

// followed is how long a host may take to follow a container that comes or goes.
const followed = time.Second

// podmanDir is for Podman's store and socket, whose path must be short.
func podmanDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "bulkhead-podman-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// podmanSpec is a host without an agent yet, whose daemon asks that Podman.
func podmanSpec(dir string) Spec {
	return Spec{Config: "containerSockets: [" + filepath.Join(dir, "podman.sock") + "]\n"}
}

func startEngine(t *testing.T, n *Node, dir string) *Engine {
	t.Helper()
	engine, err := n.StartEngine(t.Context(), dir, actorProgram(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := engine.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return engine
}

// contain adds an agent to the crew that is a container.
func (c *crew) contain(t *testing.T, m *Mesh, dir, name string, labels segment.Labels) {
	t.Helper()
	engine := startEngine(t, c.node, dir)
	c.declare(t, m, name, "container.name="+name, labels)
	actor, err := engine.Run("--name", name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = actor.Close() })
	c.actors[name] = actor
	err = Eventually(t.Context(), patient, func() error {
		here, err := c.list(t.Context())
		for _, a := range here {
			if a.Name == name && !a.Processes {
				err = fmt.Errorf("%+v", a)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A container on the host's network is an agent by its label, as soon as it runs and for as long as it does. One without
// that label reaches nothing.
func TestContainersAreAgents(t *testing.T) {
	dir := podmanDir(t)
	m := newTestMesh(t, Spec{Agent: "store1", Labels: labels("store", "confidential")}, podmanSpec(dir))
	n := m.Hosts[1]
	engine := startEngine(t, n, dir)
	c := &crew{node: n, actors: map[string]*Actor{}, agents: agentsOf(t, m)}
	if err := m.Apply(t.Context(), oneHostPolicy); err != nil {
		t.Fatal(err)
	}
	serveAgents(t, m, c.agents, 5001)
	c.declare(t, m, "boxed", "container.label=role=boxed", labels("retrieval", "internal"))
	ask := Order{Do: "ask", Network: "tcp", Remote: netip.AddrPortFrom(c.agents["store1"].Addresses[0], 5001).String()}

	other, err := engine.Run("--name", "other", "--label", "role=else")
	if err != nil {
		t.Fatal(err)
	}
	if r, err := other.Tell(ask); err != nil || r.Error == "" {
		t.Errorf("a container that is no agent: %+v, %v", r, err)
	}
	for round := range 3 {
		started := time.Now()
		box, err := engine.Run("--name", "box", "--label", "role=boxed")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := box.Tell(Order{Do: "exec", Command: []string{"/none"}}); err != nil { // it runs
			t.Fatal(err)
		}
		running := time.Now()
		err = Eventually(t.Context(), patient, func() error {
			r, err := box.Tell(ask)
			if err == nil && r.Error != "" {
				err = fmt.Errorf("%s", r.Error)
			}
			if err == nil && hostOf(r.Local) != c.agents["boxed"].Addresses[0].String() {
				t.Errorf("the container has the address %s", r.Local)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("round %d: it answers %v after it runs, %v after `podman run`", round, time.Since(running).Round(time.Millisecond), time.Since(started).Round(time.Millisecond))
		if late := time.Since(running); late > 5*followed { // far more than it takes, for machines that do much else
			t.Errorf("a container is an agent only after %v", late)
		}
		if err := engine.Podman(t.Context(), "kill", "box"); err != nil {
			t.Fatal(err)
		}
		gone := time.Now()
		err = Eventually(t.Context(), patient, func() error {
			here, err := c.list(t.Context())
			for _, a := range here {
				if a.Name == "boxed" && a.Processes {
					err = fmt.Errorf("%+v", a)
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("round %d: it is gone after %v", round, time.Since(gone).Round(time.Millisecond))
		_ = box.Close() // killed
	}
	if err := other.Close(); err != nil {
		t.Error(err)
	}
}
