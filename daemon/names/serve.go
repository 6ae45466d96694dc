package names

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/miekg/dns"
)

const (
	readTimeout = 5 * time.Second
	maxQueries  = 128  // on one TCP connection
	udpAnswer   = 1232 // bytes, as DNS flag day 2020 says
	bindAgain   = time.Second
	patience    = 10 // tries until it is worth a word
)

// keep serves at an address, again whenever it was away.
func (s *Server) keep(ctx context.Context, network string, at netip.AddrPort) {
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = 20*time.Millisecond, bindAgain
	for tries := 0; ctx.Err() == nil; tries++ {
		err := s.serve(ctx, network, at, pause.Reset)
		if err != nil && ctx.Err() == nil && tries == patience { // once: the interface may be away for long
			s.options.Logger.Warn("DNS does not serve", "address", at, "network", network, "error", err)
		}
		wait(ctx, pause.NextBackOff())
	}
}

// wait ends after d, or with ctx.
func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// serve answers at an address until ctx ends or it fails.
func (s *Server) serve(ctx context.Context, network string, at netip.AddrPort, served func()) error {
	started, ended := make(chan struct{}), make(chan error, 1)
	server := &dns.Server{
		Net: network, UDPSize: udpAnswer, ReadTimeout: readTimeout, WriteTimeout: readTimeout, MaxTCPQueries: maxQueries,
		Handler: dns.HandlerFunc(func(w dns.ResponseWriter, query *dns.Msg) { s.handle(ctx, w, query) }),
		NotifyStartedFunc: func() {
			close(started)
			served()
			s.served()
		},
	}
	var socket io.Closer
	if network == "udp" {
		conn, err := (&net.ListenConfig{}).ListenPacket(ctx, "udp", at.String())
		if err != nil {
			return err
		}
		server.PacketConn, socket = conn, conn
	} else {
		listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", at.String())
		if err != nil {
			return err
		}
		server.Listener, socket = bounded{listener, &s.talking}, listener
	}
	go func() { ended <- server.ActivateAndServe() }()
	select {
	case <-started: // only then it can be shut down
	case err := <-ended:
		return errors.Join(err, socket.Close())
	}
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return errors.Join(server.Shutdown(), <-ended)
	}
}

// handle answers one query.
func (s *Server) handle(ctx context.Context, w dns.ResponseWriter, query *dns.Msg) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	answer := s.answer(ctx, addrOf(w.RemoteAddr()), query)
	size := dns.MaxMsgSize
	if _, udp := w.RemoteAddr().(*net.UDPAddr); udp {
		size = dns.MinMsgSize
		if opt := query.IsEdns0(); opt != nil {
			size = min(max(size, int(opt.UDPSize())), udpAnswer)
		}
	}
	answer.Truncate(size)
	if err := w.WriteMsg(answer); err != nil {
		s.options.Logger.Debug("answer DNS query", "error", err)
	}
}
