package platform

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// dumpTries is how often a list is read again when the kernel changed it meanwhile.
const dumpTries = 5

// flow is a connection as its first packet had it.
type flow struct {
	src, dst     netip.Addr
	proto        uint8
	sport, dport uint16
}

// cut makes the kernel forget every connection with an overlay address that want does not allow, and closes
// the TCP sockets of such, so that local programs notice at once. The sets already drop their packets.
func (f *Firewall) cut(want sets) error { return f.cutWithin(f.options.Prefixes, want) }

// cutAll ends every connection of the overlay, which the fence's routes name if nobody else does.
func (f *Firewall) cutAll() error {
	routes, err := fenceRoutes()
	if err != nil {
		return err
	}
	prefixes := slices.Clone(f.options.Prefixes)
	for _, r := range routes {
		if p, err := netip.ParsePrefix(r.Dst.String()); err == nil {
			prefixes = append(prefixes, p)
		}
	}
	return f.cutWithin(prefixes, fixedSets())
}

func (f *Firewall) cutWithin(prefixes []netip.Prefix, want sets) error {
	c := cutter{want: want, prefixes: prefixes, resolvers: f.options.Resolvers, now: instantOf(f.now()), ended: make(map[flow]bool)}
	for _, fam := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		if err := c.forget(fam); err != nil {
			return fmt.Errorf("delete tracked connections: %w", err)
		}
	}
	for _, fam := range []uint8{unix.AF_INET, unix.AF_INET6} {
		if err := c.closeSockets(fam); err != nil {
			return fmt.Errorf("close sockets: %w", err)
		}
	}
	return nil
}

type cutter struct {
	want      sets
	prefixes  []netip.Prefix
	resolvers []netip.Addr
	now       instant
	ended     map[flow]bool
}

func (c *cutter) forget(fam netlink.InetFamily) error {
	return retryDump(func() error {
		_, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, fam, c)
		return err
	})
}

// retryDump repeats a dump that the kernel says is not consistent.
func retryDump(dump func() error) error {
	var err error
	for range dumpTries {
		if err = dump(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return err
		}
	}
	return err
}

// MatchConntrackFlow reports whether a tracked connection is to end; it implements netlink.CustomConntrackFilter.
func (c *cutter) MatchConntrackFlow(t *netlink.ConntrackFlow) bool {
	src, okSrc := netip.AddrFromSlice(t.Forward.SrcIP)
	dst, okDst := netip.AddrFromSlice(t.Forward.DstIP)
	if !okSrc || !okDst {
		return false
	}
	f := flow{src, dst, t.Forward.Protocol, t.Forward.SrcPort, t.Forward.DstPort}
	if !c.ofOverlay(src, dst) || c.want.allows(src, f.proto, f.dport, dst, c.now) {
		return false
	}
	c.ended[f] = true
	return true
}

// ofOverlay reports whether packets between the addresses are judged by sets: not those of an agent with itself, or with
// this host's resolver.
func (c *cutter) ofOverlay(a, b netip.Addr) bool {
	if !inPrefixes(c.prefixes, a) && !inPrefixes(c.prefixes, b) {
		return false
	}
	if slices.Contains(c.resolvers, a) || slices.Contains(c.resolvers, b) {
		return false
	}
	return a != b || !c.local(a)
}

func (c *cutter) local(a netip.Addr) bool {
	_, ok := c.want[nameLocal(familyOf(a))].entries[entry{src: a}]
	return ok
}

// Socket states that have no peer to lose, as the kernel numbers them.
const (
	tcpTimeWait = 6
	tcpClose    = 7
	tcpListen   = 10
)

func (c *cutter) closeSockets(fam uint8) error {
	var all []*netlink.Socket
	err := retryDump(func() (err error) {
		all, err = netlink.SocketDiagTCP(fam)
		return err
	})
	if err != nil {
		return err
	}
	for _, s := range all {
		if s.State == tcpListen || s.State == tcpTimeWait || s.State == tcpClose || !c.mustClose(s) {
			continue
		}
		if err := destroySocket(fam, s); err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return nil
}

// mustClose: who opened a connection is not known from its socket, so it is allowed if either side may open it,
// unless tracking knew better.
func (c *cutter) mustClose(s *netlink.Socket) bool {
	src, okSrc := netip.AddrFromSlice(s.ID.Source)
	dst, okDst := netip.AddrFromSlice(s.ID.Destination)
	if !okSrc || !okDst {
		return false
	}
	src, dst = src.Unmap(), dst.Unmap()
	if !c.ofOverlay(src, dst) {
		return false
	}
	sport, dport := s.ID.SourcePort, s.ID.DestinationPort
	if c.ended[flow{src, dst, protoTCP, sport, dport}] || c.ended[flow{dst, src, protoTCP, dport, sport}] {
		return true
	}
	return !c.want.allows(src, protoTCP, dport, dst, c.now) && !c.want.allows(dst, protoTCP, sport, src, c.now)
}

// destroySocket closes a socket of another process: its calls fail with ECONNABORTED. It is found by cookie,
// so that never a later socket with the same addresses is hit.
func destroySocket(fam uint8, s *netlink.Socket) error {
	// struct inet_diag_req_v2
	b := []byte{fam, unix.IPPROTO_TCP, 0, 0}
	b = binary.NativeEndian.AppendUint32(b, 1<<s.State)
	b = binary.BigEndian.AppendUint16(b, s.ID.SourcePort)
	b = binary.BigEndian.AppendUint16(b, s.ID.DestinationPort)
	b = append(b, diagAddr(fam, s.ID.Source)...)
	b = append(b, diagAddr(fam, s.ID.Destination)...)
	b = binary.NativeEndian.AppendUint32(b, s.ID.Interface)
	b = binary.NativeEndian.AppendUint32(b, s.ID.Cookie[0])
	b = binary.NativeEndian.AppendUint32(b, s.ID.Cookie[1])
	req := nl.NewNetlinkRequest(nl.SOCK_DESTROY, unix.NLM_F_ACK)
	req.AddRawData(b)
	_, err := req.Execute(unix.NETLINK_INET_DIAG, 0)
	return err
}

func diagAddr(fam uint8, ip []byte) []byte {
	var b [16]byte
	addr, _ := netip.AddrFromSlice(ip)
	if fam == unix.AF_INET {
		addr = addr.Unmap()
	}
	copy(b[:], addr.AsSlice())
	return b[:]
}
