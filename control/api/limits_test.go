package api

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-mesh/bulkhead/control/authority"
)

func TestStrangersAreSlowedDownAndMembersAreNot(t *testing.T) {
	w := newWorld(t)
	alice := w.operator("alice", authority.RoleViewer)
	client := rawClient(t, nil)
	limited := false
	for range strangerBurst + 10 {
		resp, err := client.Get("https://" + w.address + "/v1/status")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode == http.StatusTooManyRequests {
			limited = true
			if resp.Header.Get("Retry-After") == "" {
				t.Error("no Retry-After")
			}
		}
	}
	if !limited {
		t.Errorf("%d requests of a stranger were all answered", strangerBurst+10)
	}
	for range strangerBurst + 10 {
		if _, err := alice.Status(t.Context()); err != nil {
			t.Fatalf("a member from the same source: %v", err)
		}
	}
}

func TestLimitersAreBounded(t *testing.T) {
	l := newLimiters(1, 2)
	now := time.Unix(1e9, 0)
	for i := range 3 * maxSources {
		l.allow(fmt.Sprint(i), now)
	}
	if len(l.byKey) > maxSources {
		t.Errorf("%d buckets, want at most %d", len(l.byKey), maxSources)
	}
	if l.allow("newcomer", now) {
		t.Error("the shared bucket of those without room is not empty after so many")
	}
	now = now.Add(time.Minute) // all buckets are full again, and so need not be kept
	if !l.allow("newcomer", now) || len(l.byKey) != 1 {
		t.Errorf("after a pause: %d buckets, want 1", len(l.byKey))
	}
}

func TestSourcesArePrefixes(t *testing.T) {
	for _, test := range []struct{ remote, want string }{
		{"192.0.2.7:99", "192.0.2.7"},
		{"[::ffff:192.0.2.7]:99", "192.0.2.7"},
		{"[2001:db8::1:2:3:4]:99", "2001:db8::/64"},
		{"[fe80::1%eth0]:99", "fe80::/64"},
		{"@", "local"},
	} {
		if got := source(test.remote); got != test.want {
			t.Errorf("source(%s) = %s, want %s", test.remote, got, test.want)
		}
	}
}

func TestBodiesAreBounded(t *testing.T) {
	w := newWorld(t)
	alice := w.operator("alice", authority.RoleAdmin)
	_, err := alice.PutPolicy(t.Context(), bytes.Repeat([]byte("# too much\n"), maxBody/10), 0)
	wantCode(t, err, CodeTooLarge)
	body := `{"host":"` + strings.Repeat("h", maxOpenBody) + `"}`
	resp, err := rawClient(t, nil).Post("https://"+w.address+"/v1/enroll", "application/json", strings.NewReader(body))
	wantStatus(t, resp, err, http.StatusRequestEntityTooLarge)
}

func TestSlots(t *testing.T) {
	s := newSlots(3, 2)
	a1, a2 := s.take("a"), s.take("a")
	if a1 == nil || a2 == nil || s.take("a") != nil {
		t.Error("want two slots for a, and no third")
	}
	if s.take("b") == nil || s.take("c") != nil {
		t.Error("want three slots in all")
	}
	a1()
	a1() // giving back twice is giving back once
	if s.take("a") == nil || s.take("a") != nil {
		t.Error("want the slot that was given back, once")
	}
}

// One source cannot take all connections.
func TestConnectionsAreBounded(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serveUntilEnd(t, Bound(listener), http.NotFoundHandler())
	for range maxConnsPer {
		conn, err := net.Dial("tcp", listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		// The answer shows that it was accepted and counted.
		if _, err := fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(conn, make([]byte, 12)); err != nil {
			t.Fatal(err)
		}
	}
	conn, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetReadDeadline(time.Now().Add(headerTimeout / 2)); err != nil {
		t.Fatal(err)
	}
	_, err = conn.Read(make([]byte, 1))
	if timeout, ok := err.(net.Error); err == nil || ok && timeout.Timeout() {
		t.Errorf("read = %v, want a closed connection", err)
	}
}
