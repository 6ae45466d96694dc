package api

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bulkhead-mesh/bulkhead/control/authority"
)

func serveSocket(t *testing.T, h http.Handler) (path string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "bh") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path = filepath.Join(dir, "s")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	serveUntilEnd(t, listener, h)
	return path
}

// asAgent serves the agents' socket to a process that is what asker says.
func (w *world) asAgent(asker Asker) *Client {
	w.t.Helper()
	path := serveSocket(w.t, w.server.Agents(func(*http.Request) (Asker, error) { return asker, nil }))
	return w.dial(DialOptions{Socket: path})
}

// An agent learns of itself and of those it has to do with. Whether there are others it cannot tell.
func TestAgentsLearnOfThoseTheyHaveToDoWith(t *testing.T) {
	w := newWorld(t)
	other := scout
	other.Agent, other.Addresses = "vault", []netip.Addr{netip.MustParseAddr("10.201.0.9")}
	w.local.whois = map[netip.Addr]Whois{scout.Addresses[0]: scout, other.Addresses[0]: other}
	w.local.knows = map[string]string{"plan1": "scout"}
	for _, test := range []struct {
		agent, addr string
		knows       bool
	}{{"scout", "10.201.0.7", true}, {"plan1", "10.201.0.7:443", true}, {"plan1", "10.201.0.9", false}, {"vault", "10.201.0.7", false}} {
		got, err := w.asAgent(Asker{Agent: test.agent}).Whois(t.Context(), test.addr)
		if test.knows {
			if err != nil || got.Agent != "scout" {
				t.Errorf("%s asks for %s: %+v, %v", test.agent, test.addr, got, err)
			}
			continue
		}
		p, ok := errors.AsType[*Problem](err)
		_, absent := w.asAgent(Asker{Agent: test.agent}).Whois(t.Context(), "10.201.0.99")
		if !ok || strings.ReplaceAll(p.Error(), strings.Split(test.addr, ":")[0], "ADDR") != strings.ReplaceAll(absent.Error(), "10.201.0.99", "ADDR") {
			t.Errorf("%s asks for %s: %v; of nobody: %v", test.agent, test.addr, err, absent)
		}
	}
	_, err := w.asAgent(Asker{UID: 1000}).Whois(t.Context(), "10.201.0.7")
	wantCode(t, err, authority.CodeDenied)
}

// The agents' socket has nothing else: not the API of the host, whoever asks.
func TestTheAgentsSocketHasNothingElse(t *testing.T) {
	w := newWorld(t)
	client := w.asAgent(Asker{Agent: "plan1"})
	_, err := client.Status(t.Context())
	wantCode(t, err, authority.CodeNotFound)
	_, err = client.LocalAgents(t.Context())
	wantCode(t, err, authority.CodeNotFound)
	_, err = client.CreateToken(t.Context(), TokenRequest{})
	wantCode(t, err, authority.CodeNotFound)

	unknown := w.dial(DialOptions{Socket: serveSocket(t, w.server.Agents(func(*http.Request) (Asker, error) { return Asker{}, errors.New("no such process") }))})
	_, err = unknown.Whois(t.Context(), "10.201.0.7")
	wantCode(t, err, authority.CodeDenied)
	_, _, err = unknown.Run(t.Context(), RunRequest{Agent: "a1"})
	wantCode(t, err, authority.CodeDenied)
}

func TestAskersAreSlowedDown(t *testing.T) {
	w := newWorld(t)
	client := w.asAgent(Asker{Agent: "plan1"})
	for range memberBurst + 50 {
		_, err := client.Whois(t.Context(), "10.201.0.7")
		if p, ok := errors.AsType[*Problem](err); ok && p.Code == CodeRateLimited {
			_, err = w.asAgent(Asker{Agent: "scout"}).Whois(t.Context(), "10.201.0.7")
			wantCode(t, err, authority.CodeNotFound) // others are not
			return
		}
	}
	t.Error("an agent asked as often as it liked")
}

