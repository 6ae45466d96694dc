package link

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bulkhead-mesh/bulkhead/overlay"
)

func TestThreeHostsTalk(t *testing.T) {
	f := newFleet(t)
	all := []*member{f.start("a"), f.start("b"), f.start("c")}
	for _, from := range all {
		for _, to := range all {
			if from != to {
				from.sendUntil(t, to, "hello")
			}
		}
	}
	for _, m := range all {
		connected := m.Connected()
		if len(connected) != 2 {
			t.Errorf("%s is connected to %v", m.name, connected)
		}
		for host, at := range connected {
			if want := f.candidates(host)[0]; at != want {
				t.Errorf("%s sees %s at %s, want %s", m.name, host, at, want)
			}
		}
		m.mu.Lock()
		if m.connects < 2 || len(m.paths) < 2 {
			t.Errorf("%s: %d connects, paths %v", m.name, m.connects, m.paths)
		}
		m.mu.Unlock()
	}
}

func TestStreamCarriesMoreThanTheWindow(t *testing.T) {
	f := newFleet(t)
	a, b := f.start("a"), f.start("b")
	s, err := a.Open(t.Context(), b.name, overlay.KindPull)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<17) // 2 MiB
	wrote := make(chan error, 1)
	go func() {
		_, err := s.Write(sent)
		wrote <- errors.Join(err, s.CloseWrite())
	}()
	got, err := io.ReadAll(s)
	if err := errors.Join(err, <-wrote); err != nil {
		t.Fatal(err)
	}
	if want := append([]byte("a says "), sent...); !bytes.Equal(got, want) {
		t.Errorf("got %d bytes, want %d", len(got), len(want))
	}
}

func TestRefusedPeers(t *testing.T) {
	f := newFleet(t)
	a, b := f.start("a"), f.start("b")
	foreign := newFleet(t)
	stranger := foreign.startOn("b", foreign.authority.issue(t, "b"), loopback(t))

	t.Run("foreign authority answers", func(t *testing.T) {
		f.announce("b", stranger.addr)
		_, err := a.Open(t.Context(), "b", overlay.KindPull)
		mustFail(t, err, "verify peer")
	})
	t.Run("foreign authority dials", func(t *testing.T) {
		stranger.options.Verify = f.verify // it would believe us
		_, err := stranger.DialAddr(t.Context(), a.addr)
		mustFail(t, err, "welcome")
	})
	t.Run("another host answers", func(t *testing.T) {
		f.announce("c", b.addr)
		_, err := a.Open(t.Context(), "c", overlay.KindPull)
		mustFail(t, err, `certificate is of host "b", not of "c"`)
	})
	t.Run("a copy of this host answers", func(t *testing.T) {
		twin := f.startOn("a", a.options.Certificate(), loopback(f.t))
		_, err := a.DialAddr(t.Context(), twin.addr)
		mustFail(t, err, ErrSelf.Error())
	})
	t.Run("no certificate", func(t *testing.T) {
		naked := f.startOn("n", &tls.Certificate{}, loopback(f.t))
		_, err := naked.DialAddr(t.Context(), a.addr)
		mustFail(t, err, "dial")
	})
	if c := a.Connected(); len(c) != 0 {
		t.Errorf("a is connected to %v", c)
	}
	if n := a.Stats()["peersRefused"]; n < 4 {
		t.Errorf("a has counted %d refused peers", n)
	}
}

func TestRevokedHostIsClosedAndStaysOut(t *testing.T) {
	f := newFleet(t)
	a, b, c := f.start("a"), f.start("b"), f.start("c")
	a.sendUntil(t, b, "1")
	a.sendUntil(t, c, "1")
	s, err := a.Open(t.Context(), "b", overlay.KindPull)
	if err != nil {
		t.Fatal(err)
	}
	f.revoke("b")
	a.Recheck()
	if _, err := io.ReadAll(s); err == nil {
		t.Error("a stream to the revoked host still works")
	}
	until(t, "a is connected to c alone", func() bool { // the connection is closed in the background
		connected := a.Connected()
		return len(connected) == 1 && connected["c"].IsValid()
	})
	until(t, "b has noticed", func() bool { return len(b.Connected()) == 0 })
	_, err = b.DialAddr(t.Context(), a.addr)
	mustFail(t, err, "dial")
	_, err = a.Open(t.Context(), "b", overlay.KindPull)
	mustFail(t, err, "")
}

