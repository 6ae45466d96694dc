package platform

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The fence's routes make overlay addresses unreachable while the interface is gone, where packets would
// follow the default route. The metric is higher than that of any route which shall win; the protocol tells
// them from the routes of others.
const (
	fenceMetric   = 0xfffffff0
	fenceProtocol = 201
)

func fenceRoute(p netip.Prefix) *netlink.Route {
	p = p.Masked()
	return &netlink.Route{
		Dst:      &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())},
		Type:     unix.RTN_UNREACHABLE,
		Table:    unix.RT_TABLE_MAIN,
		Priority: fenceMetric,
		Protocol: fenceProtocol,
	}
}

// addRoutes adds the routes that are missing.
func (f *Firewall) addRoutes() error {
	_, err := f.restoreRoutes()
	return err
}

// restoreRoutes adds the routes that are missing, and says which were.
func (f *Firewall) restoreRoutes() (missing, err error) {
	for _, p := range f.options.Prefixes {
		switch err := netlink.RouteAdd(fenceRoute(p)); {
		case err == nil:
			missing = errors.Join(missing, fmt.Errorf("%w: route that makes %s unreachable was gone", ErrDrift, p))
		case !errors.Is(err, unix.EEXIST):
			return missing, fmt.Errorf("add unreachable route %s: %w", p, err)
		}
	}
	return missing, nil
}

func (f *Firewall) checkRoutes() error {
	found, err := fenceRoutes()
	if err != nil {
		return err
	}
	have := make(map[string]bool)
	for _, r := range found {
		have[r.Dst.String()] = true
	}
	for _, p := range f.options.Prefixes {
		if !have[fenceRoute(p).Dst.String()] {
			return fmt.Errorf("%w: route that makes %s unreachable is gone", ErrDrift, p)
		}
	}
	return nil
}

func fenceRoutes() ([]netlink.Route, error) {
	filter := &netlink.Route{Table: unix.RT_TABLE_MAIN, Type: unix.RTN_UNREACHABLE, Protocol: fenceProtocol}
	const mask = netlink.RT_FILTER_TABLE | netlink.RT_FILTER_TYPE | netlink.RT_FILTER_PROTOCOL
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, filter, mask)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	return routes, nil
}

// removeRoutes removes the fence's routes, also those of prefixes that are not configured any more.
func removeRoutes() error {
	routes, err := fenceRoutes()
	if err != nil {
		return err
	}
	for _, r := range routes {
		if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("remove unreachable route %s: %w", r.Dst, err)
		}
	}
	return nil
}
