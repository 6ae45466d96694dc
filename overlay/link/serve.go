package link

import (
	"context"
	"errors"
	"time"

	"github.com/bulkhead-mesh/bulkhead/overlay"
	"github.com/quic-go/quic-go"
)

// sendDatagrams empties a host's queue into one connection until ctx ends, as it does when a newer
// connection takes over.
func (l *Link) sendDatagrams(ctx context.Context, queue <-chan []byte, c *connection) {
	for {
		select {
		case <-ctx.Done():
			return
		case datagram := <-queue:
			err := c.quic.SendDatagram(datagram)
			if _, ok := errors.AsType[*quic.DatagramTooLargeError](err); ok {
				l.counters.sendTooLarge.Add(1)
			} else if err != nil {
				l.counters.sendDropped.Add(1)
			}
		}
	}
}

// receiveDatagrams hands datagrams to their handlers until the connection ends.
func (l *Link) receiveDatagrams(c *connection) {
	for {
		datagram, err := c.quic.ReceiveDatagram(c.quic.Context())
		if err != nil {
			return
		}
		l.deliver(c.host, datagram)
	}
}

// deliver counts what has no kind or one that nobody handles.
func (l *Link) deliver(host string, datagram []byte) {
	if len(datagram) > 0 {
		if handle := l.datagrams[overlay.Kind(datagram[0])]; handle != nil {
			handle(host, datagram[1:])
			return
		}
	}
	l.counters.unknownKind.Add(1)
}

// acceptStreams starts a handler for each stream, at most maxStreams at a time. QUIC's own limit does
// not count a stream that the peer has reset while its handler is still at work.
func (l *Link) acceptStreams(c *connection) {
	slots := make(chan struct{}, maxStreams)
	ctx := c.quic.Context()
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		s, err := c.quic.AcceptStream(ctx)
		if err != nil {
			return
		}
		if !l.spawn(func(context.Context) {
			defer func() { <-slots }()
			l.serveStream(ctx, c, stream{s})
		}) {
			return
		}
	}
}

// serveStream trusts nothing that was verified when the connection began: it may be long ago.
func (l *Link) serveStream(ctx context.Context, c *connection, s stream) {
	_ = s.quic.SetReadDeadline(time.Now().Add(kindTimeout))
	kind, err := readKind(s)
	if err != nil {
		s.abort(codeNoKind)
		return
	}
	_ = s.quic.SetReadDeadline(time.Time{})
	handle := l.streams[overlay.Kind(kind)]
	if handle == nil {
		l.counters.unknownKind.Add(1)
		s.abort(codeUnknownKind)
		return
	}
	if err := l.stillTrusted(c); err != nil {
		s.abort(codeNotTrusted)
		return
	}
	handle(ctx, c.host, s)
	_ = s.Close()
}
