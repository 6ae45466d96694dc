package overlay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
)

const (
	pullTimeout   = 10 * time.Second
	firstAnswer   = 2 * time.Second // until the first frame: who is silent holds a worker no longer
	maxPullsAhead = 256
	maxUseless    = 8 // frames of one answer that were not asked for, are not newer or not believed

	pullPause     = 250 * time.Millisecond // after a pull that brought nothing; doubles each time
	maxPullPause  = time.Minute
	maxTrustPause = time.Second // of a control host
	recordPause   = time.Second // after a pull that brought a record: each costs a write and a plan

	servePulls        = 32 // at once
	servePullsPerHost = 2
)

var errUseless = errors.New("answer brings nothing that was asked for")

// pulls are the questions to other hosts that wait or run. Questions to one host that wait are merged, and a host
// whose answers bring nothing is asked ever more seldom, so what a hostile host costs is bounded.
type pulls struct {
	network Network
	trusted func(host string) bool // a control host, which has a worker that no other can hold up

	mu      sync.Mutex
	wake    []chan struct{} // of each worker
	waiting map[string]pullRequest
	busy    map[string]bool
	paused  map[string]pause
}

// pause is how long a host is not asked.
type pause struct {
	until  time.Time
	fails  int  // pulls in a row that brought nothing
	silent bool // the last one was not answered
}

func newPulls(n Network, trusted func(string) bool) *pulls {
	return &pulls{
		network: n, trusted: trusted,
		waiting: make(map[string]pullRequest), busy: make(map[string]bool), paused: make(map[string]pause),
	}
}

// want queues a question to host. It never blocks.
func (p *pulls) want(host string, req pullRequest) {
	p.mu.Lock()
	defer p.mu.Unlock()
	old, waits := p.waiting[host]
	if waits {
		req = merge(old, req)
	} else if len(p.waiting) >= maxPullsAhead && !p.trusted(host) {
		return // anti-entropy asks again
	}
	p.waiting[host] = req
	if pause := p.pauseOf(host); !waits || pause <= 0 { // else there is a timer already
		p.signalIn(pause)
	}
}

// pauseOf is how long a host is not asked from now on. The caller holds mu.
func (p *pulls) pauseOf(host string) time.Duration {
	last := p.paused[host]
	if !last.silent && p.trusted(host) {
		return 0 // another pull has brought it before
	}
	return time.Until(last.until)
}

// signalIn wakes all workers, now or after d. The caller holds mu.
func (p *pulls) signalIn(d time.Duration) {
	if d > 0 {
		time.AfterFunc(d, func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.signalIn(0)
		})
		return
	}
	for _, wake := range p.wake {
		select {
		case wake <- struct{}{}:
		default:
		}
	}
}

func merge(a, b pullRequest) pullRequest {
	if b.Have == nil {
		b.Have = a.Have
	}
	b.rumour = a.rumour && b.rumour
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

// take removes a question to a host that is not being asked and does not pause: one to a control host first, then to
// the host with the fewest fruitless answers.
func (p *pulls) take(onlyTrusted bool) (host string, req pullRequest, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	best := 0
	for name := range p.waiting {
		rank := p.paused[name].fails
		if p.trusted(name) {
			rank = -1
		}
		if p.busy[name] || p.pauseOf(name) > 0 || onlyTrusted && rank != -1 || ok && rank >= best {
			continue
		}
		host, best, ok = name, rank, true
	}
	if ok {
		req = p.waiting[host]
		delete(p.waiting, host)
		p.busy[host] = true
	}
	return host, req, ok
}

// done notes what a pull brought.
func (p *pulls) done(host string, brought int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.busy, host)
	last, trusted := p.paused[host], p.trusted(host)
	switch {
	case err == nil && trusted:
		delete(p.paused, host)
	case err == nil && brought > 0:
		p.paused[host] = pause{until: time.Now().Add(recordPause)}
	case err == nil: // there was nothing to bring
		p.paused[host] = pause{until: time.Now().Add(pullPause)}
	default:
		wait := min(pullPause<<min(last.fails, 10), maxPullPause)
		if trusted {
			wait = min(wait, maxTrustPause)
		}
		p.paused[host] = pause{until: time.Now().Add(wait), fails: last.fails + 1, silent: !errors.Is(err, errUseless)}
	}
	if _, again := p.waiting[host]; again {
		p.signalIn(p.pauseOf(host))
	} else if len(p.waiting) > 0 {
		p.signalIn(0)
	}
}

