package overlaytest

import (
	"io"
	"os"
	"sync"
	"time"

	"github.com/bulkhead-mesh/bulkhead/overlay"
)

const streamBuffer = 256 << 10 // bytes in flight in one direction

// Stream is one end of a stream in memory.
type Stream struct {
	in, out *half
}

var _ overlay.Stream = (*Stream)(nil)

// Pipe returns the two ends of a stream.
func Pipe() (a, b *Stream) {
	there, back := newHalf(), newHalf()
	return &Stream{in: back, out: there}, &Stream{in: there, out: back}
}

// Read returns io.EOF after the other side's CloseWrite or Close, os.ErrDeadlineExceeded after the deadline.
func (s *Stream) Read(p []byte) (int, error) { return s.in.read(p) }

// Write blocks while too much is in flight.
func (s *Stream) Write(p []byte) (int, error) { return s.out.write(p) }

// CloseWrite lets the other side read to the end of what was written.
func (s *Stream) CloseWrite() error {
	s.out.end(io.ErrClosedPipe)
	return nil
}

// Close also refuses what the other side has not sent yet.
func (s *Stream) Close() error {
	s.out.end(io.ErrClosedPipe)
	s.in.fail(io.ErrClosedPipe)
	return nil
}

// SetDeadline bounds this end's reads and writes; zero ends that.
func (s *Stream) SetDeadline(t time.Time) error {
	s.in.setDeadline(&s.in.readBy, t)
	s.out.setDeadline(&s.out.writeBy, t)
	return nil
}

func (s *Stream) abort(err error) {
	s.in.fail(err)
	s.out.fail(err)
}

// half is one direction.
type half struct {
	mu              sync.Mutex
	changed         *sync.Cond
	buf             []byte
	ended           bool  // no more will be written
	writeErr        error // why, for the writer
	failed          error // nothing can be read or written any more
	readBy, writeBy deadline
}

type deadline struct {
	timer   *time.Timer
	expired bool
}

func newHalf() *half {
	h := &half{}
	h.changed = sync.NewCond(&h.mu)
	return h
}

func (h *half) read(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		switch {
		case h.failed != nil:
			return 0, h.failed
		case h.readBy.expired:
			return 0, os.ErrDeadlineExceeded
		case len(h.buf) > 0:
			n := copy(p, h.buf)
			h.buf = h.buf[n:]
			h.changed.Broadcast()
			return n, nil
		case h.ended:
			return 0, io.EOF
		}
		h.changed.Wait()
	}
}

func (h *half) write(p []byte) (n int, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		switch {
		case h.failed != nil:
			return n, h.failed
		case h.ended:
			return n, h.writeErr
		case h.writeBy.expired:
			return n, os.ErrDeadlineExceeded
		case len(p) == 0:
			return n, nil
		}
		if room := min(streamBuffer-len(h.buf), len(p)); room > 0 {
			h.buf = append(h.buf, p[:room]...)
			p, n = p[room:], n+room
			h.changed.Broadcast()
			continue
		}
		h.changed.Wait()
	}
}

func (h *half) end(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.ended {
		h.ended, h.writeErr = true, err
	}
	h.changed.Broadcast()
}

func (h *half) fail(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.failed == nil {
		h.failed, h.buf = err, nil
	}
	h.changed.Broadcast()
}

func (h *half) setDeadline(d *deadline, t time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
	}
	d.timer, d.expired = nil, false
	if t.IsZero() {
		return
	}
	var timer *time.Timer
	timer = time.AfterFunc(time.Until(t), func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if d.timer == timer { // not replaced meanwhile
			d.expired = true
			h.changed.Broadcast()
		}
	})
	d.timer = timer
}
