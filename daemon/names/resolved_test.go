package names

import (
	"bufio"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"
)

// resolved stands in for systemd-resolved on a bus of the test's own. What resolved itself makes of it is not tested here.
type resolved struct {
	mu    sync.Mutex
	calls []any // method, interface, argument in turn
	done  chan struct{}
	fault *dbus.Error
}

func (r *resolved) note(method string, index int32, arg any) *dbus.Error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fault != nil {
		return r.fault
	}
	r.calls = append(r.calls, method, index, arg)
	if len(r.calls) == 9 {
		close(r.done)
	}
	return nil
}

func (r *resolved) SetLinkDNS(index int32, servers []linkServer) *dbus.Error {
	return r.note("SetLinkDNS", index, servers)
}

func (r *resolved) SetLinkDomains(index int32, domains []linkDomain) *dbus.Error {
	return r.note("SetLinkDomains", index, domains)
}

func (r *resolved) SetLinkDefaultRoute(index int32, is bool) *dbus.Error {
	return r.note("SetLinkDefaultRoute", index, is)
}

// newBus starts a bus, to which this process turns for the system's, and connects to it.
func newBus(t *testing.T) *dbus.Conn {
	t.Helper()
	address := "unix:path=" + filepath.Join(t.TempDir(), "bus")
	config := filepath.Join(t.TempDir(), "bus.conf")
	err := os.WriteFile(config, []byte(`<busconfig><type>session</type><listen>`+address+`</listen>
<policy context="default"><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy></busconfig>`), 0o644)
	if err != nil {
		t.Fatal(err)
	}
	bus := exec.Command("dbus-daemon", "--nofork", "--print-address", "--config-file", config)
	stdout, err := bus.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := bus.Start(); err != nil {
		t.Fatalf("tests of systemd-resolved need dbus-daemon: %v", err)
	}
	t.Cleanup(func() { _ = bus.Process.Kill(); _ = bus.Wait() })
	if _, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
	conn, err := dbus.Connect(address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// serve puts r on the bus.
func (r *resolved) serve(t *testing.T, conn *dbus.Conn) {
	t.Helper()
	if err := conn.Export(r, resolvedPath, resolvedName+".Manager"); err != nil {
		t.Fatal(err)
	}
	if reply, err := conn.RequestName(resolvedName, dbus.NameFlagDoNotQueue); err != nil || reply != dbus.RequestNameReplyPrimaryOwner {
		t.Fatal(reply, err)
	}
}

// systemd-resolved is told once it is there, also if it comes later, and the servers last.
func TestResolvedIsToldWhenItComes(t *testing.T) {
	conn := newBus(t)
	o := (&phonebook{}).options()
	o.Interface, o.Listen = "lo", []netip.AddrPort{netip.AddrPortFrom(scout, 0)}
	said := make(chan struct{}, 1)
	o.Logger = slog.New(informed{slog.DiscardHandler, said})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- New(o).Run(ctx) }()
	<-said // that it is not there
	r := &resolved{done: make(chan struct{})}
	r.serve(t, conn)
	select {
	case <-r.done:
	case <-time.After(20 * time.Second):
		t.Error("it was not told")
	}
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	index := int32(lo.Index)
	want := []any{
		"SetLinkDefaultRoute", index, false,
		"SetLinkDomains", index, []linkDomain{{"acme.example.internal", true}, {"201.10.in-addr.arpa", true}, {"0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa", true}},
		"SetLinkDNS", index, []linkServer{{2, []byte{127, 0, 0, 2}}},
	}
	r.mu.Lock()
	if diff := cmp.Diff(want, r.calls); diff != "" {
		t.Errorf("told (-want +got):\n%s", diff)
	}
	r.mu.Unlock()
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// informed notes the first message at level info.
type informed struct {
	slog.Handler
	said chan struct{}
}

func (i informed) Enabled(context.Context, slog.Level) bool { return true }

func (i informed) Handle(_ context.Context, r slog.Record) error {
	if r.Level == slog.LevelInfo {
		select {
		case i.said <- struct{}{}:
		default:
		}
	}
	return nil
}

func TestResolvedRefuses(t *testing.T) {
	conn := newBus(t)
	o := (&phonebook{}).options()
	o.Interface = "lo"
	s := New(o)
	r := &resolved{done: make(chan struct{}), fault: dbus.MakeFailedError(errors.New("the link is managed"))}
	r.serve(t, conn)
	if err := s.wire(t.Context()); err == nil || err.Error() != "tell systemd-resolved: SetLinkDefaultRoute: the link is managed" {
		t.Errorf("got %v", err)
	}
	s.options.Interface = "bulkhead-none"
	if err := s.wire(t.Context()); err == nil {
		t.Error("an interface that is not there")
	}
	s.options.Interface = "lo"
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+filepath.Join(t.TempDir(), "none"))
	if err := s.wire(t.Context()); err == nil {
		t.Error("no bus")
	}
}

// What systemd-resolved is told has the types of its interface: a(iay) and a(sb).
func TestResolvedIsToldInItsTypes(t *testing.T) {
	servers := linkServers([]netip.AddrPort{netip.MustParseAddrPort("10.201.0.53:53"), netip.MustParseAddrPort("[fd00::35]:53")})
	if got := dbus.SignatureOf(servers).String(); got != "a(iay)" {
		t.Errorf("servers are %s", got)
	}
	if got := dbus.SignatureOf(linkDomains("acme.example.internal.", nil)).String(); got != "a(sb)" {
		t.Errorf("domains are %s", got)
	}
	if servers[0].Family != 2 || len(servers[0].Address) != 4 || servers[1].Family != 10 || len(servers[1].Address) != 16 {
		t.Errorf("got %v", servers)
	}
}
