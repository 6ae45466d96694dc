package gossip

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	messageRate      = 500 // per second and host; a busy mesh of thousands stays below
	messageBurst     = 1000
	streamsPerSender = 2
	maxStreams       = 64
	maxSenders       = 16384
)

// senders bounds what one host can ask of us, so that a flood costs its sender alone.
type senders struct {
	mu      sync.Mutex
	byHost  map[string]*sender
	streams int
}

type sender struct {
	limit   *rate.Limiter
	streams int
}

func newSenders() *senders { return &senders{byHost: make(map[string]*sender)} }

// allow says whether host may have n more messages processed now.
func (s *senders) allow(host string, n int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.getLocked(host).limit.AllowN(time.Now(), n)
}

// enter takes a place for a stream of host, if there is one; leave gives it back.
func (s *senders) enter(host string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	who := s.getLocked(host)
	if s.streams >= maxStreams || who.streams >= streamsPerSender || !who.limit.AllowN(time.Now(), streamCost) {
		return false
	}
	s.streams++
	who.streams++
	return true
}

func (s *senders) leave(host string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.streams--
	if who := s.byHost[host]; who != nil && who.streams > 0 {
		who.streams--
	}
}

// forget drops the limits of a host that no longer takes part.
func (s *senders) forget(host string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.byHost, host)
}

func (s *senders) getLocked(host string) *sender {
	who := s.byHost[host]
	if who == nil {
		if len(s.byHost) >= maxSenders {
			clear(s.byHost)
		}
		who = &sender{limit: rate.NewLimiter(messageRate, messageBurst)}
		s.byHost[host] = who
	}
	return who
}
