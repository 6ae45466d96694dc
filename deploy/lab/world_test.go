package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// abandonEnv makes this test binary build a world, say its name, and wait to be killed.
const abandonEnv = "LAB_TEST_ABANDON"

func TestMain(m *testing.M) {
	if dir := os.Getenv(abandonEnv); dir != "" {
		if err := abandon(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

func abandon(dir string) error {
	w, err := New(dir)
	if err != nil {
		return err
	}
	h, err := w.AddHost("h1")
	if err != nil {
		return err
	}
	p, err := h.Start("endless", "cat", "/dev/zero")
	if err != nil {
		return err
	}
	fmt.Println(w.Name(), p.PID())
	select {}
}

func newWorld(t *testing.T) *World {
	t.Helper()
	w, err := New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// lan is a world of n hosts on one switch.
func lan(t *testing.T, n int) []*Host {
	t.Helper()
	w := newWorld(t)
	sw, err := w.AddSwitch("switch")
	if err != nil {
		t.Fatal(err)
	}
	var hosts []*Host
	for i := 1; i <= n; i++ {
		h, err := w.AddHost(fmt.Sprint("h", i))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := sw.Connect(h, address(t, "192.168.77.%d/24", i), address(t, "fd77::%d/64", i)); err != nil {
			t.Fatal(err)
		}
		hosts = append(hosts, h)
	}
	return hosts
}

func address(t *testing.T, format string, n int) netip.Prefix {
	t.Helper()
	p, err := netip.ParsePrefix(fmt.Sprintf(format, n))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// pings reports whether an echo comes back within this many seconds.
func pings(t *testing.T, from *Host, to netip.Addr, seconds int) bool {
	t.Helper()
	out, err := from.Run(t.Context(), "ping", "-n", "-i0.2", "-c1", fmt.Sprint("-w", seconds), to.String())
	if err != nil {
		t.Fatal(err)
	}
	return out.Code == 0
}

func wantPing(t *testing.T, want bool, from, to *Host) {
	t.Helper()
	for _, addr := range to.Addresses() {
		seconds := 1
		if want {
			seconds = 10 // neighbours may have to be found again
		}
		if got := pings(t, from, addr, seconds); got != want {
			t.Errorf("%s reaches %s at %s: %v, want %v", from.Name, to.Name, addr, got, want)
		}
	}
}

func TestSwitchConnectsAndCutsAndParts(t *testing.T) {
	t.Parallel()
	hosts := lan(t, 4)
	links := make([]*Link, len(hosts))
	for i, h := range hosts {
		links[i] = h.Links()[0]
	}
	wantPing(t, true, hosts[0], hosts[3])

	must(t, links[0].Cut())
	wantPing(t, false, hosts[0], hosts[3])
	wantPing(t, true, hosts[1], hosts[3])
	must(t, links[0].Heal())
	wantPing(t, true, hosts[0], hosts[3])

	must(t, links[2].Part())
	must(t, links[3].Part())
	wantPing(t, true, hosts[2], hosts[3])
	wantPing(t, true, hosts[0], hosts[1])
	wantPing(t, false, hosts[0], hosts[2])
	must(t, links[2].Heal())
	must(t, links[3].Heal())
	wantPing(t, true, hosts[0], hosts[2])
}

func TestLinkLosesPackets(t *testing.T) {
	t.Parallel()
	hosts := lan(t, 2)
	link := hosts[1].Links()[0]
	must(t, link.Lose(0.1))
	must(t, link.Lose(1)) // replaces the former share
	wantPing(t, false, hosts[0], hosts[1])
	must(t, link.Lose(0))
	wantPing(t, true, hosts[0], hosts[1])
	out, err := hosts[1].Run(t.Context(), "iptables-save", "-t", "raw")
	if err != nil || strings.Contains(out.Stdout, "-j DROP") {
		t.Errorf("rules are left: %v\n%s", err, out.Stdout)
	}
}

func TestLinkLimitsBandwidth(t *testing.T) {
	t.Parallel()
	hosts := lan(t, 2)
	link := hosts[1].Links()[0]
	must(t, link.Limit(4_000_000))
	must(t, link.Limit(1_000_000)) // replaces the former limit
	// 50 packets of 1000 bytes are 0.4 s at that rate; the bucket of 64 kB must be emptied first.
	begin := time.Now()
	out, err := hosts[0].Run(t.Context(), "ping", "-n", "-l200", "-c200", "-i0.002", "-s972", "-W5", hosts[1].Addresses()[0].String())
	must(t, err)
	if took := time.Since(begin); took < 300*time.Millisecond {
		t.Errorf("200 packets of 1000 bytes over 1 Mbit/s took %v\n%s", took, out.Stdout)
	}
	must(t, link.Limit(0))
	wantPing(t, true, hosts[0], hosts[1])
}

func TestRouterForwardsAndMasquerades(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	inside, err := w.AddSwitch("inside")
	must(t, err)
	outside, err := w.AddSwitch("outside")
	must(t, err)
	client, err := w.AddHost("client")
	must(t, err)
	server, err := w.AddHost("server")
	must(t, err)
	router, err := w.AddRouter("router")
	must(t, err)
	for _, c := range []struct {
		sw   *Switch
		host *Host
		v4   string
		v6   string
	}{
		{inside, client, "10.9.0.2/24", "fd09::2/64"}, {inside, router, "10.9.0.1/24", "fd09::1/64"},
		{outside, router, "192.168.77.254/24", "fd77::fe/64"}, {outside, server, "192.168.77.1/24", "fd77::1/64"},
	} {
		_, err := c.sw.Connect(c.host, netip.MustParsePrefix(c.v4), netip.MustParsePrefix(c.v6))
		must(t, err)
	}
	must(t, client.Route(netip.MustParsePrefix("0.0.0.0/0"), netip.MustParseAddr("10.9.0.1")))
	must(t, client.Route(netip.MustParsePrefix("::/0"), netip.MustParseAddr("fd09::1")))
	wantPing(t, false, client, server) // it has no way back
	must(t, router.Masquerade(router.Links()[1]))
	wantPing(t, true, client, server)
}

func TestProcessesRunStopAndDie(t *testing.T) {
	h := lan(t, 1)[0]
	out, err := h.RunWith(t.Context(), []byte("hello"), "sh", "-c", "cat; echo bad >&2; exit 7")
	must(t, err)
	if out.Stdout != "hello" || out.Stderr != "bad\n" || out.Code != 7 || out.Err() == nil {
		t.Errorf("Run = %+v", out)
	}
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := h.Run(short, "sleep", "60"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Run beyond its time = %v", err)
	}

	p, err := h.Start("polite", "sh", "-c", "trap 'echo ends; exit 0' TERM; echo starts; while :; do sleep 0.01; done")
	must(t, err)
	must(t, Await(t.Context(), "its first words", func() (bool, error) { return strings.Contains(p.Log(), "starts"), nil }))
	must(t, p.Stop(t.Context()))
	if err := p.Err(); err != nil || !strings.Contains(p.Log(), "ends") {
		t.Errorf("after Stop: %v, log %q", err, p.Log())
	}
	must(t, p.Kill()) // of one that has ended is nothing to do

	stubborn, err := h.Start("stubborn", "sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 0.01; done")
	must(t, err)
	must(t, Await(t.Context(), "it to be deaf", func() (bool, error) { return strings.Contains(stubborn.Log(), "deaf"), nil }))
	soon, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := stubborn.Stop(soon); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Stop of a deaf process = %v", err)
	}
	select {
	case <-stubborn.Done():
	default:
		t.Error("it was not killed")
	}
}

// TestCrashIsCleanedUp kills the owner of a world: the next world removes what it left, and no world that lives.
func TestCrashIsCleanedUp(t *testing.T) {
	alive := lan(t, 1)[0]
	owner := exec.Command(os.Args[0])
	owner.Env = append(os.Environ(), abandonEnv+"="+t.TempDir())
	stdout, err := owner.StdoutPipe()
	must(t, err)
	must(t, owner.Start())
	var name string
	var child int
	if _, err := fmt.Fscan(stdout, &name, &child); err != nil {
		t.Fatal(err)
	}
	space := filepath.Join(namespaceDir, name+"-h1")
	newWorld(t)
	if _, err := os.Stat(space); err != nil {
		t.Fatalf("a world that lives was removed: %v", err)
	}

	must(t, owner.Process.Kill())
	if err := owner.Wait(); err == nil {
		t.Fatal("the owner was not killed")
	}
	if err := unix.Kill(child, 0); err != nil {
		t.Fatalf("its child does not run any more, so that nothing is tested: %v", err)
	}
	newWorld(t)
	if _, err := os.Stat(space); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its namespace is still there: %v", err)
	}
	if _, err := os.Stat(filepath.Join(registryDir, name)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its name is still taken: %v", err)
	}
	must(t, Await(t.Context(), "its child to end", func() (bool, error) { return ended(child), nil }))
	if !pings(t, alive, alive.Addresses()[0], 2) {
		t.Error("a world that lives was harmed")
	}
}

// ended also says so of a process that nobody has collected yet.
func ended(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(stat), ") Z ")
}

func TestWorldLeavesTheMachineAlone(t *testing.T) {
	look := func() string {
		var all strings.Builder
		for _, args := range [][]string{{"ip", "-o", "link"}, {"ip", "-o", "addr"}, {"ip", "route"}, {"iptables-save"}, {"ip6tables-save"}} {
			out, err := output(args[0], args[1:]...)
			must(t, err)
			for line := range strings.Lines(out) {
				if !strings.HasPrefix(line, "#") && !strings.HasPrefix(line, ":") {
					all.WriteString(line)
				}
			}
		}
		return all.String()
	}
	before := look()
	w, err := New(t.TempDir())
	must(t, err)
	sw, err := w.AddSwitch("switch")
	must(t, err)
	h, err := w.AddHost("h1")
	must(t, err)
	link, err := sw.Connect(h, netip.MustParsePrefix("192.168.77.1/24"))
	must(t, err)
	must(t, link.Lose(0.5))
	p, err := h.Start("endless", "sleep", "600")
	must(t, err)
	if during := look(); during != before {
		t.Errorf("the machine looks like\n%s\nand not as before:\n%s", during, before)
	}
	must(t, w.Close())
	if after := look(); after != before {
		t.Errorf("the machine looks like\n%s\nand not as before:\n%s", after, before)
	}
	if err := unix.Kill(p.PID(), 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("a process outlives its world: %v", err)
	}
	left, err := filepath.Glob(filepath.Join(namespaceDir, w.Name()+"-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("namespaces are left: %v, %v", left, err)
	}
}
