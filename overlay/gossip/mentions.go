package gossip

import (
	"sync"
	"time"
)

const (
	maxMentions   = 4096
	mentionRetell = 10 * time.Second
)

// mentions keeps the last message about each host that is not known yet, so that it can take effect at
// once when the host's record is verified. Whoever mentions most loses first, so nobody can crowd out others.
type mentions struct {
	mu     sync.Mutex
	byHost map[string]*kept
	byFrom map[string]map[string]bool // hosts by who mentioned them
}

type kept struct {
	from    string
	message []byte
	told    time.Time
}

func newMentions() *mentions {
	return &mentions{byHost: make(map[string]*kept), byFrom: make(map[string]map[string]bool)}
}

// put keeps m and says whether it is news that the owner should be told.
func (s *mentions) put(from string, m mention, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.byHost[m.host]
	if k == nil {
		if len(s.byHost) >= maxMentions {
			s.evict()
		}
		k = &kept{}
		s.byHost[m.host] = k
	}
	// A host's own wish to talk to us is worth more than what others say of it.
	if m.message == nil || k.from != m.host {
		s.unlink(m.host, k.from)
		k.from = from
		if s.byFrom[from] == nil {
			s.byFrom[from] = make(map[string]bool)
		}
		s.byFrom[from][m.host] = true
	}
	if m.message != nil {
		k.message = m.message
	}
	if now.Sub(k.told) < mentionRetell {
		return false
	}
	k.told = now
	return true
}

// take returns and forgets what is kept about host: who spoke of it last, and the message if there is one.
func (s *mentions) take(host string) (from string, message []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.byHost[host]
	if k == nil {
		return "", nil
	}
	s.remove(host, k)
	return k.from, k.message
}

func (s *mentions) evict() {
	var most string
	for from, hosts := range s.byFrom {
		if len(hosts) > len(s.byFrom[most]) {
			most = from
		}
	}
	for host := range s.byFrom[most] {
		s.remove(host, s.byHost[host])
		return
	}
}

func (s *mentions) remove(host string, k *kept) {
	delete(s.byHost, host)
	s.unlink(host, k.from)
}

func (s *mentions) unlink(host, from string) {
	delete(s.byFrom[from], host)
	if len(s.byFrom[from]) == 0 {
		delete(s.byFrom, from)
	}
}

func (s *mentions) size() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.byHost)
}
