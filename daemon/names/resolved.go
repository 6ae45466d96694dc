package names

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

const (
	resolvedName = "org.freedesktop.resolve1"
	resolvedPath = "/org/freedesktop/resolve1"
	resolvedCall = "org.freedesktop.resolve1.Manager."
)

// wire has systemd-resolved ask this server for the mesh's names and for addresses in the overlay, and for nothing else. It
// asks in its own name, so that every program hears through it what the host itself may know.
func (s *Server) wire(ctx context.Context) error {
	iface, err := net.InterfaceByName(s.options.Interface)
	if err != nil {
		return fmt.Errorf("tell systemd-resolved: %w", err)
	}
	bus, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
	if err != nil {
		return fmt.Errorf("systemd-resolved is not there: %w", err)
	}
	defer bus.Close()
	manager := bus.Object(resolvedName, resolvedPath)
	index := int32(iface.Index)
	for _, call := range []struct {
		method string
		args   []any
	}{
		{"SetLinkDNS", []any{index, linkServers(s.options.Listen)}},
		{"SetLinkDomains", []any{index, linkDomains(s.zone)}},
		{"SetLinkDefaultRoute", []any{index, false}},
	} {
		if err := manager.CallWithContext(ctx, resolvedCall+call.method, dbus.FlagNoAutoStart, call.args...).Err; err != nil {
			return fmt.Errorf("tell systemd-resolved: %s: %w", call.method, err)
		}
	}
	return nil
}

// linkServer is a server as systemd-resolved has it: (iay).
type linkServer struct {
	Family  int32
	Address []byte
}

// linkDomain is a domain as systemd-resolved has it: (sb). One for routing is searched for no short names.
type linkDomain struct {
	Name    string
	Routing bool
}

func linkServers(listen []netip.AddrPort) []linkServer {
	var out []linkServer
	for _, at := range listen {
		family := int32(unix.AF_INET6)
		if at.Addr().Is4() {
			family = unix.AF_INET
		}
		out = append(out, linkServer{family, at.Addr().AsSlice()})
	}
	return out
}

func linkDomains(zone string) []linkDomain {
	return []linkDomain{{strings.TrimSuffix(zone, "."), true}}
}
