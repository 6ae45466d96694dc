package overlay

import "sync"

// hinted holds what hosts say until the loop takes it: the newest of each host, so that one that says much takes no
// room from the others.
type hinted struct {
	wake chan struct{}

	mu      sync.Mutex
	direct  map[string]Hint // by the hosts themselves
	rumours map[string]Hint // by others
}

func newHinted() *hinted {
	return &hinted{wake: make(chan struct{}, 1), direct: make(map[string]Hint), rumours: make(map[string]Hint)}
}

func (h *hinted) put(host string, hint Hint, direct bool) {
	h.mu.Lock()
	if direct {
		h.direct[host] = hint
	} else {
		h.rumours[host] = hint
	}
	h.mu.Unlock()
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// take empties both.
func (h *hinted) take() (direct, rumours map[string]Hint) {
	h.mu.Lock()
	defer h.mu.Unlock()
	direct, rumours = h.direct, h.rumours
	h.direct, h.rumours = make(map[string]Hint), make(map[string]Hint)
	return direct, rumours
}
