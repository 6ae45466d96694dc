package lab

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/bulkhead-mesh/bulkhead/segment"
)

// probeTimeout bounds one probe. A denied flow is refused at its source at once; this is for lost packets.
const probeTimeout = 2 * time.Second

// probeWord is what every probe says; 16 bytes, which is all that ping can fill its packets with.
const probeWord = "lab-probe: hello"

// Server answers on ports of a host's addresses: TCP and UDP echo.
type Server struct {
	done sync.WaitGroup

	mu     sync.Mutex
	open   map[io.Closer]bool // sockets
	closed bool
}

// Serve starts echo servers on every address and port of the host, until Close.
func (h *Host) Serve(addrs []netip.Addr, ports ...uint16) (*Server, error) {
	s := &Server{open: map[io.Closer]bool{}}
	err := h.Do(func() error {
		for _, addr := range addrs {
			for _, port := range ports {
				if err := s.listen(netip.AddrPortFrom(addr, port)); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("serve on %s: %w", h.Name, err)
	}
	return s, nil
}

func (s *Server) listen(at netip.AddrPort) error {
	tcp, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
	if err != nil {
		return err
	}
	s.keep(tcp)
	s.done.Go(func() {
		for {
			conn, err := tcp.AcceptTCP()
			if err != nil {
				return
			}
			s.keep(conn)
			s.done.Go(func() {
				defer s.drop(conn)
				_, _ = io.Copy(conn, conn)
			})
		}
	})
	udp, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if err != nil {
		return err
	}
	s.keep(udp)
	s.done.Go(func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := udp.ReadFromUDPAddrPort(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				_, _ = udp.WriteToUDPAddrPort(buf[:n], from)
			}
		}
	})
	return nil
}

// keep makes Close close a socket; after Close it is closed at once.
func (s *Server) keep(c io.Closer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		_ = c.Close()
		return
	}
	s.open[c] = true
}

func (s *Server) drop(c io.Closer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, c)
	_ = c.Close()
}

// Close ends the servers and their connections, and waits for that.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	for c := range s.open {
		_ = c.Close()
	}
	s.mu.Unlock()
	s.done.Wait()
}

// Reaches tries a flow from an address of the host: whether what was sent to dst came back.
func (h *Host) Reaches(ctx context.Context, src, dst netip.Addr, port segment.Port) bool {
	return h.ReachesFrom(ctx, "", src, dst, port)
}

// ReachesFrom is Reaches for programs in a cgroup below the host's.
func (h *Host) ReachesFrom(ctx context.Context, group string, src, dst netip.Addr, port segment.Port) bool {
	if port.Proto == segment.ICMP {
		out, err := h.runIn(ctx, group, nil, "ping", "-n", "-c1", "-W1", "-p", hex.EncodeToString([]byte(probeWord)), "-I", src.String(), dst.String())
		return err == nil && out.Code == 0
	}
	return h.Do(func() error { return echo(ctx, src, netip.AddrPortFrom(dst, port.Number), port.Proto) }) == nil
}

func echo(ctx context.Context, src netip.Addr, dst netip.AddrPort, proto segment.Proto) error {
	dialer := net.Dialer{Timeout: probeTimeout}
	network := "tcp"
	if proto == segment.UDP {
		network = "udp"
		dialer.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(src, 0))
	} else {
		dialer.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(src, 0))
	}
	conn, err := dialer.DialContext(ctx, network, dst.String())
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(probeTimeout)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte(probeWord)); err != nil {
		return err
	}
	got := make([]byte, len(probeWord))
	if _, err := io.ReadFull(conn, got); err != nil {
		return err
	}
	if string(got) != probeWord {
		return fmt.Errorf("echo of %q", got)
	}
	return nil
}

// Stream is a flow that keeps carrying data both ways.
type Stream struct {
	conn net.Conn
	done sync.WaitGroup

	mu   sync.Mutex
	last time.Time // when bytes last came back
	n    int64
}

// OpenStream opens a flow to an echo server and keeps it full until Close.
func (h *Host) OpenStream(src netip.Addr, dst netip.AddrPort, network string) (*Stream, error) {
	s := &Stream{}
	err := h.Do(func() (err error) {
		dialer := net.Dialer{Timeout: probeTimeout, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(src, 0))}
		if network == "udp" {
			dialer.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(src, 0))
		}
		s.conn, err = dialer.Dial(network, dst.String())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open stream on %s: %w", h.Name, err)
	}
	s.done.Go(s.write)
	s.done.Go(s.read)
	return s, nil
}

// write sends a packet's worth every few milliseconds; a UDP flow goes on after errors, a TCP flow ends.
func (s *Stream) write() {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	packet := make([]byte, 1000)
	for i := 0; ; i++ {
		copy(packet, strconv.Itoa(i))
		_, err := s.conn.Write(packet)
		if errors.Is(err, net.ErrClosed) || (err != nil && s.conn.RemoteAddr().Network() == "tcp") {
			return
		}
		<-tick.C
	}
}

func (s *Stream) read() {
	buf := make([]byte, 64<<10)
	for {
		n, err := s.conn.Read(buf)
		if n > 0 {
			s.mu.Lock()
			s.last, s.n = time.Now(), s.n+int64(n)
			s.mu.Unlock()
		}
		if errors.Is(err, net.ErrClosed) || (err != nil && s.conn.RemoteAddr().Network() == "tcp") {
			return
		}
	}
}

// Received is how many bytes came back, and when the last did.
func (s *Stream) Received() (int64, time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.n, s.last
}

// Close ends the flow.
func (s *Stream) Close() {
	_ = s.conn.Close()
	s.done.Wait()
}
