package lab

import (
	"fmt"
	"slices"
	"strconv"
	"syscall"
	"testing"

	"github.com/bulkhead-mesh/bulkhead/control/api"
)

// Agents that the configuration declares come and go with it, on reload, and users run those that it gives them.
func TestConfiguredAgents(t *testing.T) {
	declared := "agents:\n  - {name: helper1, match: {run: true}, run: [" + strconv.Itoa(agentUser) + "]}\n  - {name: other1, match: {run: true}}\n"
	m := newTestMesh(t, Spec{Config: declared})
	n := m.Hosts[0]
	c := &crew{node: n}
	names := func(want ...string) {
		t.Helper()
		err := Eventually(t.Context(), patient, func() error {
			here, err := c.list(t.Context())
			if err != nil {
				return err
			}
			var got []string
			for _, a := range here {
				if a.Source != api.SourceConfig || len(a.Addresses) == 0 {
					return fmt.Errorf("%+v", a)
				}
				got = append(got, a.Name)
			}
			if !slices.Equal(got, want) {
				return fmt.Errorf("there are %v, want %v", got, want)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	names("helper1", "other1")
	program := actorProgram(t)
	asUser := func(agent string) (*Actor, error) {
		return n.Act("", agentUser, m.Binary, "--socket", n.Socket(), "run", "--agent", agent, "--", program)
	}
	helper, err := asUser("helper1")
	if err != nil {
		t.Fatal(err)
	}
	r, err := helper.Do(Order{Do: "exec", Command: []string{"cat", "/proc/self/cgroup"}})
	if err != nil {
		t.Errorf("the user's own agent: %v", err)
	}
	t.Log(r.Output)
	if err := helper.Close(); err != nil {
		t.Error(err)
	}
	other, err := asUser("other1")
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Close(); err == nil {
		t.Error("a user runs an agent that is not his")
	}
	// The file is the only place where these are changed.
	if _, err := n.Run(t.Context(), "agent", "remove", "other1"); err == nil {
		t.Error("an agent of the configuration was removed by command")
	}
	n.Config = "agents:\n  - {name: other1, match: {run: true}}\n"
	if err := n.WriteConfig(); err != nil {
		t.Fatal(err)
	}
	if err := n.Daemon.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	names("other1")
}
