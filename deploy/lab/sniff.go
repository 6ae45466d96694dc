package lab

import (
	endian "encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	sniffMemory = 64 << 20 // bytes of the kernel's queue for one sniffer
	sniffPoll   = 20       // milliseconds until a sniffer looks whether it shall end
)

// Packet is what was seen on an interface. What its headers do not have is zero.
type Packet struct {
	EtherType        uint16
	Proto            uint8 // IP protocol number, or that of the first extension header
	Src, Dst         netip.Addr
	SrcPort, DstPort uint16 // of TCP and UDP
	Payload          []byte // of UDP and ICMP, and all after the ports of TCP
	Raw              []byte // from the network header on
}

// String says between whom the packet went, and how it begins.
func (p Packet) String() string {
	return fmt.Sprintf("ethertype %#04x protocol %d %s:%d to %s:%d, %d bytes % x", p.EtherType, p.Proto, p.Src, p.SrcPort, p.Dst, p.DstPort,
		len(p.Raw), p.Raw[:min(len(p.Raw), 64)])
}

// Between reports whether the packet goes from one of a host's addresses to one of the other's, either way.
func (p Packet) Between(a, b *Host) bool {
	return a.has(p.Src) && b.has(p.Dst) || b.has(p.Src) && a.has(p.Dst)
}

// WireGuard is the type of a well-formed WireGuard message in a UDP packet; 0 if it is none.
func (p Packet) WireGuard() byte {
	if p.Proto != unix.IPPROTO_UDP || len(p.Payload) < 4 || p.Payload[1]|p.Payload[2]|p.Payload[3] != 0 {
		return 0
	}
	n, kind := len(p.Payload), p.Payload[0]
	switch {
	case kind == 1 && n == 148, kind == 2 && n == 92, kind == 3 && n == 64, kind == 4 && n >= 32 && n%16 == 0:
		return kind
	}
	return 0
}

// Sniffer records the packets of one interface, both ways.
type Sniffer struct {
	fd   int
	stop chan struct{}
	done sync.WaitGroup

	mu      sync.Mutex
	packets []Packet
	err     error
}

// Sniff records what crosses the cable from now on, as single packets, each as it is on the wire.
func (l *Link) Sniff() (*Sniffer, error) {
	// Otherwise a virtual cable carries many packets as one, which the far end never takes apart.
	for _, end := range []struct {
		ns   namespace
		name string
	}{{l.host.ns, l.Interface}, {l.sw.ns, l.port}} {
		if err := end.ns.ip("link set dev " + end.name + " gso_max_segs 1"); err != nil {
			return nil, err
		}
	}
	return l.host.Sniff(l.Interface)
}

// Sniff records what enters and leaves the host by an interface from now on.
func (h *Host) Sniff(device string) (*Sniffer, error) {
	s := &Sniffer{stop: make(chan struct{})}
	err := h.Do(func() (err error) {
		if s.fd, err = packetSocket(device, unix.ETH_P_ALL); err != nil {
			return err
		}
		return unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, sniffMemory)
	})
	if err != nil {
		return nil, fmt.Errorf("sniff %s of %s: %w", device, h.Name, err)
	}
	s.done.Go(s.record)
	return s, nil
}

// packetSocket is a socket for whole packets, without their link header, of an interface of the calling thread's
// namespace. For sending alone the protocol is 0.
func packetSocket(device string, protocol uint16) (int, error) {
	iface, err := net.InterfaceByName(device)
	if err != nil {
		return -1, err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: network16(protocol), Ifindex: iface.Index}); err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

func network16(v uint16) uint16 {
	return endian.NativeEndian.Uint16(endian.BigEndian.AppendUint16(nil, v))
}

// record ends when it is told to and has read what waited.
func (s *Sniffer) record() {
	buf := make([]byte, 1<<16)
	for {
		n, from, err := unix.Recvfrom(s.fd, buf, 0)
		switch {
		case err == nil:
			p := parsePacket(network16(from.(*unix.SockaddrLinklayer).Protocol), append([]byte(nil), buf[:n]...))
			s.mu.Lock()
			s.packets = append(s.packets, p)
			s.mu.Unlock()
		case errors.Is(err, unix.EAGAIN):
			select {
			case <-s.stop:
				return
			default:
			}
			_, _ = unix.Poll([]unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN}}, sniffPoll)
		case !errors.Is(err, unix.EINTR):
			s.err = err // as when the interface goes
			return
		}
	}
}

// Packets are those seen so far.
func (s *Sniffer) Packets() []Packet {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Packet(nil), s.packets...)
}

// Close ends the recording and returns it. A packet that was missed is an error.
func (s *Sniffer) Close() ([]Packet, error) {
	close(s.stop)
	s.done.Wait()
	stats, err := unix.GetsockoptTpacketStats(s.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err == nil && stats.Drops > 0 {
		err = fmt.Errorf("sniff: missed %d packets", stats.Drops)
	}
	return s.packets, errors.Join(s.err, err, unix.Close(s.fd))
}

func parsePacket(ethertype uint16, raw []byte) Packet {
	p := Packet{EtherType: ethertype, Raw: raw}
	var body []byte
	switch {
	case ethertype == unix.ETH_P_IP && len(raw) >= 20 && len(raw) >= int(raw[0]&15)*4:
		p.Proto, body = raw[9], raw[int(raw[0]&15)*4:]
		p.Src, _ = netip.AddrFromSlice(raw[12:16])
		p.Dst, _ = netip.AddrFromSlice(raw[16:20])
	case ethertype == unix.ETH_P_IPV6 && len(raw) >= 40:
		p.Proto, body = raw[6], raw[40:]
		p.Src, _ = netip.AddrFromSlice(raw[8:24])
		p.Dst, _ = netip.AddrFromSlice(raw[24:40])
	}
	p.Payload = body
	if (p.Proto == unix.IPPROTO_TCP || p.Proto == unix.IPPROTO_UDP) && len(body) >= 8 {
		p.SrcPort, p.DstPort = endian.BigEndian.Uint16(body), endian.BigEndian.Uint16(body[2:])
		p.Payload = body[4:]
		if p.Proto == unix.IPPROTO_UDP {
			p.Payload = body[8:]
		}
	}
	return p
}

func (h *Host) has(addr netip.Addr) bool {
	for _, a := range h.Addresses() {
		if a == addr {
			return true
		}
	}
	return false
}
