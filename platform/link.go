package platform

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// linkSettings keep the overlay interface deaf to whatever would configure it from outside.
var linkSettings = []struct{ family, key, value string }{
	{"ipv6", "accept_ra", "0"},
	{"ipv6", "accept_redirects", "0"},
	{"ipv6", "autoconf", "0"},
	{"ipv6", "addr_gen_mode", "1"}, // no link-local address
	{"ipv4", "accept_redirects", "0"},
	{"ipv4", "send_redirects", "0"},
	{"ipv4", "route_localnet", "0"},
	{"ipv4", "rp_filter", "1"}, // a source that is not routed back here is forged
}

// ConfigureLink gives the interface exactly these addresses, each as a single host, and routes the prefixes
// to it. It is idempotent.
func ConfigureLink(name string, mtu int, addrs []netip.Addr, routes []netip.Prefix) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("configure %s: %w", name, err)
	}
	for _, s := range linkSettings {
		if err := setSysctl(fmt.Sprintf("/proc/sys/net/%s/conf/%s/%s", s.family, name, s.key), s.value); err != nil {
			return fmt.Errorf("configure %s: %w", name, err)
		}
	}
	if link.Attrs().MTU != mtu {
		if err := netlink.LinkSetMTU(link, mtu); err != nil {
			return fmt.Errorf("set mtu of %s to %d: %w", name, mtu, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring %s up: %w", name, err)
	}
	if err := setAddresses(link, addrs); err != nil {
		return err
	}
	return setRoutes(link, addrs, routes)
}

// setSysctl writes only what differs, so that a read-only /proc/sys with the right values will do. A setting
// that this kernel does not have is none to change: IPv6 may be off.
func setSysctl(path, value string) error {
	have, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) || err == nil && strings.TrimSpace(string(have)) == value {
		return nil
	}
	return os.WriteFile(path, []byte(value), 0o644)
}

// setAddresses removes what is not wanted before it adds what is.
func setAddresses(link netlink.Link, want []netip.Addr) error {
	name := link.Attrs().Name
	have, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", name, err)
	}
	held := make(map[netip.Addr]bool, len(have))
	for _, a := range have {
		addr, _ := netip.AddrFromSlice(a.IP)
		addr = addr.Unmap()
		if slices.Contains(want, addr) {
			held[addr] = true
		} else if err := netlink.AddrDel(link, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("remove %s from %s: %w", addr, name, err)
		}
	}
	for _, addr := range want {
		if held[addr] {
			continue
		}
		if err := netlink.AddrAdd(link, hostAddress(addr)); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add %s to %s: %w", addr, name, err)
		}
	}
	return nil
}

func hostAddress(addr netip.Addr) *netlink.Addr {
	a := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(addr, addr.BitLen()))}
	if addr.Is6() {
		a.Flags = unix.IFA_F_NODAD // there is nobody on the link to ask
	}
	return a
}

func setRoutes(link netlink.Link, addrs []netip.Addr, prefixes []netip.Prefix) error {
	for _, route := range linkRoutes(link, addrs, prefixes) {
		if err := netlink.RouteReplace(route); err != nil {
			return fmt.Errorf("route %s to %s: %w", route.Dst, link.Attrs().Name, err)
		}
	}
	return nil
}

// linkRoutes lead the prefixes to the link, from the first address of each one's family. Without such an address
// nothing may be sent, and the fence's unreachable route answers.
func linkRoutes(link netlink.Link, addrs []netip.Addr, prefixes []netip.Prefix) []*netlink.Route {
	var routes []*netlink.Route
	for _, prefix := range prefixes {
		if i := slices.IndexFunc(addrs, func(a netip.Addr) bool { return a.Is4() == prefix.Addr().Is4() }); i >= 0 {
			routes = append(routes, &netlink.Route{
				LinkIndex: link.Attrs().Index, Dst: ipNet(prefix), Src: addrs[i].AsSlice(), Scope: netlink.SCOPE_LINK,
			})
		}
	}
	return routes
}

// RestoreLink puts back what another program took away of what ConfigureLink made, and says whether there was
// something. It asks for each part alone and so stays cheap on a machine with many addresses and routes.
func RestoreLink(name string, mtu int, addrs []netip.Addr, prefixes []netip.Prefix) (restored bool, err error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE) // one socket for all questions
	if err != nil {
		return false, fmt.Errorf("restore %s: %w", name, err)
	}
	defer h.Close()
	link, err := h.LinkByName(name)
	if err != nil {
		return false, fmt.Errorf("restore %s: %w", name, err)
	}
	missing := link.Attrs().RawFlags&unix.IFF_UP == 0
	if !missing {
		for _, addr := range addrs {
			missing = missing || h.AddrAdd(link, hostAddress(addr)) == nil // there already: an error
		}
		for _, route := range linkRoutes(link, addrs, prefixes) {
			missing = missing || h.RouteAdd(route) == nil
		}
	}
	if !missing {
		return false, nil
	}
	return true, ConfigureLink(name, mtu, addrs, prefixes)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
