package platform

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-mesh/bulkhead/overlay"
)

var (
	prefix4 = netip.MustParsePrefix("10.201.0.0/16")
	prefix6 = netip.MustParsePrefix("fd00:bd::/48")

	here4, here6   = netip.MustParseAddr("10.201.0.1"), netip.MustParseAddr("fd00:bd::1")
	near4, near6   = netip.MustParseAddr("10.201.0.11"), netip.MustParseAddr("fd00:bd::11") // another agent here, where there is one
	there4, there6 = netip.MustParseAddr("10.201.0.2"), netip.MustParseAddr("fd00:bd::2")
)

// space is a network namespace that goes with the test.
type space struct{ handle netns.NsHandle }

func newSpace(t testing.TB) space {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test makes network namespaces: run it as root")
	}
	var s space
	if err := onThread(func() (err error) {
		s.handle, err = netns.New()
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.handle.Close() })
	s.must(t, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	return s
}

// onThread runs fn on a thread that ends with it.
func onThread(fn func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread is of no use to others
		done <- fn()
	}()
	return <-done
}

// do runs fn inside; sockets and children that it makes stay there.
func (s space) do(fn func() error) error {
	return onThread(func() error {
		if err := netns.Set(s.handle); err != nil {
			return err
		}
		return fn()
	})
}

func (s space) must(t testing.TB, fn func() error) {
	t.Helper()
	if err := s.do(fn); err != nil {
		t.Fatal(err)
	}
}

// sh runs a shell script inside and returns what it prints.
func (s space) sh(t testing.TB, script string) string {
	t.Helper()
	var out []byte
	s.must(t, func() (err error) {
		out, err = output(script)
		return err
	})
	return string(out)
}

func output(script string) ([]byte, error) {
	out, err := exec.Command("sh", "-ec", script).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", script, err, out)
	}
	return out, err
}

func shell(script string) error {
	_, err := output(script)
	return err
}

// world is two hosts whose overlay interfaces are the ends of one cable. here has the firewall.
type world struct {
	here, there space
	firewall    *Firewall
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{here: newSpace(t), there: newSpace(t)}
	w.here.must(t, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "bulkhead0"
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "bulkhead0", PeerNamespace: netlink.NsFd(w.there.handle)})
	})
	plug(t, w.here, here4, here6)
	plug(t, w.there, there4, there6)
	w.here.settle(t, here6)
	w.there.settle(t, there6)
	w.firewall = w.newFirewall(t)
	return w
}

// settle waits until the kernel has noticed that the cable is plugged in, which on a busy machine takes a moment.
func (s space) settle(t testing.TB, addr netip.Addr) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for range 1000 {
		routes := s.sh(t, "ip route show table all; ip -6 route show table all")
		if !strings.Contains(routes, "linkdown") && strings.Contains(routes, "local "+addr.String()+" ") {
			return
		}
		<-tick.C
	}
	t.Fatal("the cable does not come up")
}

// plug sets the end of a cable up. Like a TUN device it resolves no addresses: both ends have the same one.
func plug(t testing.TB, s space, addrs ...netip.Addr) {
	t.Helper()
	s.must(t, func() error {
		link, err := netlink.LinkByName("bulkhead0")
		if err != nil {
			return err
		}
		errs := []error{
			netlink.LinkSetHardwareAddr(link, net.HardwareAddr{2, 0, 0, 0, 0, 1}),
			netlink.LinkSetARPOff(link),
		}
		for _, a := range addrs {
			p := prefix4
			if a.Is6() {
				p = prefix6
			}
			errs = append(errs, netlink.AddrAdd(link, &netlink.Addr{
				IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(p.Bits(), a.BitLen())}, Flags: unix.IFA_F_NODAD,
			}))
		}
		return errors.Join(append(errs, netlink.LinkSetUp(link))...)
	})
}

