package overlaytest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bulkhead-mesh/bulkhead/overlay"
)

// inNetwork runs a test with hosts a, b and c; got returns what a host received, as "from payload".
func inNetwork(t *testing.T, test func(t *testing.T, n *Network, nodes map[string]*Node, got func(string) []string)) {
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork()
		defer n.Close()
		nodes, received := make(map[string]*Node), make(map[string][]string)
		for _, name := range []string{"a", "b", "c"} {
			nodes[name] = n.Node(name)
			nodes[name].OnDatagram(overlay.KindHint, func(from string, payload []byte) {
				received[name] = append(received[name], from+" "+string(payload))
			})
			nodes[name].OnStream(overlay.KindPull, func(_ context.Context, from string, s overlay.Stream) {
				request, err := io.ReadAll(s)
				if err == nil {
					_, _ = s.Write(append([]byte(from+" "), request...))
				}
			})
		}
		test(t, n, nodes, func(name string) []string {
			synctest.Wait()
			defer delete(received, name)
			return received[name]
		})
	})
}

func TestDatagramsArriveInOrder(t *testing.T) {
	inNetwork(t, func(t *testing.T, n *Network, nodes map[string]*Node, got func(string) []string) {
		payload := []byte("1")
		_ = nodes["a"].Send("b", overlay.KindHint, payload)
		payload[0] = '2' // the sender's buffer is its own
		_ = nodes["a"].Send("b", overlay.KindHint, payload)
		_ = nodes["a"].Send("b", overlay.KindGossip, payload) // no handler
		_ = nodes["a"].Send("nobody", overlay.KindHint, payload)
		if g := got("b"); !slices.Equal(g, []string{"a 1", "a 2"}) {
			t.Errorf("got %q", g)
		}
		if err := nodes["a"].Send("b", overlay.KindHint, make([]byte, maxDatagram+1)); err == nil {
			t.Error("a datagram that is too long is sent")
		}
	})
}

func TestDropPartitionRemove(t *testing.T) {
	inNetwork(t, func(t *testing.T, n *Network, nodes map[string]*Node, got func(string) []string) {
		reaches := func(from, to string) bool {
			t.Helper()
			_ = nodes[from].Send(to, overlay.KindHint, nil)
			s, err := nodes[from].Open(t.Context(), to, overlay.KindPull)
			datagram := len(got(to)) == 1
			if datagram != (err == nil) {
				t.Errorf("%s to %s: datagram %v, stream %v", from, to, datagram, err)
			}
			if err == nil {
				_ = s.Close()
			}
			return datagram
		}
		n.Partition([]string{"a", "b"})
		if !reaches("a", "b") || reaches("a", "c") || reaches("c", "b") {
			t.Error("the partition is not between a, b and c")
		}
		n.Heal()
		if !reaches("a", "c") {
			t.Error("the partition did not heal")
		}
		n.Drop(func(from, to string, _ overlay.Kind, _ []byte) bool { return to == "b" })
		_ = nodes["a"].Send("b", overlay.KindHint, nil)
		_ = nodes["b"].Send("a", overlay.KindHint, nil)
		if len(got("b")) != 0 || len(got("a")) != 1 {
			t.Error("drop does not lose exactly what it shall")
		}
		n.Drop(nil)
		n.Remove("b")
		if reaches("a", "b") || reaches("b", "a") {
			t.Error("a removed host is reached, or reaches others")
		}
	})
}

func TestStreams(t *testing.T) {
	inNetwork(t, func(t *testing.T, n *Network, nodes map[string]*Node, _ func(string) []string) {
		s, err := nodes["a"].Open(t.Context(), "b", overlay.KindPull)
		if err != nil {
			t.Fatal(err)
		}
		request := bytes.Repeat([]byte("0123456789"), streamBuffer/4) // more than fits in flight
		if _, err := s.Write(request); err != nil {
			t.Fatal(err)
		}
		if err := s.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		answer, err := io.ReadAll(s)
		if err != nil || string(answer) != "a "+string(request) {
			t.Errorf("%d bytes back, %v", len(answer), err)
		}
		if _, err := s.Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("write after CloseWrite: %v", err)
		}
	})
}

func TestStreamDeadline(t *testing.T) {
	inNetwork(t, func(t *testing.T, n *Network, nodes map[string]*Node, _ func(string) []string) {
		s, err := nodes["a"].Open(t.Context(), "b", overlay.KindPull)
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		_ = s.SetDeadline(start.Add(time.Second))
		_ = s.SetDeadline(start.Add(5 * time.Second))
		if _, err := s.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != 5*time.Second {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		_ = s.SetDeadline(time.Time{})
		if _, err := s.Write([]byte("x")); err != nil {
			t.Errorf("write without deadline: %v", err)
		}
	})
}

func TestPartitionBreaksStreams(t *testing.T) {
	inNetwork(t, func(t *testing.T, n *Network, nodes map[string]*Node, _ func(string) []string) {
		across, err := nodes["a"].Open(t.Context(), "c", overlay.KindPull)
		if err != nil {
			t.Fatal(err)
		}
		within, err := nodes["a"].Open(t.Context(), "b", overlay.KindPull)
		if err != nil {
			t.Fatal(err)
		}
		n.Partition([]string{"a", "b"})
		if _, err := across.Read(make([]byte, 1)); !errors.Is(err, ErrUnreachable) {
			t.Errorf("read across: %v", err)
		}
		if _, err := within.Write([]byte("x")); err != nil {
			t.Errorf("write within: %v", err)
		}
	})
}
