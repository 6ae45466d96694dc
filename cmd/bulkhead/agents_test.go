package main

import (
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-mesh/bulkhead/control/api"
	"github.com/bulkhead-mesh/bulkhead/daemon"
)

// --wait ends when an operator has approved the agent, and not before.
func TestAddWaitsForApproval(t *testing.T) {
	fake := fullDaemon()
	pending := api.LocalAgent{Name: "vault1", State: api.AgentPending, Labels: vaultLabels}
	fake.answers["POST /v1/local/agents"] = pending
	var polls atomic.Int32
	fake.answers["GET /v1/local/agents"] = func(*http.Request) any {
		now := pending
		if polls.Add(1) >= 3 {
			now.State = api.AgentWaiting // for processes; that is no one's to approve
		}
		return []api.LocalAgent{{Name: "other", State: api.AgentActive}, now}
	}
	startFake(t, fake)
	got := bulkhead(t, "", "agent", "add", "vault1", "--match", "run", "--label", "function=vault", "--wait")
	if got.code != 0 || polls.Load() != 3 || !strings.HasPrefix(got.out, "Agent vault1 is waiting.\n") {
		t.Errorf("code %d after %d polls: %s%s", got.code, polls.Load(), got.out, got.err)
	}
	polls.Store(-1 << 20)
	got = bulkhead(t, "", "agent", "add", "vault1", "--match", "run", "--wait", "--timeout", "300ms")
	if got.code != exitError || got.out != "" || !strings.Contains(got.err, "bulkhead agent approve vault1") {
		t.Errorf("code %d: %s%s", got.code, got.out, got.err)
	}
	got = bulkhead(t, "", "agent", "add", "vault1", "--match", "run")
	if got.code != 0 || !strings.Contains(got.out, "bulkhead agent approve vault1") {
		t.Errorf("code %d: %s%s", got.code, got.out, got.err)
	}
}

func TestMatchesAreChecked(t *testing.T) {
	startFake(t, fullDaemon())
	for _, args := range []string{"agent add a1", "agent add a1 --match unit=", "agent add a1 --match unit=x.socket", "agent add a1 --match user=u,run", "join x --agent a1 --match nothing"} {
		if got := bulkhead(t, "", strings.Fields(args)...); got.code != exitUsage || !strings.Contains(got.err, "match") {
			t.Errorf("%s: code %d: %s", args, got.code, got.err)
		}
	}
}

func TestShellsCompleteNames(t *testing.T) {
	fake := fullDaemon()
	fake.answers["GET /v1/local/agents"] = []api.LocalAgent{{Name: "here1"}}
	startFake(t, fake)
	for line, want := range map[string]string{
		"agent remove ": "here1\n", "run --agent ": "here1\n", "agent show ": "plan1\n", "policy reach ": "plan1\n", "host revoke ": "h2\n", "segment show ": "planners\n",
		"agent list --output ": "yaml\n", "agent add a1 --match ": "unit=\n", "agent show plan1 ": ":4\n",
	} {
		got := bulkhead(t, "", append([]string{"__complete"}, strings.Split(line, " ")...)...)
		if got.code != 0 || !strings.Contains(got.out, want) {
			t.Errorf("%s: code %d: %s%s; want %q", line, got.code, got.out, got.err, want)
		}
	}
	t.Setenv("BULKHEAD_SOCKET", filepath.Join(t.TempDir(), "none"))
	if got := bulkhead(t, "", "__complete", "agent", "show", ""); got.code != 0 || got.out != ":4\n" {
		t.Errorf("without a daemon: code %d: %s%s", got.code, got.out, got.err)
	}
}

func TestEgressIsChecked(t *testing.T) {
	startFake(t, fullDaemon())
	for _, egress := range []string{"nothing", "api.example.com", "api.example.com=", "api.example.com=tcp", "none --egress api.example.com=tcp/443"} {
		args := append(strings.Fields("segment create s1 --match function=plan --egress"), strings.Fields(egress)...)
		if got := bulkhead(t, "", args...); got.code != exitUsage || !strings.Contains(got.err, "--egress") || !strings.Contains(got.err, "(fix: ") {
			t.Errorf("%s: code %d: %s", egress, got.code, got.err)
		}
	}
}

