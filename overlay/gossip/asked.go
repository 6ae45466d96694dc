package gossip

import (
	"slices"
	"sync"
	"time"
)

const (
	answerTime = 10 * time.Second // longer than any probe takes
	maxAsked   = 16384
)

// asked remembers which hosts owe an answer to which ping, so that nobody can keep a dead host alive
// by answering in its place.
type asked struct {
	mu     sync.Mutex
	probes map[uint32]probe
	swept  time.Time
}

type probe struct {
	hosts []string
	at    time.Time
}

// note looks for a ping in a packet of ours to host.
func (a *asked) note(host string, packet []byte, now time.Time) {
	inner, err := stripCRC(packet)
	if err != nil {
		return
	}
	parts, err := split(inner)
	if err != nil {
		return
	}
	for _, part := range parts {
		var m nack // of either ping, only the sequence number
		if kind := messageType(part[0]); kind != pingType && kind != indirectPingType {
			continue
		}
		if decode(part[1:], &m) == nil {
			a.add(m.SeqNo, host, now)
		}
	}
}

func (a *asked) add(seq uint32, host string, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.probes == nil || len(a.probes) >= maxAsked {
		a.probes = make(map[uint32]probe)
	}
	if now.Sub(a.swept) > answerTime {
		a.swept = now
		for seq, p := range a.probes {
			if now.Sub(p.at) > answerTime {
				delete(a.probes, seq)
			}
		}
	}
	p := a.probes[seq]
	a.probes[seq] = probe{append(p.hosts, host), now}
}

// due says whether from was asked with seq a short time ago.
func (a *asked) due(seq uint32, from string, now time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	p, ok := a.probes[seq]
	return ok && now.Sub(p.at) <= answerTime && slices.Contains(p.hosts, from)
}
