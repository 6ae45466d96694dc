package platform

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// UnderlayAddrs are the addresses at which this machine can be reached without the overlay: global unicast
// (private ranges too), not temporary or deprecated, on interfaces that are up, IPv4 first. The interface
// exclude does not count.
func UnderlayAddrs(exclude string) ([]netip.Addr, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	up := make(map[int]bool, len(links))
	for _, l := range links {
		up[l.Attrs().Index] = l.Attrs().Name != exclude && l.Attrs().RawFlags&unix.IFF_UP != 0
	}
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	var out []netip.Addr
	for _, a := range addrs {
		addr, ok := netip.AddrFromSlice(a.IP)
		addr = addr.Unmap()
		if ok && up[a.LinkIndex] && addr.IsGlobalUnicast() && a.Flags&(unix.IFA_F_TEMPORARY|unix.IFA_F_DEPRECATED) == 0 {
			out = append(out, addr)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out, nil
}
