package tunnel

import (
	"sync"

	"golang.zx2c4.com/wireguard/tun"
)

// quietTUN hides from the device that the interface goes up or down: the device would close and reopen
// the socket each time, under QUIC's feet. Changes of the MTU still pass.
type quietTUN struct {
	tun.Device
	events  chan tun.Event
	forward sync.WaitGroup
}

func newQuietTUN(native tun.Device) *quietTUN {
	q := &quietTUN{Device: native, events: make(chan tun.Event, 1)}
	q.forward.Go(func() {
		defer close(q.events)
		for event := range native.Events() {
			if event&tun.EventMTUUpdate == 0 {
				continue
			}
			select {
			case q.events <- tun.EventMTUUpdate:
			default: // one is waiting already
			}
		}
	})
	return q
}

func (q *quietTUN) Events() <-chan tun.Event { return q.events }

// wait returns once the TUN is closed and no event comes any more.
func (q *quietTUN) wait() { q.forward.Wait() }
