package platform

import (
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const testLink = "bulkhead0"

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// openTestTUN makes the interface in s for the time of the test.
func openTestTUN(t *testing.T, s space) *os.File {
	t.Helper()
	var file *os.File
	s.must(t, func() (err error) {
		file, err = OpenTUN(testLink)
		return err
	})
	t.Cleanup(func() { file.Close() })
	return file
}

func TestConfigureLinkGivesExactlyTheseAddresses(t *testing.T) {
	s := newSpace(t)
	openTestTUN(t, s)
	routes := []netip.Prefix{prefix4, prefix6}
	steps := [][]netip.Addr{
		addrs("10.201.0.3", "fd00:bd::3"),
		addrs("10.201.0.3", "fd00:bd::3"), // again: nothing changes
		addrs("10.201.0.4", "10.201.0.5", "fd00:bd::4"),
		addrs("10.201.0.5"),
		nil,
		addrs("fd00:bd::9"),
	}
	for i, want := range steps {
		s.must(t, func() error {
			if err := ConfigureLink(testLink, 1300, want, routes); err != nil {
				return err
			}
			link, err := netlink.LinkByName(testLink)
			if err != nil {
				return err
			}
			if a := link.Attrs(); a.MTU != 1300 || a.RawFlags&unix.IFF_UP == 0 {
				t.Errorf("step %d: mtu %d, flags %v", i, a.MTU, a.Flags)
			}
			have, err := netlink.AddrList(link, netlink.FAMILY_ALL)
			if err != nil {
				return err
			}
			var got []netip.Addr
			for _, a := range have {
				addr, _ := netip.AddrFromSlice(a.IP)
				got = append(got, addr.Unmap())
				if ones, bits := a.Mask.Size(); ones != bits {
					t.Errorf("step %d: %v is not a single host", i, a.IPNet)
				}
			}
			slices.SortFunc(got, netip.Addr.Compare)
			if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
				t.Errorf("step %d: addresses (-want +got):\n%s", i, diff)
			}
			for _, p := range routes {
				source := slices.IndexFunc(want, func(a netip.Addr) bool { return a.Is4() == p.Addr().Is4() })
				out, _ := exec.Command("ip", "-o", "route", "get", p.Addr().Next().Next().String()).CombinedOutput()
				routed := strings.Contains(string(out), "dev "+testLink)
				if source >= 0 && (!routed || !strings.Contains(string(out), "src "+want[source].String()+" ")) {
					t.Errorf("step %d: packets to %s go %s, want through %s from %s", i, p, out, testLink, want[source])
				}
			}
			return nil
		})
	}
}

func TestConfigureLinkMakesItDeaf(t *testing.T) {
	s := newSpace(t)
	openTestTUN(t, s)
	s.must(t, func() error {
		if err := ConfigureLink(testLink, 1420, nil, nil); err != nil {
			return err
		}
		for _, l := range linkSettings {
			out, err := exec.Command("sysctl", "-n", "net."+l.family+".conf."+testLink+"."+l.key).Output()
			if err != nil {
				return err
			}
			if got := strings.TrimSpace(string(out)); got != l.value {
				t.Errorf("%s of %s is %s, want %s", l.key, l.family, got, l.value)
			}
		}
		return nil
	})
}

func TestConfigureLinkWithoutInterface(t *testing.T) {
	newSpace(t).must(t, func() error {
		if err := ConfigureLink("absent0", 1420, nil, nil); err == nil {
			t.Error("ConfigureLink of an absent interface succeeds")
		}
		return nil
	})
}

func TestOpenTUNCarriesPacketsAndEndsWithItsFile(t *testing.T) {
	s := newSpace(t)
	tun := openTestTUN(t, s)
	s.must(t, func() error {
		if _, err := OpenTUN(testLink); err == nil || !strings.Contains(err.Error(), "in use") {
			t.Errorf("OpenTUN of a busy name = %v", err)
		}
		if _, err := OpenTUN("a-name-far-too-long"); err == nil {
			t.Error("OpenTUN takes a name that is too long")
		}
		if err := ConfigureLink(testLink, 1420, addrs("10.201.0.3"), []netip.Prefix{prefix4}); err != nil {
			return err
		}
		conn, err := net.Dial("udp", "10.201.0.9:7")
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = conn.Write([]byte("hello"))
		return err
	})
	packet := make([]byte, 2048)
	for {
		n, err := tun.Read(packet)
		if err != nil {
			t.Fatal(err)
		}
		// Ten bytes of virtio header, then the IPv4 packet: protocol UDP.
		if n > 20 && packet[10]>>4 == 4 && packet[10+9] == unix.IPPROTO_UDP {
			break
		}
	}
	if err := tun.Close(); err != nil {
		t.Fatal(err)
	}
	s.must(t, func() error {
		if _, err := netlink.LinkByName(testLink); err == nil {
			t.Error("the interface outlives its file")
		}
		return nil
	})
}

func TestUnderlayAddrs(t *testing.T) {
	s := newSpace(t)
	openTestTUN(t, s)
	s.must(t, func() error {
		if err := ConfigureLink(testLink, 1420, addrs("10.201.0.3", "fd00:bd::3"), nil); err != nil {
			return err
		}
		for _, args := range []string{
			"link add up0 type veth peer name up1", "addr add 192.168.77.1/24 dev up0", "addr add fd77::1/64 dev up0 nodad",
			"link set up0 up", "link set up1 up", "link add off0 type veth peer name off1", "addr add 192.168.78.1/24 dev off0",
			"addr add 169.254.3.3/16 dev up0",
		} {
			if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
				t.Fatalf("ip %s: %v: %s", args, err, out)
			}
		}
		got, err := UnderlayAddrs(testLink)
		if err != nil {
			return err
		}
		if want := addrs("192.168.77.1", "fd77::1"); !slices.Equal(got, want) {
			t.Errorf("UnderlayAddrs = %v, want %v", got, want)
		}
		return nil
	})
}

func TestSysctlThatIsRightIsNotWritten(t *testing.T) {
	path := t.TempDir() + "/setting"
	if err := os.WriteFile(path, []byte("1\n"), 0o444); err != nil {
		t.Fatal(err)
	}
	if err := setSysctl(path, "1"); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "1\n" {
		t.Fatalf("it was written: %q, %v", got, err)
	}
	if err := setSysctl(path+"-absent", "1"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path + "-absent"); !os.IsNotExist(err) {
		t.Fatalf("a setting was made up: %v", err)
	}
}