func TestRevokedHostGetsNoStreamBeforeRecheck(t *testing.T) {
	f := newFleet(t)
	a, b := f.start("a"), f.start("b")
	b.sendUntil(t, a, "1")
	f.revoke("b")
	b.options.Verify = func([][]byte) (string, error) { return "a", nil }
	s, err := b.Open(t.Context(), "a", overlay.KindPull)
	if err == nil {
		_, err = io.ReadAll(s)
	}
	if err == nil {
		t.Error("the revoked host was served")
	}
	until(t, "a has closed the connection", func() bool { return len(a.Connected()) == 0 })
}

func TestDrop(t *testing.T) {
	f := newFleet(t)
	a, b := f.start("a"), f.start("b")
	a.sendUntil(t, b, "1")
	a.Drop("b")
	a.Drop("nobody")
	if c := a.Connected(); len(c) != 0 {
		t.Errorf("a is connected to %v", c)
	}
	until(t, "b has noticed", func() bool { return len(b.Connected()) == 0 })
}

func TestUnknownKindsAreCountedAndRefused(t *testing.T) {
	f := newFleet(t)
	a, b := f.start("a"), f.start("b")
	s, err := a.Open(t.Context(), "b", overlay.Kind(99))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(s); err == nil {
		t.Error("a stream of an unknown kind ended in order")
	}
	until(t, "b has counted a datagram and the stream", func() bool {
		_ = a.Send("b", overlay.KindHint, nil)
		return b.Stats()["unknownKind"] >= 2
	})
}

func TestSendChecksItsArguments(t *testing.T) {
	f := newFleet(t)
	a, b := f.start("a"), f.start("b")
	if err := a.Send("b", overlay.KindGossip, make([]byte, MaxDatagram+1)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("too large: %v", err)
	}
	if err := a.Send("nowhere", overlay.KindGossip, nil); !errors.Is(err, ErrNoAddress) {
		t.Errorf("no address: %v", err)
	}
	largest := string(bytes.Repeat([]byte("x"), MaxDatagram))
	a.sendUntil(t, b, largest)
	idle := New(a.options)
	if err := idle.Send("b", overlay.KindGossip, nil); !errors.Is(err, ErrNotRunning) {
		t.Errorf("not running: %v", err)
	}
	if _, err := idle.DialAddr(t.Context(), b.addr); !errors.Is(err, ErrNotRunning) {
		t.Errorf("not running: %v", err)
	}
}