func (w *world) newFirewall(t testing.TB) *Firewall {
	t.Helper()
	f, err := NewFirewall(FirewallOptions{
		Interface: "bulkhead0",
		Prefixes:  []netip.Prefix{prefix4, prefix6},
		Resolvers: overlay.ResolverAddrs([]netip.Prefix{prefix4, prefix6}),
		Logger:    slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func (w *world) fence(t testing.TB) {
	t.Helper()
	w.here.must(t, func() error { return w.firewall.Fence(context.Background()) })
}

func (w *world) apply(t testing.TB, allow ...overlay.Allow) {
	t.Helper()
	w.here.must(t, func() error { return w.firewall.Apply(context.Background(), config(allow...)) })
}

func (w *world) drops(t testing.TB) (drops map[string]uint64) {
	t.Helper()
	w.here.must(t, func() (err error) {
		w.firewall.drops.last = nil // what counts is now, not a second ago
		drops, err = w.firewall.Drops(context.Background())
		return err
	})
	return drops
}

func (w *world) check(t testing.TB) error {
	t.Helper()
	return w.here.do(func() error { return w.firewall.Check(context.Background()) })
}

func config(allow ...overlay.Allow) overlay.FirewallConfig {
	return overlay.FirewallConfig{Local: []netip.Addr{here4, here6}, Allow: allow}
}

// grant allows a port range in a direction, in both families.
func grant(d overlay.Direction, proto uint8, first, last uint16) []overlay.Allow {
	return []overlay.Allow{
		{Direction: d, Remote: there4, Local: here4, Proto: proto, First: first, Last: last},
		{Direction: d, Remote: there6, Local: here6, Proto: proto, First: first, Last: last},
	}
}

// guard runs the firewall's guard until the test ends, and returns what drift it reports.
func (w *world) guard(t testing.TB) <-chan error {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	drift := make(chan error, 100)
	done := make(chan error)
	go func() {
		done <- w.here.do(func() error { return w.firewall.Guard(ctx, func(err error) { drift <- err }) })
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return drift
}

// eventually polls until ok is true.
func eventually(t testing.TB, limit time.Duration, what string, ok func() bool) time.Duration {
	t.Helper()
	start := time.Now()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Since(start) > limit {
			t.Fatalf("not within %s: %s", limit, what)
		}
		<-tick.C
	}
	return time.Since(start)
}

// serve echoes TCP connections and UDP packets to the ports, of any address inside s.
func serve(t testing.TB, s space, ports ...int) {
	t.Helper()
	for _, port := range ports {
		s.must(t, func() error {
			l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
			if err != nil {
				return err
			}
			t.Cleanup(func() { l.Close() })
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					go func() {
						defer c.Close()
						io.Copy(c, c)
					}()
				}
			}()
			// One socket a family: an answer must come from the address that was asked.
			for _, addr := range append([]netip.Addr{here4, here6, near4, near6, there4, there6}, overlay.ResolverAddrs([]netip.Prefix{prefix4, prefix6})...) {
				p, err := net.ListenPacket("udp", netip.AddrPortFrom(addr, uint16(port)).String())
				if err != nil {
					continue // of the other host
				}
				t.Cleanup(func() { p.Close() })
				go func() {
					buf := make([]byte, 2048)
					for {
						n, from, err := p.ReadFrom(buf)
						if errors.Is(err, net.ErrClosed) {
							return
						}
						if err == nil {
							p.WriteTo(buf[:n], from)
						}
					}
				}()
			}
			return nil
		})
	}
}

// How long to wait for an answer that is expected, on a busy machine, and for one that is not.
const (
	expected   = 10 * time.Second
	unexpected = 400 * time.Millisecond
)

// reach reports whether a question from src, inside s, to a port of dst is answered.
func reach(s space, network string, src, dst netip.Addr, port int, limit time.Duration) (bool, error) {
	if network == "icmp" {
		return echo(s, src, dst, limit)
	}
	var conn net.Conn
	err := s.do(func() error {
		d := net.Dialer{Timeout: limit}
		if network == "tcp" {
			d.LocalAddr = &net.TCPAddr{IP: src.AsSlice()}
		} else {
			d.LocalAddr = &net.UDPAddr{IP: src.AsSlice()}
		}
		var err error
		conn, err = d.Dial(network, netip.AddrPortFrom(dst, uint16(port)).String())
		return err
	})
	if err != nil {
		return false, nil
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(limit))
	if _, err := conn.Write([]byte("?")); err != nil {
		return false, nil
	}
	buf := make([]byte, 1)
	_, err = io.ReadFull(conn, buf)
	return err == nil, nil
}

// passes reports whether a TCP port is reached, however busy the machine; blocked that it is not, soon.
func passes(s space, src, dst netip.Addr, port int) bool {
	ok, _ := reach(s, "tcp", src, dst, port, expected)
	return ok
}

func blocked(s space, src, dst netip.Addr, port int) bool {
	ok, _ := reach(s, "tcp", src, dst, port, unexpected)
	return !ok
}

// echo sends an ICMP echo request and waits for the reply to it.
func echo(s space, src, dst netip.Addr, limit time.Duration) (bool, error) {
	domain, proto, request, reply := unix.AF_INET, unix.IPPROTO_ICMP, byte(8), byte(0)
	var from, to unix.Sockaddr = &unix.SockaddrInet4{Addr: [4]byte(src.AsSlice()[:4])}, &unix.SockaddrInet4{Addr: [4]byte(dst.AsSlice()[:4])}
	if src.Is6() {
		domain, proto, request, reply = unix.AF_INET6, unix.IPPROTO_ICMPV6, 128, 129
		from, to = &unix.SockaddrInet6{Addr: src.As16()}, &unix.SockaddrInet6{Addr: dst.As16()}
	}
	var fd int
	if err := s.do(func() (err error) {
		fd, err = unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, proto)
		return err
	}); err != nil {
		return false, err
	}
	defer unix.Close(fd)
	timeout := unix.NsecToTimeval(int64(limit))
	if err := errors.Join(unix.Bind(fd, from), unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout)); err != nil {
		return false, err
	}
	id := byte(fd)
	message := []byte{request, 0, 0, 0, 0xbd, id, 0, 1, 'p', 'i', 'n', 'g'}
	if domain == unix.AF_INET { // the kernel does it for IPv6
		sum := 0
		for i := 0; i < len(message); i += 2 {
			sum += int(message[i])<<8 | int(message[i+1])
		}
		sum = ^(sum>>16 + sum&0xffff)
		message[2], message[3] = byte(sum>>8), byte(sum)
	}
	if err := unix.Sendto(fd, message, 0, to); err != nil {
		return false, nil // refused by a rule
	}
	buf := make([]byte, 256)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return false, nil
		}
		got := buf[:n]
		if domain == unix.AF_INET && n > 20 {
			got = buf[20:n]
		}
		if len(got) > 6 && got[0] == reply && got[4] == 0xbd && got[5] == id {
			return true, nil
		}
	}
}

// saved is all rules inside, without the lines that differ from call to call.
func saved(t testing.TB, s space) string {
	t.Helper()
	var out []string
	for line := range strings.Lines(s.sh(t, "iptables-save; ip6tables-save; ipset save -sorted; ip route show table all; ip -6 route show table all")) {
		if !strings.HasPrefix(line, "#") {
			out = append(out, line)
		}
	}
	return strings.Join(out, "")
}
