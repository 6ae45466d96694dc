package link

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"testing"

	"github.com/bulkhead-mesh/bulkhead/overlay/tunnel"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Links over the socket that they share with WireGuard, under a flood of garbage of every kind.
func TestOverSharedSocket(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root: it makes a network namespace and TUN interfaces")
	}
	space := fmt.Sprintf("bhlink%d", os.Getpid())
	command(t, "ip", "netns", "add", space)
	t.Cleanup(func() { command(t, "ip", "netns", "del", space) })
	command(t, "ip", "-n", space, "link", "set", "lo", "up")

	f := newFleet(t)
	var noise *net.UDPConn
	tunnels := map[string]*tunnel.Tunnel{}
	inside(t, space, func() (err error) {
		for _, name := range []string{"a", "b"} {
			if tunnels[name], err = openTunnel(name); err != nil {
				return err
			}
		}
		noise, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		return err
	})
	t.Cleanup(func() { _ = noise.Close() })
	for name, tun := range tunnels {
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- tun.Run(ctx) }()
		t.Cleanup(func() {
			cancel()
			if err := <-ended; err != nil {
				t.Errorf("run tunnel %s: %v", name, err)
			}
		})
	}
	members := map[string]*member{}
	for name, tun := range tunnels {
		members[name] = f.startOn(name, f.authority.issue(t, name), tun.PacketConn())
		f.announce(name, at(tun))
	}
	a, b := members["a"], members["b"]
	a.sendUntil(t, b, "before")

	for i := range 20000 {
		packet := make([]byte, 1+i%1600)
		packet[0] = byte(i)
		_, _ = noise.WriteToUDPAddrPort(packet, at(tunnels["b"]))
	}
	a.sendUntil(t, b, "after")
	b.sendUntil(t, a, "back")
	if stats := tunnels["b"].Stats(); stats["foreignPackets"] == 0 || stats["quicOversize"] == 0 {
		t.Errorf("the flood has left no trace in %v", stats)
	}
	b.stop() // the socket is WireGuard's: it stays open
	if _, err := tunnels["b"].PacketConn().WriteTo([]byte{0x40}, net.UDPAddrFromAddrPort(at(tunnels["a"]))); err != nil {
		t.Errorf("after the link has ended: %v", err)
	}
}

func at(t *tunnel.Tunnel) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), t.Port())
}

func openTunnel(name string) (*tunnel.Tunnel, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	request, err := unix.NewIfreq(name)
	if err != nil {
		return nil, err
	}
	request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		return nil, fmt.Errorf("make TUN %s: %w", name, err)
	}
	key, err := tunnel.GenerateKey()
	if err != nil {
		return nil, err
	}
	return tunnel.New(tunnel.Options{
		TUN: os.NewFile(uintptr(fd), "/dev/net/tun"), MTU: 1420, PrivateKey: key, Logger: slog.New(slog.DiscardHandler),
	})
}

// inside runs f on a thread of its own in a namespace; the thread ends with it.
func inside(t *testing.T, space string, f func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		target, err := netns.GetFromName(space)
		if err == nil {
			err = netns.Set(target)
			_ = target.Close()
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func command(t testing.TB, words ...string) {
	t.Helper()
	if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", words, err, out)
	}
}
