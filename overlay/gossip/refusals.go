package gossip

import (
	"encoding/hex"
	"log/slog"
	"sync"
	"time"
)

const (
	refusalLogEvery = 30 * time.Second // per host and reason
	maxRefusalNotes = 4096
	maxEvidence     = 96 // bytes of a refused message in the log
)

// harmless are the reasons that an honest host gives too: while records spread, when answers are late.
var harmless = map[reason]bool{
	reasonUnknownSender: true, reasonUnknownHost: true, reasonUnasked: true, reasonDuplicate: true,
	reasonAhead: true, reasonBusy: true, reasonStopped: true,
}

const (
	reasonBusy    reason = "busy"    // more than one host may ask for, or than we can take now
	reasonStopped reason = "stopped" // not running
)

// refusals counts what was refused, and names in the log who sent it, with the bytes.
type refusals struct {
	log *slog.Logger

	mu     sync.Mutex
	counts map[reason]uint64
	noted  map[refusalNote]time.Time
}

type refusalNote struct {
	from   string
	reason reason
}

func newRefusals(log *slog.Logger) *refusals {
	return &refusals{log: log, counts: make(map[reason]uint64), noted: make(map[refusalNote]time.Time)}
}

func (r *refusals) add(from string, why reason, evidence []byte) {
	if !r.count(from, why) {
		return
	}
	r.log.Warn("refused gossip", "host", from, "reason", string(why),
		"message", hex.EncodeToString(evidence[:min(len(evidence), maxEvidence)]), "length", len(evidence))
}

// count says whether the refusal shall be logged.
func (r *refusals) count(from string, why reason) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.counts[why]++
	if harmless[why] {
		return false
	}
	now := time.Now()
	note := refusalNote{from, why}
	if now.Sub(r.noted[note]) < refusalLogEvery {
		return false
	}
	if len(r.noted) >= maxRefusalNotes {
		clear(r.noted)
	}
	r.noted[note] = now
	return true
}

func (r *refusals) stats() map[string]uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make(map[string]uint64, len(r.counts))
	for why, n := range r.counts {
		out[string(why)] = n
	}
	return out
}
