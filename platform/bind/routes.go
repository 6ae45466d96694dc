package bind

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-mesh/bulkhead/overlay"
)

// Each agent's mark leads to a table of its own, whose routes have its addresses as source. Tables and priorities of rules
// are numbered from firstTable; the protocol tells routes from those of others.
const (
	firstTable    = 20100
	routeProtocol = 201
)

// Route has the routes choose the source of sockets that have a mark, as far as the interface and its addresses are there.
// It is idempotent.
func (b *Binding) Route() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	iface, err := netlink.LinkByName(b.options.Interface)
	if err != nil {
		return fmt.Errorf("route by marks: %w", err)
	}
	wanted := make(map[int]bool) // tables
	for _, bound := range b.config.Agents {
		mark := b.state.agents[b.state.ids[bound.Agent]].Mark
		table := tableOf(mark)
		wanted[table] = true
		for _, p := range b.options.Prefixes {
			src, ok := sourceIn(bound, p)
			if !ok {
				continue
			}
			if err := addRule(mark, table, p); err != nil {
				return fmt.Errorf("route by marks: %w", err)
			}
			err := netlink.RouteReplace(&netlink.Route{
				LinkIndex: iface.Attrs().Index, Dst: ipNet(p), Src: src.AsSlice(), Scope: netlink.SCOPE_LINK, Table: table, Protocol: routeProtocol,
			})
			if err != nil {
				return fmt.Errorf("route by marks: %s from %s: %w", p, src, err)
			}
		}
	}
	return removeRules(func(table int) bool { return !wanted[table] })
}

func tableOf(mark uint32) int { return firstTable + int(mark>>24&^markBase) }

func sourceIn(b overlay.Binding, p netip.Prefix) (netip.Addr, bool) {
	for _, a := range b.Addresses {
		if p.Contains(a) {
			return a, true
		}
	}
	return netip.Addr{}, false
}

func addRule(mark uint32, table int, p netip.Prefix) error {
	mask := uint32(markMask)
	rule := netlink.NewRule()
	rule.Family, rule.Mark, rule.Mask, rule.Dst, rule.Table, rule.Priority, rule.Protocol = familyOf(p), mark, &mask, ipNet(p), table, table, routeProtocol
	if err := netlink.RuleAdd(rule); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("rule for mark %#x: %w", mark, err)
	}
	return nil
}

// removeRoutes removes all rules of ours, and their tables.
func removeRoutes() error { return removeRules(func(int) bool { return true }) }

func removeRules(unwanted func(table int) bool) error {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		rules, err := netlink.RuleList(family)
		if err != nil {
			return fmt.Errorf("list rules: %w", err)
		}
		for _, r := range rules {
			if r.Table < firstTable || r.Table >= firstTable+maxSlots || r.Priority != r.Table || !unwanted(r.Table) {
				continue
			}
			r.Family = family
			if err := netlink.RuleDel(&r); err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("remove rule of table %d: %w", r.Table, err)
			}
			if err := flush(family, r.Table); err != nil {
				return err
			}
		}
	}
	return nil
}

func flush(family, table int) error {
	routes, err := netlink.RouteListFiltered(family, &netlink.Route{Table: table}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return fmt.Errorf("list table %d: %w", table, err)
	}
	for _, r := range routes {
		if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("flush table %d: %w", table, err)
		}
	}
	return nil
}

func familyOf(p netip.Prefix) int {
	if p.Addr().Is4() {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
