package names

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// Over real sockets each hears, by its address, what it may know.
func TestServesOverUDPAndTCP(t *testing.T) {
	at := run(t, (&phonebook{}).options())
	for _, network := range []string{"udp", "tcp"} {
		for asker, want := range map[netip.Addr]string{scout: "NOERROR, A 10.201.0.7", guest: "NXDOMAIN", nobody: "REFUSED"} {
			m, err := exchangeFrom(asker, network, at, new(dns.Msg).SetQuestion("vEc1.acme.example.internal.", dns.TypeA))
			if err != nil {
				t.Fatalf("%s: %v", network, err)
			}
			if got := said(m); got != want {
				t.Errorf("%s asks over %s: got %q, want %q", asker, network, got, want)
			}
			if len(m.Answer) > 0 && m.Answer[0].Header().Name != "vEc1.acme.example.internal." {
				t.Errorf("the name comes back as %s", m.Answer[0].Header().Name)
			}
		}
	}
}

// What does not fit a datagram is cut, says so, and comes whole over TCP.
func TestLongAnswersGoOverTCP(t *testing.T) {
	var records []string
	for i := range maxAddrs + 4 {
		records = append(records, fmt.Sprintf("many.example.org. 60 IN AAAA 2001:db8::%x", i+1))
	}
	p := &phonebook{}
	o := p.options()
	o.Upstream = []netip.AddrPort{upstream(t, zoneOf(t, map[string][]string{"many.example.org.": records}))}
	at := run(t, o)
	for _, tt := range []struct {
		network string
		edns    uint16
		whole   bool
	}{{"udp", 0, false}, {"udp", 100, false}, {"udp", 1232, true}, {"udp", 65000, true}, {"tcp", 0, true}} {
		q := new(dns.Msg).SetQuestion("many.example.org.", dns.TypeAAAA)
		size := dns.MinMsgSize
		if tt.edns > 0 {
			q.SetEdns0(tt.edns, false)
			size = min(max(size, int(tt.edns)), udpAnswer)
		}
		m, err := exchangeFrom(scout, tt.network, at, q)
		if err != nil {
			t.Fatal(err)
		}
		m.Compress = true // as it came
		if m.Truncated == tt.whole || tt.whole != (len(m.Answer) == maxAddrs) || tt.network == "udp" && m.Len() > size {
			t.Errorf("over %s with EDNS0 %d: %d records, %d bytes, truncated: %t", tt.network, tt.edns, len(m.Answer), m.Len(), m.Truncated)
		}
	}
}

// The interface may come later than the daemon: an address that cannot be bound is tried again.
func TestWaitsForItsAddress(t *testing.T) {
	at := freePort(t)
	blocker, err := net.ListenPacket("udp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	tries := make(chan struct{}, 1)
	o := (&phonebook{}).options()
	o.Listen = []netip.AddrPort{at}
	o.Logger = slog.New(warned{slog.DiscardHandler, tries})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- New(o).Run(ctx) }()
	select {
	case <-tries: // it says so once
	case <-time.After(20 * time.Second):
		t.Error("it does not say that it cannot serve")
	}
	if err := blocker.Close(); err != nil {
		t.Error(err)
	}
	waitServed(t, at)
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// warned notes that a warning was logged.
type warned struct {
	slog.Handler
	warning chan struct{}
}

func (w warned) Enabled(context.Context, slog.Level) bool { return true }

func (w warned) Handle(_ context.Context, r slog.Record) error {
	if r.Level >= slog.LevelWarn {
		select {
		case w.warning <- struct{}{}:
		default:
		}
	}
	return nil
}

// A server that is stopped at once, or never had an address, still ends.
func TestEndsWhenStoppedEarly(t *testing.T) {
	for range 50 {
		o := (&phonebook{}).options()
		o.Listen = []netip.AddrPort{netip.AddrPortFrom(scout, 0), netip.MustParseAddrPort("192.0.2.1:53")}
		ctx, cancel := context.WithCancel(t.Context())
		s := New(o)
		ended := make(chan error, 1)
		go func() { ended <- s.Run(ctx) }()
		<-s.serving
		cancel()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
	}
}

// One address cannot take all TCP connections.
func TestConnectionsOfOneAddressAreBounded(t *testing.T) {
	at := run(t, (&phonebook{}).options())
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: guest.AsSlice()}}
	dial := func() net.Conn {
		conn, err := dialer.DialContext(t.Context(), "tcp", at.String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	conns := make([]net.Conn, maxTalking)
	for i := range conns {
		conns[i] = dial()
	}
	late := dial()
	if err := late.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := late.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("one connection too many: %v", err)
	}
	if _, err := exchangeFrom(scout, "tcp", at, new(dns.Msg).SetQuestion("vec1.acme.example.internal.", dns.TypeA)); err != nil {
		t.Errorf("another address: %v", err)
	}
	if err := conns[0].Close(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for ctx.Err() == nil {
		_, err := exchangeFrom(guest, "tcp", at, new(dns.Msg).SetQuestion("vec1.acme.example.internal.", dns.TypeA))
		if err == nil {
			return
		}
		wait(ctx, 10*time.Millisecond)
	}
	t.Error("a place that was given back is not given again")
}

// One agent whose names do not resolve cannot keep others from theirs, nor the server from ending.
func TestSlowUpstreamHoldsUpItsAskerOnly(t *testing.T) {
	asked := make(chan string, 2*maxAsking)
	release := make(chan struct{})
	defer close(release)
	slow := upstream(t, func(q *dns.Msg) *dns.Msg {
		name := dns.CanonicalName(q.Question[0].Name)
		if name == "slow.example.org." {
			asked <- name
			<-release
		}
		m := new(dns.Msg).SetReply(q)
		m.Answer = []dns.RR{address(q.Question[0].Name, netip.MustParseAddr("192.0.2.1"), 60)}
		return m
	})
	o := (&phonebook{}).options()
	o.Upstream = []netip.AddrPort{slow}
	s := New(o)
	ctx, cancel := context.WithCancel(t.Context())
	answers := make(chan string, maxAsking)
	for range maxAsking {
		go func() {
			answers <- said(s.answer(ctx, scout, new(dns.Msg).SetQuestion("slow.example.org.", dns.TypeA)))
		}()
	}
	for range maxAsking {
		<-asked
	}
	if got := said(s.answer(ctx, scout, new(dns.Msg).SetQuestion("fast.example.org.", dns.TypeA))); got != "REFUSED" {
		t.Errorf("one query too many: %q", got)
	}
	if got := said(s.answer(ctx, scout, new(dns.Msg).SetQuestion("vec1.acme.example.internal.", dns.TypeA))); got != "NOERROR, A 10.201.0.7" {
		t.Errorf("a name of the mesh: %q", got)
	}
	if got := said(s.answer(ctx, rover, new(dns.Msg).SetQuestion("fast.example.org.", dns.TypeA))); got != "NOERROR, A 192.0.2.1" {
		t.Errorf("another agent: %q", got)
	}
	cancel()
	for range maxAsking {
		if got := <-answers; got != "SERVFAIL" {
			t.Errorf("cut off: %q", got)
		}
	}
	if got := said(s.answer(t.Context(), scout, new(dns.Msg).SetQuestion("fast.example.org.", dns.TypeA))); got != "NOERROR, A 192.0.2.1" {
		t.Errorf("afterwards: %q", got)
	}
}