// work asks until ctx ends and hands every frame of the answers to received, which says whether it was of use.
func (p *pulls) work(ctx context.Context, onlyTrusted bool, received func(context.Context, *pulled) bool) {
	wake := make(chan struct{}, 1)
	p.mu.Lock()
	p.wake = append(p.wake, wake)
	p.mu.Unlock()
	for {
		host, req, ok := p.take(onlyTrusted)
		if !ok {
			select {
			case <-ctx.Done():
				return
			case <-wake:
			}
			continue
		}
		brought, err := p.ask(ctx, host, req, received)
		if brought == 0 && err == nil && req.Have == nil && !req.rumour {
			err = errUseless
		}
		p.done(host, brought, err)
		if ctx.Err() != nil {
			return
		}
	}
}

// pulled is one frame of an answer, and what it answers.
type pulled struct {
	from  string
	asked pullRequest
	seen  map[string]bool // hosts, and "" for a policy, that the answer has had already
	kind  byte
	raw   []byte
}

// ask returns how many frames were of use.
func (p *pulls) ask(ctx context.Context, host string, req pullRequest, received func(context.Context, *pulled) bool) (brought int, err error) {
	ctx, cancel := context.WithTimeout(ctx, pullTimeout)
	defer cancel()
	opening, opened := context.WithTimeout(ctx, firstAnswer)
	stream, err := p.network.Open(opening, host, KindPull)
	opened()
	if err != nil {
		return 0, fmt.Errorf("ask %s: %w", host, err)
	}
	defer stream.Close()
	stop := context.AfterFunc(ctx, func() { stream.Close() })
	defer stop()
	if err := stream.SetDeadline(time.Now().Add(firstAnswer)); err != nil {
		return 0, fmt.Errorf("ask %s: %w", host, err)
	}
	if err := writeRequest(stream, req); err != nil {
		return 0, fmt.Errorf("ask %s: %w", host, err)
	}
	seen := make(map[string]bool)
	for useless := 0; ; {
		frame, err := readFrame(stream, maxAnswer)
		if errors.Is(err, io.EOF) {
			return brought, nil
		}
		if err != nil {
			return brought, fmt.Errorf("read answer of %s: %w", host, err)
		}
		if err := stream.SetDeadline(time.Now().Add(pullTimeout)); err != nil {
			return brought, fmt.Errorf("read answer of %s: %w", host, err)
		}
		if received(ctx, &pulled{host, req, seen, frame[0], frame[1:]}) {
			brought++
		} else if useless++; useless > maxUseless {
			return 0, fmt.Errorf("read answer of %s: %w", host, errUseless)
		}
	}
}

// served bounds the answers to others.
type served struct {
	all *semaphore.Weighted

	mu   sync.Mutex
	busy map[string]int // by host
}

func newServed() *served {
	return &served{all: semaphore.NewWeighted(servePulls), busy: make(map[string]int)}
}

// begin waits for a place; nil if the host has as many as it may have, or ctx ends.
func (s *served) begin(ctx context.Context, host string) (end func()) {
	s.mu.Lock()
	if s.busy[host] >= servePullsPerHost {
		s.mu.Unlock()
		return nil
	}
	s.busy[host]++
	s.mu.Unlock()
	free := func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.busy[host]--; s.busy[host] == 0 {
			delete(s.busy, host)
		}
	}
	if s.all.Acquire(ctx, 1) != nil {
		free()
		return nil
	}
	return func() {
		s.all.Release(1)
		free()
	}
}

// ServePull answers one question of another host out of the current snapshot, then closes the stream.
func (m *Mesh) ServePull(ctx context.Context, from string, stream Stream) {
	defer stream.Close()
	ctx, cancel := context.WithTimeout(ctx, pullTimeout)
	defer cancel()
	end := m.served.begin(ctx, from)
	if end == nil {
		return
	}
	err := m.answer(stream)
	end()
	if err == nil {
		_ = stream.CloseWrite()
		_, _ = io.CopyN(io.Discard, stream, 1) // the asker has read all when it closes
	}
}

func (m *Mesh) answer(stream Stream) error {
	if err := stream.SetDeadline(time.Now().Add(firstAnswer)); err != nil {
		return err
	}
	body, err := readFrame(stream, maxRequest)
	if err != nil {
		return err
	}
	req, err := parsePullRequest(body)
	if err != nil {
		return err
	}
	if err := stream.SetDeadline(time.Now().Add(pullTimeout)); err != nil {
		return err
	}
	return answerPull(stream, req, m.Snapshot())
}
