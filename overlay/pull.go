package overlay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

const (
	pullTimeout   = 10 * time.Second
	maxPullsAhead = 256
)

// pulls are the questions to other hosts that wait or run. Questions to one host that wait are merged,
// so what a flood of hints costs is bounded by the number of hosts.
type pulls struct {
	network Network
	wake    chan struct{}

	mu      sync.Mutex
	waiting map[string]pullRequest
	busy    map[string]bool
}

func newPulls(n Network) *pulls {
	return &pulls{network: n, wake: make(chan struct{}, pullWorkers), waiting: make(map[string]pullRequest), busy: make(map[string]bool)}
}

// want queues a question to host. It never blocks.
func (p *pulls) want(host string, req pullRequest) {
	p.mu.Lock()
	if old, ok := p.waiting[host]; ok {
		req = merge(old, req)
	} else if len(p.waiting) >= maxPullsAhead {
		p.mu.Unlock()
		return // anti-entropy asks again
	}
	p.waiting[host] = req
	p.mu.Unlock()
	p.signal()
}

func (p *pulls) signal() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func merge(a, b pullRequest) pullRequest {
	if b.Have == nil {
		b.Have = a.Have
	}
	for _, w := range a.Want {
		if len(b.Want) < maxPullsAhead && !contains(b.Want, w) {
			b.Want = append(b.Want, w)
		}
	}
	return b
}

func contains(s []string, v string) bool {
	for _, x := range s {
		if x == v {
			return true
		}
	}
	return false
}

// take removes a question whose host is not being asked already.
func (p *pulls) take() (host string, req pullRequest, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for host, req := range p.waiting {
		if !p.busy[host] {
			delete(p.waiting, host)
			p.busy[host] = true
			return host, req, true
		}
	}
	return "", pullRequest{}, false
}

func (p *pulls) done(host string) {
	p.mu.Lock()
	delete(p.busy, host)
	again := len(p.waiting) > 0
	p.mu.Unlock()
	if again {
		p.signal()
	}
}

// work asks until ctx ends and hands every frame of the answers to received.
func (p *pulls) work(ctx context.Context, received func(from string, kind byte, raw []byte)) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.wake:
		}
		for {
			host, req, ok := p.take()
			if !ok {
				break
			}
			// What fails is asked again by the next hint or by anti-entropy.
			_ = p.ask(ctx, host, req, received)
			p.done(host)
			if ctx.Err() != nil {
				return
			}
		}
	}
}

func (p *pulls) ask(ctx context.Context, host string, req pullRequest, received func(string, byte, []byte)) error {
	ctx, cancel := context.WithTimeout(ctx, pullTimeout)
	defer cancel()
	stream, err := p.network.Open(ctx, host, KindPull)
	if err != nil {
		return fmt.Errorf("ask %s: %w", host, err)
	}
	defer stream.Close()
	stop := context.AfterFunc(ctx, func() { stream.Close() })
	defer stop()
	if err := writeRequest(stream, req); err != nil {
		return fmt.Errorf("ask %s: %w", host, err)
	}
	for {
		frame, err := readFrame(stream, maxAnswer)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read answer of %s: %w", host, err)
		}
		received(host, frame[0], frame[1:])
	}
}

// ServePull answers one question of another host out of the current snapshot, then closes the stream.
func (m *Mesh) ServePull(ctx context.Context, _ string, stream Stream) {
	defer stream.Close()
	if err := stream.SetDeadline(time.Now().Add(pullTimeout)); err != nil {
		return
	}
	body, err := readFrame(stream, maxRequest)
	if err != nil {
		return
	}
	req, err := parsePullRequest(body)
	if err != nil {
		return
	}
	if answerPull(stream, req, m.Snapshot()) == nil {
		_ = stream.CloseWrite()
		_, _ = io.CopyN(io.Discard, stream, 1) // the asker has read all when it closes
	}
}
