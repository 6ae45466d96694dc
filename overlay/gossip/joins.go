package gossip

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

const (
	joinWorkers  = 4
	joinAtOnce   = 3 // hosts per round of rejoin
	maxWanted    = 1024
	rejoinEvery  = 10 * time.Second
	rejoinJitter = 5 * time.Second
)

// joins is the set of hosts to have a full exchange with; each is in it, or being joined, once.
type joins struct {
	wake chan struct{}

	mu      sync.Mutex
	waiting []string
	busy    map[string]bool
	wanted  map[string]bool // asked for, not known yet
}

func newJoins() *joins {
	return &joins{wake: make(chan struct{}, joinWorkers), busy: make(map[string]bool), wanted: make(map[string]bool)}
}

func (j *joins) add(host string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.wanted, host)
	if j.busy[host] || slices.Contains(j.waiting, host) {
		return
	}
	j.waiting = append(j.waiting, host)
	select {
	case j.wake <- struct{}{}:
	default:
	}
}

// want remembers a host that cannot be joined before its record is known.
func (j *joins) want(host string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.wanted) < maxWanted {
		j.wanted[host] = true
	}
}

func (j *joins) isWanted(host string) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.wanted[host]
}

func (j *joins) next() (string, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.waiting) == 0 {
		return "", false
	}
	host := j.waiting[0]
	j.waiting = j.waiting[1:]
	j.busy[host] = true
	return host, true
}

func (j *joins) done(host string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.busy, host)
}

// work joins hosts until ctx ends.
func (j *joins) work(ctx context.Context, join func(host string)) error {
	for {
		for ctx.Err() == nil {
			host, ok := j.next()
			if !ok {
				break
			}
			join(host)
			j.done(host)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-j.wake:
		}
	}
}

// rejoin adds some of the absent hosts for ever, so that a split mesh grows together by itself.
func (j *joins) rejoin(ctx context.Context, absent func() []string) error {
	for {
		hosts := absent()
		rand.Shuffle(len(hosts), func(a, b int) { hosts[a], hosts[b] = hosts[b], hosts[a] })
		for _, host := range hosts[:min(len(hosts), joinAtOnce)] {
			j.add(host)
		}
		pause := time.NewTimer(rejoinEvery + rand.N(rejoinJitter))
		select {
		case <-ctx.Done():
			pause.Stop()
			return nil
		case <-pause.C:
		}
	}
}
