package api

import (
	"context"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

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

// pipes is a listener whose connections are in memory.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	close  sync.Once
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { p.close.Do(func() { close(p.closed) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }

func (p *pipes) dial(context.Context, string, string) (net.Conn, error) {
	client, server := net.Pipe()
	p.conns <- server
	return client, nil
}

// A stream outlives the timeouts that other requests have, however seldom something happens.
func TestEventStreamsLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		local := &fakeLocal{events: make(chan Event)}
		listener := &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}
		ctx, stop := context.WithCancel(t.Context())
		served := make(chan error, 1)
		go func() {
			served <- Serve(ctx, listener, New(Options{Local: local}).Socket(func(*http.Request) authority.Principal { return root }), quiet)
		}()
		transport := &http.Transport{DialContext: listener.dial}
		client := &Client{base: "http://local", http: &http.Client{Transport: transport}}
		happening := make(chan struct{})
		go func() {
			defer close(happening)
			for range 3 {
				time.Sleep(time.Hour)
				local.events <- Event{Kind: EventHostAlive}
			}
		}()
		seen := 0
		err := client.Events(ctx, func(Event) error {
			if seen++; seen == 4 {
				return errEnough
			}
			return nil
		})
		if !errors.Is(err, errEnough) {
			t.Errorf("Events = %v after %d events", err, seen)
			stop()
		}
		<-happening
		stop()
		if err := <-served; err != nil {
			t.Errorf("Serve = %v", err)
		}
		transport.CloseIdleConnections()
	})
}