// A host that does not answer costs its queue, once, and then an error.
func TestSilentHost(t *testing.T) {
	f := newFleet(t)
	a := f.start("a")
	silent := loopback(t)
	f.announce("s", addrPort(silent.LocalAddr()))
	for range hostQueue + 3 {
		if err := a.Send("s", overlay.KindGossip, []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	if n := a.Stats()["datagramsDropped"]; n != 3 {
		t.Errorf("%d dropped while dialling, want the 3 oldest", n)
	}
	_, err := a.Open(t.Context(), "s", overlay.KindPull)
	mustFail(t, err, "context deadline exceeded")
	if n := a.Stats()["datagramsDropped"]; n != hostQueue+3 {
		t.Errorf("%d dropped after the dial has failed, want all", n)
	}
	if err := a.Send("s", overlay.KindGossip, nil); !errors.Is(err, ErrBackoff) {
		t.Errorf("right after a failed dial: %v", err)
	}
	b := f.start("b")
	f.announce("s", b.addr)
	if err := a.Send("s", overlay.KindGossip, nil); err != nil {
		t.Errorf("with a new address: %v", err)
	}
}

func TestLivingCandidateWins(t *testing.T) {
	f := newFleet(t)
	a, b := f.start("a"), f.start("b")
	silent := loopback(t)
	f.announce("b", addrPort(silent.LocalAddr()), b.addr)
	s, err := a.Open(t.Context(), "b", overlay.KindPull)
	if err != nil {
		t.Fatal(err)
	}
	_ = s.Close()
	if at := a.Connected()["b"]; at != b.addr {
		t.Errorf("b is at %s, want %s", at, b.addr)
	}
}

// Both dial at once; whichever connections come of it, both directions work and go on working.
func TestSimultaneousDials(t *testing.T) {
	f := newFleet(t)
	a, b := f.start("a"), f.start("b")
	for range 3 {
		_ = a.Send("b", overlay.KindGossip, []byte("x"))
		_ = b.Send("a", overlay.KindGossip, []byte("x"))
		a.sendUntil(t, b, "from a")
		b.sendUntil(t, a, "from b")
		for _, m := range []*member{a, b} {
			m.mu.Lock()
			m.datagrams = nil
			m.mu.Unlock()
		}
		a.Drop("b")
		until(t, "both are apart", func() bool { a.Drop("b"); return len(b.Connected()) == 0 })
	}
}

func TestSeedIsDialledByAddress(t *testing.T) {
	f := newFleet(t)
	a, b := f.start("a"), f.start("b")
	for range 2 { // the second is served by the connection of the first
		host, err := a.DialAddr(t.Context(), b.addr)
		if err != nil || host != "b" {
			t.Fatalf("got %q, %v", host, err)
		}
	}
	until(t, "b sees a", func() bool { return len(b.Connected()) == 1 })
	if n := len(a.connections()); n != 1 {
		t.Errorf("a holds %d connections", n)
	}
	b.sendUntil(t, a, "back")
}

// A restarted process keeps its key and address but knows no connection. The others must not wait for the
// idle timeout.
func TestRestartedPeerIsBackQuickly(t *testing.T) {
	f := newFleet(t)
	a := f.start("a")
	certificate := f.authority.issue(t, "b")
	conn := loopback(t)
	silenced := &mutableConn{PacketConn: conn}
	b := f.startOn("b", certificate, silenced)
	f.announce("b", b.addr)
	a.sendUntil(t, b, "1")
	silenced.muted.Store(true) // its goodbye is lost, as in a crash
	b.stop()
	b = f.startOn("b", certificate, conn)
	start := time.Now()
	a.sendUntil(t, b, strings.Repeat("2", overlay.HintSize)) // to smaller packets QUIC answers no reset
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("it took %v until a has noticed that b has restarted", took)
	}
	b.sendUntil(t, a, "3")
}

// mutableConn can lose what is written.
type mutableConn struct {
	net.PacketConn
	muted atomic.Bool
}

func (c *mutableConn) WriteTo(b []byte, addr net.Addr) (int, error) {
	if c.muted.Load() {
		return len(b), nil
	}
	return c.PacketConn.WriteTo(b, addr)
}

func (c *mutableConn) SetReadBuffer(int) error  { return nil }
func (c *mutableConn) SetWriteBuffer(int) error { return nil }

func TestHandlerStreamsAreBounded(t *testing.T) {
	f := newFleet(t)
	a := f.start("a")
	var running, most atomic.Int64
	release := make(chan struct{})
	b := New(Options{
		Conn: loopback(t), Certificate: func() *tls.Certificate { return f.authority.issue(t, "b") },
		Verify: f.verify, Candidates: f.candidates, Logger: a.options.Logger,
	})
	b.OnStream(overlay.KindPull, func(context.Context, string, overlay.Stream) {
		most.Store(max(most.Load(), running.Add(1)))
		<-release
		running.Add(-1)
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx) }()
	f.announce("b", addrPort(b.options.Conn.LocalAddr()))
	opening, stop := context.WithCancel(t.Context())
	opened := make(chan struct{})
	var resets atomic.Int64
	go func() {
		defer close(opened)
		for opening.Err() == nil {
			s, err := a.Open(opening, "b", overlay.KindPull)
			if err == nil {
				s.(stream).abort(codeStreamClosed) // QUIC gives the credit back, the handler still runs
				resets.Add(1)
			}
		}
	}()
	until(t, "more streams were opened than may be at work", func() bool { return resets.Load() > maxStreams })
	stop()
	close(release)
	<-opened
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if n := most.Load(); n > maxStreams {
		t.Errorf("%d handlers ran at once", n)
	}
}

func TestGarbageDoesNoHarm(t *testing.T) {
	f := newFleet(t)
	a, b := f.start("a"), f.start("b")
	a.sendUntil(t, b, "before")
	noise, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(b.addr))
	if err != nil {
		t.Fatal(err)
	}
	defer noise.Close()
	for i := range 20000 {
		packet := bytes.Repeat([]byte{byte(i), byte(i >> 8), 0x5a}, 1+i%400)
		packet[0] |= 0x40
		if i%3 == 0 {
			packet[0] |= 0x80
			copy(packet[1:], []byte{0, 0, 0, 1, 8})
		}
		_, _ = noise.Write(packet)
	}
	a.sendUntil(t, b, "after")
	b.sendUntil(t, a, "back")
}

func TestRunReportsADeadSocket(t *testing.T) {
	f := newFleet(t)
	conn := loopback(t)
	l := New(Options{
		Conn: conn, Certificate: func() *tls.Certificate { return f.authority.issue(t, "a") },
		Verify: f.verify, Candidates: func(string) []netip.AddrPort { return nil }, Logger: newFleet(t).start("x").options.Logger,
	})
	ended := make(chan error, 1)
	go func() { ended <- l.Run(t.Context()) }()
	until(t, "it runs", func() bool { return l.spawn(func(context.Context) {}) })
	_ = conn.Close()
	select {
	case err := <-ended:
		mustFail(t, err, "run link")
	case <-time.After(10 * time.Second):
		t.Fatal("Run does not notice")
	}
}
