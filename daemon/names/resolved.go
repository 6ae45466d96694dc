package names

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

const (
	resolvedName = "org.freedesktop.resolve1"
	resolvedPath = "/org/freedesktop/resolve1"
	resolvedCall = "org.freedesktop.resolve1.Manager."
	tellAgain    = time.Minute
)

// tellResolved tells systemd-resolved, when it runs, where the mesh's names are known. It forgets it with the interface.
func (s *Server) tellResolved(ctx context.Context) {
	select {
	case <-s.serving:
	case <-ctx.Done():
		return
	}
	pause := backoff.NewExponentialBackOff()
	pause.MaxInterval = tellAgain
	for first := true; ctx.Err() == nil; first = false {
		err := s.wire(ctx)
		if err == nil {
			s.options.Logger.Info("systemd-resolved asks the overlay for names of agents", "domain", s.zone)
			return
		}
		if first && ctx.Err() == nil {
			s.options.Logger.Info("names of agents are not in the system's resolver; ask the overlay's (README, Names)", "servers", s.options.Listen, "reason", err)
		}
		wait(ctx, pause.NextBackOff()) // it may start later
	}
}

// wire has systemd-resolved ask this server for the mesh's names and for addresses in the overlay, and for nothing else. It
// asks in its own name, so that every program hears through it what the host itself may know.
func (s *Server) wire(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
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
	for _, call := range []struct { // the servers last: until then nothing is asked
		method string
		args   []any
	}{
		{"SetLinkDefaultRoute", []any{index, false}},
		{"SetLinkDomains", []any{index, linkDomains(s.zone, s.options.Prefixes)}},
		{"SetLinkDNS", []any{index, linkServers(s.options.Listen)}},
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

func linkDomains(zone string, overlay []netip.Prefix) []linkDomain {
	out := []linkDomain{{strings.TrimSuffix(zone, "."), true}}
	for _, p := range overlay {
		if reverse, ok := reverseZone(p); ok {
			out = append(out, linkDomain{strings.TrimSuffix(reverse, "."), true})
		}
	}
	return out
}