// A run lasts from when it is asked for until its asker is gone, and not a time limit of the server.
func TestARunLastsAsLongAsItsConnection(t *testing.T) {
	w := newWorld(t)
	w.local.enter, w.local.ran, w.local.ended = make(chan struct{}), make(chan Asker, 1), make(chan error, 1)
	agents := w.server.Agents(func(*http.Request) (Asker, error) { return Asker{UID: 1000, PID: 4711}, nil })
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/limited" {
			agents.ServeHTTP(rw, r)
			return
		}
		defer close(w.local.enter) // after the limits have struck
		for {
			if _, err := rw.Write(make([]byte, 1<<16)); err != nil {
				return
			}
		}
	}))
	server.Config.ReadTimeout, server.Config.WriteTimeout = 200*time.Millisecond, 200*time.Millisecond
	path := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server.Listener.Close()
	server.Listener = listener
	server.Start()
	defer server.Close()

	client := w.dial(DialOptions{Socket: path})
	var limited sync.WaitGroup
	limited.Go(func() {
		resp, err := client.send(t.Context(), request{method: http.MethodGet, path: "/limited"})
		if err != nil {
			t.Error(err)
			return
		}
		defer resp.Body.Close()
		if _, err := io.Copy(io.Discard, resp.Body); err == nil {
			t.Error("the limits are none")
		}
	})
	scope, running, err := client.Run(t.Context(), RunRequest{Agent: "a1", Labels: map[string]string{"function": "plan"}})
	if err != nil || scope.Agent != "a1" || len(scope.Addresses) != 1 {
		t.Fatalf("run = %+v, %v", scope, err)
	}
	limited.Wait()
	if asker := <-w.local.ran; asker.PID != 4711 || asker.UID != 1000 {
		t.Errorf("asker = %+v", asker)
	}
	if len(w.local.ended) > 0 {
		t.Fatalf("the run ended while its asker was there: %v", <-w.local.ended)
	}
	if err := running.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-w.local.ended; !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v", err)
	}
}

// A run ends with the server, too: the daemon waits for nobody's command.
func TestARunEndsWithTheServer(t *testing.T) {
	local := &fakeLocal{ran: make(chan Asker, 1), ended: make(chan error, 1)}
	agents := New(Options{Local: local}).Agents(func(*http.Request) (Asker, error) { return Asker{}, nil })
	listener, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, listener, agents, quiet) }()
	client, err := Dial(DialOptions{Socket: listener.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	_, running, err := client.Run(t.Context(), RunRequest{Agent: "a1"})
	if err != nil {
		t.Fatal(err)
	}
	defer running.Close()
	<-local.ran
	stop()
	if err := <-local.ended; err == nil {
		t.Error("it ended for no reason")
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}

func TestRefusedRuns(t *testing.T) {
	w := newWorld(t)
	client := w.asAgent(Asker{UID: 1000})
	w.local.fault = &authority.Error{Code: authority.CodeDenied, Field: "agent", Message: "user 1000 may not run as it", Fix: "ask root"}
	_, _, err := client.Run(t.Context(), RunRequest{Agent: "a1"})
	wantCode(t, err, authority.CodeDenied)
	_, _, err = client.Run(t.Context(), RunRequest{})
	wantCode(t, err, authority.CodeInvalid)
	w.local.fault = errors.New("no cgroup")
	_, _, err = client.Run(t.Context(), RunRequest{Agent: "a1"})
	wantCode(t, err, CodeInternal)

	w.local.fault = nil
	w.local.ran, w.local.ended = make(chan Asker, maxRunsP+1), make(chan error, maxRunsP+1)
	for range maxRunsP {
		_, running, err := client.Run(t.Context(), RunRequest{Agent: "a1"})
		if err != nil {
			t.Fatal(err)
		}
		defer running.Close()
	}
	_, _, err = client.Run(t.Context(), RunRequest{Agent: "a1"})
	wantCode(t, err, CodeRateLimited)
	other, running, err := w.asAgent(Asker{UID: 1001}).Run(t.Context(), RunRequest{Agent: "a1"})
	if err != nil || other.Agent != "a1" {
		t.Fatalf("another user's run: %v", err)
	}
	running.Close()
}

// One agent cannot take the socket from the others. Who asks is known by the connection itself.
func TestConnectionsOfAskersAreBounded(t *testing.T) {
	listener, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	var accepted atomic.Int64
	bound := BoundAskers(listener, func(conn net.Conn) (Asker, error) {
		if accepted.Add(1) > maxAskersP+1 {
			return Asker{Agent: "other"}, nil
		}
		return Asker{Agent: "greedy"}, nil
	})
	serveUntilEnd(t, bound, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, ok := r.Context().Value(ConnContextKey{}).(*net.UnixConn); !ok {
			t.Errorf("the connection is a %T", r.Context().Value(ConnContextKey{}))
		}
	}))
	answered := func() bool {
		conn, err := net.Dial("unix", listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			return false
		}
		_, err = io.ReadFull(conn, make([]byte, 12))
		return err == nil
	}
	for i := range maxAskersP {
		if !answered() {
			t.Fatalf("connection %d was refused", i)
		}
	}
	if answered() {
		t.Error("one connection too many was served")
	}
	if !answered() {
		t.Error("another asker was refused")
	}
}
