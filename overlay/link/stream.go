package link

import (
	"io"
	"time"

	"github.com/quic-go/quic-go"
)

// stream makes a QUIC stream an overlay.Stream.
type stream struct{ quic *quic.Stream }

func (s stream) Read(b []byte) (int, error)    { return s.quic.Read(b) }
func (s stream) Write(b []byte) (int, error)   { return s.quic.Write(b) }
func (s stream) CloseWrite() error             { return s.quic.Close() }
func (s stream) SetDeadline(t time.Time) error { return s.quic.SetDeadline(t) }

// Close ends both sides. What was written is still delivered, what was not read is not.
func (s stream) Close() error {
	s.quic.CancelRead(codeStreamClosed)
	return s.quic.Close()
}

// abort ends both sides and lets the other know that it was not orderly.
func (s stream) abort(code quic.StreamErrorCode) {
	s.quic.CancelRead(code)
	s.quic.CancelWrite(code)
}

// readKind reads the first byte of a stream.
func readKind(r io.Reader) (byte, error) {
	var kind [1]byte
	_, err := io.ReadFull(r, kind[:])
	return kind[0], err
}

const (
	codeStreamClosed quic.StreamErrorCode = iota
	codeUnknownKind
	codeNoKind
	codeNotTrusted
)

const (
	codeShutdown   quic.ApplicationErrorCode = iota // this process ends
	codeReplaced                                    // there is a newer connection
	codeRefused                                     // certificate not valid, or not any more
	codeUnexpected                                  // the peer broke the protocol
)
