package gossip

import (
	"context"
	"sync"
	"time"
)

const (
	checkWorkers = 16
	evidenceLife = 2 * time.Second // for which a sign of life, or its absence, counts
)

// accusations holds what others say against hosts until this host has looked for itself. Only if the
// accused does not answer us either, memberlist hears of it; so nobody can talk a host dead.
type accusations struct {
	wake chan struct{}

	mu       sync.Mutex
	waiting  []accusation        // to be checked
	checking map[string]bool     // hosts that wait or are being checked
	seen     map[string]evidence // of known hosts
}

// accusation is a suspect message about another host.
type accusation struct {
	host, from string
	message    []byte
}

type evidence struct {
	alive bool
	at    time.Time
}

type outcome int

const (
	unclear outcome = iota // it waits to be checked
	contradicted
	confirmed
)

func newAccusations() *accusations {
	return &accusations{
		wake:     make(chan struct{}, checkWorkers),
		checking: make(map[string]bool), seen: make(map[string]evidence),
	}
}

// heard notes a sign of life, or the lack of an answer.
func (a *accusations) heard(host string, alive bool, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.seen[host] = evidence{alive, now}
}

func (a *accusations) forget(host string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.seen, host)
}

// add decides from fresh evidence, or keeps the accusation until there is some.
func (a *accusations) add(c accusation, now time.Time) outcome {
	a.mu.Lock()
	defer a.mu.Unlock()
	if e, ok := a.seen[c.host]; ok && now.Sub(e.at) <= evidenceLife {
		if e.alive {
			return contradicted
		}
		return confirmed
	}
	if !a.checking[c.host] {
		a.checking[c.host] = true
		a.waiting = append(a.waiting, c)
		select {
		case a.wake <- struct{}{}:
		default:
		}
	}
	return unclear
}

func (a *accusations) next() (accusation, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.waiting) == 0 {
		return accusation{}, false
	}
	c := a.waiting[0]
	a.waiting = a.waiting[1:]
	return c, true
}

func (a *accusations) done(host string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.checking, host)
}

// work checks accusations until ctx ends.
func (a *accusations) work(ctx context.Context, check func(accusation)) error {
	for {
		for ctx.Err() == nil {
			c, ok := a.next()
			if !ok {
				break
			}
			check(c)
			a.done(c.host)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-a.wake:
		}
	}
}
