package lab

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
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

// What contradicts other declarations is refused, with the field and the reason, and changes nothing.
func TestContradictionsAreRefused(t *testing.T) {
	m := newTestMesh(t, Spec{Config: "agents: [{name: conf1, match: {unit: conf.service}}, {name: vague1, labels: {sensitivity: vague}, match: {run: true}}]\n"})
	n := m.Hosts[0]
	if _, err := n.Run(t.Context(), "agent", "add", "first1", "--match", "cgroup=/first", "--label", "function=plan"); err != nil {
		t.Fatal(err)
	}
	c := &crew{node: n}
	err := Eventually(t.Context(), patient, func() error {
		here, err := c.list(t.Context())
		if err == nil && (len(here) != 3 || here[2].Problem == "") {
			err = fmt.Errorf("%+v", here)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for command, want := range map[string]string{
		"agent add a1 --match cgroup=/first":                  `match: cgroup=/first is agent "first1" already`,
		"agent add a1 --match unit=conf.service":              `match: unit=conf.service is agent "conf1" already`,
		"agent add a1 --match run --label sensitivity=vague":  `labels: the policy has no sensitivity "vague"`,
		"agent add first1 --match run --label function=store": `labels: agent "first1" has other labels: function=plan`,
		"run --agent first1 --label function=store -- true":   `labels: agent "first1" has other labels: function=plan`,
		"run --agent vague1 -- true":                          `agent "vague1" of the configuration was not taken: labels: the policy has no sensitivity`,
		"agent approve first1 --label function=store":         `labels: agent "first1" has labels function=plan`,
		"run --agent a1 --label sensitivity=vague -- true":    `labels: the policy has no sensitivity "vague"`,
		"agent add conf1 --match run":                         `name: agent "conf1" is declared in the configuration file`,
		"run --agent a1 -- true":                              `agent: this host has no agent "a1"`,
	} {
		if _, err := n.Run(t.Context(), strings.Fields(command)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want it to say %s", command, err, want)
		}
	}
	here, err := c.list(t.Context())
	if err != nil || len(here) != 3 {
		t.Errorf("agents: %+v, %v", here, err)
	}
}

// What was run as an agent does not become the administrator, who is root too, when the agent is removed.
func TestRemovedAgentStaysConfined(t *testing.T) {
	m := newTestMesh(t, Spec{})
	n := m.Hosts[0]
	if _, err := n.Run(t.Context(), "agent", "add", "gone1", "--match", "run"); err != nil {
		t.Fatal(err)
	}
	a, err := n.Act("", 0, m.Binary, "--socket", n.Socket(), "run", "--agent", "gone1", "--", actorProgram(t))
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	refused := func() {
		t.Helper()
		for _, args := range [][]string{{"token", "list"}, {"run", "--agent", "gone2", "--label", "function=plan", "true"}} {
			r, err := a.Tell(Order{Do: "exec", Command: append([]string{m.Binary, "--socket", n.Socket()}, args...)})
			if err != nil || r.Error == "" {
				t.Errorf("%v: %+v, %v", args, r, err)
			}
		}
	}
	refused()
	if _, err := n.Run(t.Context(), "agent", "remove", "gone1"); err != nil {
		t.Fatal(err)
	}
	refused()
}
