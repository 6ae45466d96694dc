package platform

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bulkhead-mesh/bulkhead/overlay"
)

// stream is a connection on which both sides send all the time.
type stream struct {
	a, b net.Conn
	// bytes received and errors met by each side
	mu   sync.Mutex
	got  [2]int
	errs [2]error
}

// openStream connects from client to a listener inside server, and pumps.
func openStream(t *testing.T, network string, client, server space, src, dst netip.Addr, port int) *stream {
	t.Helper()
	s := &stream{}
	address := netip.AddrPortFrom(dst, uint16(port)).String()
	if network == "tcp" {
		var l net.Listener
		server.must(t, func() (err error) { l, err = net.Listen("tcp", address); return err })
		defer l.Close()
		d := net.Dialer{Timeout: time.Second, LocalAddr: &net.TCPAddr{IP: src.AsSlice()}}
		client.must(t, func() (err error) { s.a, err = d.Dial("tcp", address); return err })
		var err error
		if s.b, err = l.Accept(); err != nil {
			t.Fatal(err)
		}
	} else {
		local := &net.UDPAddr{IP: src.AsSlice(), Port: 40000}
		remote := &net.UDPAddr{IP: dst.AsSlice(), Port: port}
		client.must(t, func() (err error) { s.a, err = net.DialUDP("udp", local, remote); return err })
		server.must(t, func() (err error) { s.b, err = net.DialUDP("udp", remote, local); return err })
		if _, err := s.a.Write([]byte("opens")); err != nil {
			t.Fatal(err)
		}
	}
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for i, c := range []net.Conn{s.a, s.b} {
		wg.Go(func() { s.receive(i, c) })
		wg.Go(func() { send(c, stop) })
	}
	t.Cleanup(func() {
		close(stop)
		s.a.Close()
		s.b.Close()
		wg.Wait()
	})
	eventually(t, expected, "both sides receive", func() bool { a, b, _ := s.state(); return a > 0 && b > 0 })
	return s
}

func send(c net.Conn, stop <-chan struct{}) {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
			c.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
			c.Write([]byte("data")) // what it meets, the receiving side meets too
		}
	}
}

func (s *stream) receive(side int, c net.Conn) {
	buf := make([]byte, 65536)
	for {
		n, err := c.Read(buf)
		s.mu.Lock()
		s.got[side] += n
		if err != nil {
			s.errs[side] = err
		}
		s.mu.Unlock()
		if err != nil && c.LocalAddr().Network() == "tcp" || isClosed(err) {
			return
		}
	}
}

func (s *stream) state() (a, b int, errs [2]error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.got[0], s.got[1], s.errs
}

func isClosed(err error) bool {
	op, ok := err.(*net.OpError)
	return ok && op.Err == net.ErrClosed
}

// silent fails the test if anything is received from now on while both sides keep sending.
func (s *stream) silent(t *testing.T) {
	t.Helper()
	a, b, _ := s.state()
	deadline := time.NewTimer(700 * time.Millisecond)
	defer deadline.Stop()
	<-deadline.C
	if a2, b2, _ := s.state(); a2 != a || b2 != b {
		t.Errorf("%d and %d bytes were received after the withdrawal", a2-a, b2-b)
	}
}

func TestWithdrawalStopsRunningFlows(t *testing.T) {
	for _, network := range []string{"tcp", "udp"} {
		for _, d := range []overlay.Direction{overlay.In, overlay.Out} {
			for _, v6 := range []bool{false, true} {
				for _, wide := range []bool{false, true} {
					t.Run(fmt.Sprintf("%s-%d-v6=%t-wide=%t", network, d, v6, wide), func(t *testing.T) {
						withdraw(t, network, d, v6, wide)
					})
				}
			}
		}
	}
}

func withdraw(t *testing.T, network string, d overlay.Direction, v6, wide bool) {
	w := newWorld(t)
	w.fence(t)
	first, last := uint16(443), uint16(443)
	if wide {
		first, last = 100, 10000
	}
	kept := grant(3-d, protoTCP, 9, 9)
	w.apply(t, append(grant(d, protoOf[network], first, last), kept...)...)
	src, dst, client, server := here4, there4, w.here, w.there
	if v6 {
		src, dst = here6, there6
	}
	if d == overlay.In {
		src, dst, client, server = dst, src, server, client
	}
	s := openStream(t, network, client, server, src, dst, 443)
	w.apply(t, kept...)
	s.silent(t)
	if network == "tcp" {
		side := 0
		if d == overlay.In {
			side = 1
		}
		eventually(t, expected, "the local socket is closed", func() bool { _, _, errs := s.state(); return errs[side] != nil })
	}
	if out := w.here.sh(t, "conntrack -L -f ipv4 2>/dev/null; conntrack -L -f ipv6 2>/dev/null"); out != "" {
		t.Errorf("connections are still tracked:\n%s", out)
	}
}

func TestConnectionsThatStayAllowedAreNotTouched(t *testing.T) {
	w := newWorld(t)
	w.fence(t)
	kept := grant(overlay.In, protoTCP, 443, 443)
	w.apply(t, append(grant(overlay.In, protoTCP, 80, 80), kept...)...)
	s := openStream(t, "tcp", w.there, w.here, there4, here4, 443)
	for range 5 {
		w.apply(t, kept...)
		w.apply(t, append(grant(overlay.In, protoTCP, 1000, 9000), kept...)...)
	}
	a, b, _ := s.state()
	eventually(t, expected, "data still flows", func() bool { a2, b2, _ := s.state(); return a2 > a && b2 > b })
	if _, _, errs := s.state(); errs[0] != nil || errs[1] != nil {
		t.Errorf("connection met %v", errs)
	}
}

// A tracked connection that is lost is learned again from its next packet. If the server's comes first it
// would be one that the server opens, which nothing allows.
func TestRelearnedFromTheServerSideIsJudgedAsNew(t *testing.T) {
	w := newWorld(t)
	w.fence(t)
	w.apply(t, grant(overlay.In, protoUDP, 443, 443)...)
	s := openStream(t, "udp", w.there, w.here, there4, here4, 443)
	w.apply(t)
	w.here.sh(t, "conntrack -F 2>/dev/null")
	s.silent(t)
}

func TestUntilEndsInTheKernel(t *testing.T) {
	w := newWorld(t)
	serve(t, w.here, 443, 5000)
	w.fence(t)
	until := time.Now().Add(5 * time.Second)
	allow := append(grant(overlay.In, protoTCP, 443, 443), grant(overlay.In, protoTCP, 4000, 6000)...)
	for i := range allow {
		allow[i].Until = until
	}
	w.apply(t, allow...)
	s := openStream(t, "udp", w.here, w.here, here4, here4, 9) // on the loopback interface: not our concern
	for _, port := range []int{443, 5000} {
		if !passes(w.there, there4, here4, port) {
			t.Fatalf("port %d does not pass before its end", port)
		}
	}
	for _, port := range []int{443, 5000} {
		eventually(t, 10*time.Second, "the grant has ended", func() bool { return blocked(w.there, there4, here4, port) })
	}
	if left := w.here.sh(t, "ipset save"); strings.Contains(left, "10.201.0.2") {
		t.Errorf("the kernel still has\n%s", left)
	}
	a, _, _ := s.state()
	eventually(t, expected, "loopback flows", func() bool { a2, _, _ := s.state(); return a2 > a })
}
