package api

import (
	"context"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"

	"github.com/bulkhead-mesh/bulkhead/control/authority"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// onSocket serves a host without authority on a local socket.
func onSocket(t *testing.T, o Options, p authority.Principal) *Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	serveUntilEnd(t, listener, New(o).Socket(func(*http.Request) authority.Principal { return p }))
	c, err := Dial(DialOptions{Socket: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

var errEnough = errors.New("enough")

func TestEventsArrive(t *testing.T) {
	local := &fakeLocal{events: make(chan Event)}
	client := onSocket(t, Options{Local: local}, root)
	var got []Event
	err := client.Events(t.Context(), func(e Event) error {
		got = append(got, e)
		if len(got) == 2 {
			return errEnough
		}
		go func() { local.events <- Event{Kind: EventHostDead, Host: "h2", Message: "silent\nfor long"} }() // taken by the stream that is open
		return nil
	})
	if !errors.Is(err, errEnough) {
		t.Fatal(err)
	}
	if got[0].Kind != EventPhase || got[1].Kind != EventHostDead || got[1].Message != "silent\nfor long" {
		t.Errorf("events = %+v", got)
	}
}

func TestEventStreamsAreBounded(t *testing.T) {
	local := &fakeLocal{events: make(chan Event)}
	client := onSocket(t, Options{Local: local}, root)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, maxStreamsP)
	listening := make(chan struct{})
	for range maxStreamsP {
		go func() {
			ended <- client.Events(ctx, func(Event) error {
				listening <- struct{}{}
				return nil
			})
		}()
	}
	for range maxStreamsP {
		<-listening
	}
	wantCode(t, client.Events(t.Context(), func(Event) error { return nil }), CodeRateLimited)
	stop()
	for range maxStreamsP {
		if err := <-ended; err != nil {
			t.Errorf("Events = %v, want nil on cancellation", err)
		}
	}
}
