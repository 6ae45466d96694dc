package lab

import (
	endian "encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

const (
	ipv4Header = 20
	ipv6Header = 40
	udpHeader  = 8
	hopLimit   = 64
)

// Inject puts packets on an interface below the host's own stack and firewall, as root on it can. By Ethernet they
// go to the machine with the hardware address to; on an interface without any, to is nil.
func (h *Host) Inject(device string, to net.HardwareAddr, packets ...[]byte) error {
	err := h.Do(func() error {
		fd, err := packetSocket(device, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		iface, err := net.InterfaceByName(device)
		if err != nil {
			return err
		}
		for _, p := range packets {
			at := &unix.SockaddrLinklayer{Protocol: network16(unix.ETH_P_IP), Ifindex: iface.Index, Halen: uint8(len(to))}
			if p[0]>>4 == 6 {
				at.Protocol = network16(unix.ETH_P_IPV6)
			}
			copy(at.Addr[:], to)
			if err := unix.Sendto(fd, p, 0, at); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("inject by %s of %s: %w", device, h.Name, err)
	}
	return nil
}

// HardwareAddr is the address of an interface of the host.
func (h *Host) HardwareAddr(device string) (addr net.HardwareAddr, err error) {
	err = h.Do(func() error {
		iface, err := net.InterfaceByName(device)
		if err == nil {
			addr = iface.HardwareAddr
		}
		return err
	})
	return addr, err
}

// ForgeUDP makes a UDP packet with correct checksums. Both addresses are of one family.
func ForgeUDP(src, dst netip.AddrPort, payload []byte) []byte {
	size := udpHeader + len(payload)
	udp := make([]byte, udpHeader, size)
	endian.BigEndian.PutUint16(udp, src.Port())
	endian.BigEndian.PutUint16(udp[2:], dst.Port())
	endian.BigEndian.PutUint16(udp[4:], uint16(size))
	udp = append(udp, payload...)
	pseudo := append(src.Addr().AsSlice(), dst.Addr().AsSlice()...)
	pseudo = endian.BigEndian.AppendUint32(pseudo, uint32(size))
	pseudo = endian.BigEndian.AppendUint32(pseudo, unix.IPPROTO_UDP)
	sum := checksum(append(pseudo, udp...))
	if sum == 0 { // which would mean that there is none
		sum = 0xffff
	}
	endian.BigEndian.PutUint16(udp[6:], sum)

	if src.Addr().Is4() {
		ip := make([]byte, 12, ipv4Header+size)
		ip[0], ip[8], ip[9] = 0x45, hopLimit, unix.IPPROTO_UDP
		endian.BigEndian.PutUint16(ip[2:], uint16(ipv4Header+size))
		ip = append(append(ip, src.Addr().AsSlice()...), dst.Addr().AsSlice()...)
		endian.BigEndian.PutUint16(ip[10:], checksum(ip))
		return append(ip, udp...)
	}
	ip := make([]byte, 8, ipv6Header+size)
	ip[0], ip[6], ip[7] = 0x60, unix.IPPROTO_UDP, hopLimit
	endian.BigEndian.PutUint16(ip[4:], uint16(size))
	ip = append(append(ip, src.Addr().AsSlice()...), dst.Addr().AsSlice()...)
	return append(ip, udp...)
}

// checksum is the Internet's, RFC 1071.
func checksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(endian.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
