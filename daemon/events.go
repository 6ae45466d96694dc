package daemon

import (
	"context"
	"sync"
	"time"

	"github.com/bulkhead-mesh/bulkhead/control/api"
)

const eventsAhead = 64 // a listener this far behind misses events

// events passes what happens to those who listen. It is safe for concurrent use.
type events struct {
	mu        sync.Mutex
	listeners map[chan api.Event]struct{}
}

func newEvents() *events { return &events{listeners: make(map[chan api.Event]struct{})} }

func (e *events) emit(event api.Event) {
	event.Time = time.Now().UTC()
	e.mu.Lock()
	defer e.mu.Unlock()
	for l := range e.listeners {
		select {
		case l <- event:
		default:
		}
	}
}

// listen gives events until ctx ends; then the channel is closed.
func (e *events) listen(ctx context.Context) <-chan api.Event {
	l := make(chan api.Event, eventsAhead)
	e.mu.Lock()
	e.listeners[l] = struct{}{}
	e.mu.Unlock()
	context.AfterFunc(ctx, func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		delete(e.listeners, l)
		close(l)
	})
	return l
}
