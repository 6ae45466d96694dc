package tunnel

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Two network namespaces, joined by a veth pair, with real TUN interfaces: the kernel's ping passes.
func TestKernelPing(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root: it makes network namespaces and TUN interfaces")
	}
	left, right := namespace(t, "l"), namespace(t, "r")
	run(t, "ip", "-n", left, "link", "add", "under", "type", "veth", "peer", "name", "under", "netns", right)
	a := kernelNode(t, left, "a", "192.0.2.1", "10.0.0.1")
	b := kernelNode(t, right, "b", "192.0.2.2", "10.0.0.2")
	a.apply(t, b.peer(netip.MustParseAddrPort(fmt.Sprintf("192.0.2.2:%d", b.Port()))))
	b.apply(t, a.peer())
	run(t, "ip", "netns", "exec", left, "ping", "-q", "-c", "3", "-i", "0.2", "-w", "10", "10.0.0.2")

	run(t, "ip", "-n", right, "link", "set", "bulkhead0", "down")
	run(t, "ip", "-n", right, "link", "set", "bulkhead0", "up")
	run(t, "ip", "netns", "exec", left, "ping", "-q", "-c", "1", "-w", "10", "10.0.0.2")

	b.apply(t)
	if out, err := exec.Command("ip", "netns", "exec", left, "ping", "-q", "-c", "2", "-i", "0.2", "-W", "1", "10.0.0.2").CombinedOutput(); err == nil {
		t.Errorf("a removed peer still answers:\n%s", out)
	}
}

func namespace(t testing.TB, side string) string {
	t.Helper()
	name := fmt.Sprintf("bhtun%d%s", os.Getpid(), side)
	run(t, "ip", "netns", "add", name)
	t.Cleanup(func() { run(t, "ip", "netns", "del", name) })
	run(t, "ip", "-n", name, "link", "set", "lo", "up")
	return name
}

// kernelNode opens a tunnel inside a namespace, so that its TUN and its sockets are there.
func kernelNode(t *testing.T, space, name, under, over string) *node {
	t.Helper()
	run(t, "ip", "-n", space, "addr", "add", under+"/24", "dev", "under")
	run(t, "ip", "-n", space, "link", "set", "under", "up")
	key, err := GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	var tunnel *Tunnel
	inside(t, space, func() {
		tunnel, err = New(Options{TUN: openTUN(t), MTU: 1420, PrivateKey: key, Logger: slog.New(slog.DiscardHandler)})
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- tunnel.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("run %s: %v", name, err)
		}
	})
	run(t, "ip", "-n", space, "addr", "add", over+"/24", "dev", "bulkhead0")
	run(t, "ip", "-n", space, "link", "set", "bulkhead0", "up")
	return &node{Tunnel: tunnel, name: name, addr: netip.MustParseAddr(over)}
}

// inside runs f on a thread of its own in a namespace; the thread ends with it.
func inside(t *testing.T, space string, f func()) {
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
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func openTUN(t *testing.T) *os.File {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Errorf("open /dev/net/tun: %v", err)
		return nil
	}
	request, err := unix.NewIfreq("bulkhead0")
	if err == nil {
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		t.Errorf("make TUN: %v", err)
	}
	return os.NewFile(uintptr(fd), "/dev/net/tun")
}

func run(t testing.TB, command ...string) {
	t.Helper()
	if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(command, " "), err, out)
	}
}
