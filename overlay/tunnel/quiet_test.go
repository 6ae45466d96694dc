package tunnel

import (
	"testing"

	"golang.zx2c4.com/wireguard/tun"
)

// eventTUN reports what the test says.
type eventTUN struct {
	tun.Device
	events chan tun.Event
}

func (e eventTUN) Events() <-chan tun.Event { return e.events }

func TestQuietTUNHidesUpAndDown(t *testing.T) {
	native := eventTUN{events: make(chan tun.Event)}
	q := newQuietTUN(native)
	for _, event := range []tun.Event{tun.EventUp, tun.EventDown, tun.EventMTUUpdate, tun.EventDown, tun.EventMTUUpdate} {
		native.events <- event // never blocks for long, although nobody reads the other end
	}
	close(native.events)
	q.wait()
	var got []tun.Event
	for event := range q.Events() {
		got = append(got, event)
	}
	if len(got) != 1 || got[0] != tun.EventMTUUpdate {
		t.Errorf("events are %v, want one change of the MTU", got)
	}
}