func TestApprovalSaysWherePendingAgentsAreSeen(t *testing.T) {
	startFake(t, fullDaemon())
	if got := bulkhead(t, "", "agent", "approve", "unseen"); got.code != exitError || !strings.Contains(got.err, "--label") {
		t.Errorf("code %d: %s", got.code, got.err)
	}
}

// A run exits as its command does, and tells what kept the command from starting.
func TestRunExitsAsItsCommand(t *testing.T) {
	fake := fullDaemon()
	startFake(t, fake)
	for args, code := range map[string]int{
		"run --agent plan1 -- true":               0,
		"run --agent plan1 -- sh -c exit\t7":      7,
		"run --agent plan1 sh -c exit\t2":         2,
		"run --agent plan1 -- sh -c kill\t-9\t$$": 128 + 9,
		"run --agent plan1 -- /nonexistent":       exitNotStarted,
		"run --agent plan1":                       exitUsage,
		"run -- true":                             exitUsage,
		"run --agent plan1 --label x -- true":     exitUsage,
		"run --agent plan1 --nonsense -- true":    exitUsage,
		"run --agent p --agent-socket /no true":   exitNotStarted,
	} {
		var words []string
		for _, word := range strings.Fields(strings.ReplaceAll(args, "\t", "\x00")) {
			words = append(words, strings.ReplaceAll(word, "\x00", " "))
		}
		got := bulkhead(t, "", words...)
		if got.code != code || (code == 0 || code == 7) && got.err != "" || code == exitNotStarted && got.err == "" {
			t.Errorf("%s: code %d, want %d: %s", args, got.code, code, got.err)
		}
	}
	fake.problems = map[string]any{"POST /v1/run": api.Problem{Status: 403, Code: "denied", Detail: "user 7 may not run agent plan1", Fix: "ask root"}}
	got := bulkhead(t, "", "run", "--agent", "plan1", "--", "true")
	if got.code != exitNotStarted || got.err != "bulkhead: user 7 may not run agent plan1 (fix: ask root)\n" {
		t.Errorf("code %d: %s", got.code, got.err)
	}
}

// Whoever may run a command as an agent need not be able to read the configuration.
func TestRunWithoutReadingTheConfiguration(t *testing.T) {
	t.Setenv("BULKHEAD_SOCKET", "")
	t.Setenv("BULKHEAD_AGENT_SOCKET", "")
	t.Setenv("BULKHEAD_STATE_DIR", "")
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte("socket: /srv/b.sock\nstateDir: /srv/b\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	sockets := func(args ...string) string {
		t.Helper()
		a := &app{}
		c, rest, err := a.newRoot().Find(append([]string{"run", "--config", path}, args...))
		if err != nil {
			t.Fatal(err)
		}
		if err := c.ParseFlags(rest); err != nil {
			t.Fatal(err)
		}
		socket, state, err := a.forRun(c)
		if err != nil {
			t.Fatal(err)
		}
		return socket + " " + state
	}
	usual := daemon.DefaultConfig()
	if err := usual.Validate(); err != nil {
		t.Fatal(err)
	}
	if got := sockets(); got != "/srv/b-agent.sock /srv/b" {
		t.Errorf("as root: %s", got)
	}
	runtime.LockOSThread() // and the thread ends with the test
	if err := unix.Setfsuid(65534); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Setfsuid(0); err != nil {
			t.Error(err)
		}
	})
	if got, want := sockets(), usual.AgentSocket+" "+usual.StateDir; got != want {
		t.Errorf("as another: %s, want %s", got, want)
	}
	if got, want := sockets("--agent-socket", "/srv/other.sock"), "/srv/other.sock "+usual.StateDir; got != want {
		t.Errorf("as another, with a flag: %s, want %s", got, want)
	}
}
