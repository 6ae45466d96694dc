package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"
)

var update = flag.Bool("update", false, "rewrite golden files")

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"bulkhead": main})
}

// The scripts run the real program where there is no daemon.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata/script", UpdateScripts: *update, Setup: func(e *testscript.Env) error {
		// Not the machine's own daemon, should one run.
		e.Setenv("BULKHEAD_SOCKET", filepath.Join(e.WorkDir, "no.sock"))
		e.Setenv("BULKHEAD_AGENT_SOCKET", filepath.Join(e.WorkDir, "no-agent.sock"))
		e.Setenv("BULKHEAD_STATE_DIR", filepath.Join(e.WorkDir, "state"))
		return nil
	}, Cmds: map[string]func(*testscript.TestScript, bool, []string){"exits": exits}})
}

// exits runs a program and compares its exit code: exits CODE PROGRAM ARGS...
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM ARGS...")
	}
	err := ts.Exec(args[1], args[2:]...)
	code := 0
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		code = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if got := strconv.Itoa(code); got != args[0] {
		ts.Fatalf("exit code %s, want %s", got, args[0])
	}
}

// outcome is what a command line did.
type outcome struct {
	code     int
	out, err string
}

func bulkhead(t *testing.T, stdin string, args ...string) outcome {
	t.Helper()
	var out, errs bytes.Buffer
	code := run(t.Context(), args, stdio{in: strings.NewReader(stdin), out: &out, err: &errs})
	return outcome{code, out.String(), errs.String()}
}

// fakeDaemon answers on a socket with what it is told to, and keeps what it was asked.
type fakeDaemon struct {
	answers  map[string]any // by "METHOD /path"; a func(*http.Request) any is called
	problems map[string]any
	asked    atomic.Pointer[asked]
}

type asked struct {
	body    string
	ifMatch string
	query   string
}

func startFake(t *testing.T, f *fakeDaemon) {
	t.Helper()
	dir, err := os.MkdirTemp("", "bh") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &httptest.Server{Listener: listener, Config: &http.Server{Handler: f}}
	server.Start()
	t.Cleanup(server.Close)
	t.Setenv("BULKHEAD_SOCKET", socket)
	if err := os.Symlink(socket, socket+"-agent"); err != nil { // one answers for both
		t.Fatal(err)
	}
	t.Setenv("BULKHEAD_AGENT_SOCKET", socket+"-agent")
}

func (f *fakeDaemon) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var body bytes.Buffer
	if _, err := body.ReadFrom(r.Body); err != nil {
		panic(err)
	}
	key := r.Method + " " + r.URL.Path
	if r.Method != http.MethodGet {
		f.asked.Store(&asked{body.String(), r.Header.Get("If-Match"), r.URL.RawQuery})
	}
	answer, ok := f.answers[key]
	if problem, refused := f.problems[key]; refused {
		w.WriteHeader(http.StatusUnprocessableEntity)
		answer = problem
	} else if !ok {
		w.WriteHeader(http.StatusNotFound)
		answer = map[string]any{"code": "not-found", "status": 404, "detail": "nothing at " + key}
	}
	if fn, ok := answer.(func(*http.Request) any); ok {
		answer = fn(r)
	}
	if err := json.NewEncoder(w).Encode(answer); err != nil {
		panic(err)
	}
}

func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s differs (-want +got); run with -update if that is meant:\n%s", path, diff)
	}
}

// All help as one text; and every command that does something shows how.
func TestHelp(t *testing.T) {
	a := &app{}
	root := a.newRoot()
	var all strings.Builder
	var visit func(*cobra.Command)
	visit = func(c *cobra.Command) {
		if c.Name() == "completion" || c.Name() == "help" {
			return
		}
		var text bytes.Buffer
		c.SetOut(&text)
		if err := c.Help(); err != nil {
			t.Fatal(err)
		}
		all.WriteString("# " + c.CommandPath() + "\n\n" + text.String() + "\n")
		if c.Runnable() && !c.HasSubCommands() && c.Example == "" {
			t.Errorf("%s has no example", c.CommandPath())
		}
		for _, sub := range c.Commands() {
			visit(sub)
		}
	}
	visit(root)
	golden(t, "testdata/help.txt", all.String())
}

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
