package platform

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-mesh/bulkhead/overlay"
)

// Programs of tests are the test's own binary, told what to do on standard input.
const programEnv = "BULKHEAD_OWNER_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(programEnv) != "" {
		runProgram()
		return
	}
	os.Exit(m.Run())
}

// runProgram obeys lines like "ask udp 10.201.0.1 10.201.0.2 443" and "serve tcp 10.201.0.1 443", and prints ok or an error.
func runProgram() {
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		if err := obey(strings.Fields(in.Text())); err != nil {
			fmt.Println(strings.ReplaceAll(err.Error(), "\n", " "))
		} else {
			fmt.Println("ok")
		}
	}
}

func obey(order []string) error {
	if order[0] == "serve" {
		l, err := net.Listen(order[1], net.JoinHostPort(order[2], order[3]))
		if err != nil {
			return err
		}
		go func() {
			for c, err := l.Accept(); err == nil; c, err = l.Accept() {
				go io.Copy(c, c)
			}
		}()
		return nil
	}
	d := net.Dialer{Timeout: expected, LocalAddr: &net.TCPAddr{IP: net.ParseIP(order[2])}}
	if order[1] == "udp" {
		d.LocalAddr = &net.UDPAddr{IP: net.ParseIP(order[2])}
	}
	c, err := d.Dial(order[1], net.JoinHostPort(order[3], order[4]))
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(expected)); err != nil {
		return err
	}
	if _, err := c.Write([]byte("?")); err != nil {
		return err
	}
	_, err = io.ReadFull(c, make([]byte, 1))
	return err
}

// program is a running one.
type program struct {
	in  io.Writer
	out *bufio.Scanner
}

// tell gives an order and returns the answer.
func (p *program) tell(t *testing.T, order string) string {
	t.Helper()
	if _, err := fmt.Fprintln(p.in, order); err != nil {
		t.Fatal(err)
	}
	if !p.out.Scan() {
		t.Fatalf("the program ended at %q: %v", order, p.out.Err())
	}
	return p.out.Text()
}

// start runs a program inside s, in a cgroup, as a user, until the test ends or stop is called.
func start(t *testing.T, s space, group string, uid int) (p *program, stop func()) {
	t.Helper()
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	dir, err := os.Open(group)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	cmd := exec.Command("/proc/self/fd/3") // the user need not be able to find it
	cmd.Env = append(os.Environ(), programEnv+"=1")
	cmd.Stderr, cmd.ExtraFiles = os.Stderr, []*os.File{self}
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd()), Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.must(t, cmd.Start)
	ended := false
	stop = func() {
		if !ended {
			ended = true
			in.Close() // then it ends
			cmd.Wait()
		}
	}
	t.Cleanup(stop)
	return &program{in, bufio.NewScanner(out)}, stop
}

// newGroups makes cgroups below one of the test's own, and returns that.
func newGroups(t *testing.T, names ...string) string {
	t.Helper()
	root, err := CgroupRoot()
	if err != nil {
		t.Fatal(err)
	}
	top := filepath.Join(root, fmt.Sprintf("bulkhead-owner-%d-%s", os.Getpid(), shortHash(here4)))
	for _, name := range append([]string{""}, names...) {
		if err := os.MkdirAll(filepath.Join(top, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		eventually(t, expected, "the cgroups are removed", func() bool { return removeGroups(top) == nil })
	})
	return top
}

func removeGroups(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeGroups(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return os.Remove(dir)
}

func idOf(t *testing.T, dir string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

// crew is three agents of this host: one by cgroup, one by a cgroup in that, one by user, and the host.
type crew struct {
	top    string
	config overlay.BindingConfig
	owners []Owner
}

const agentUID = 4711

func newCrew(t *testing.T, w *world) *crew {
	t.Helper()
	c := &crew{top: newGroups(t, "outer/inner", "outer/plain", `odd\x2dname.slice`)}
	for i, name := range []string{"a-outer", "b-inner", "c-user", "d-host"} {
		b := overlay.Binding{Agent: name, Addresses: []netip.Addr{
			netip.AddrFrom4([4]byte{10, 201, 0, byte(10 + i)}), netip.MustParseAddr(fmt.Sprintf("fd00:bd::1%d", i)),
		}}
		switch name {
		case "a-outer":
			b.Cgroups = []uint64{idOf(t, c.top+"/outer"), idOf(t, c.top+`/odd\x2dname.slice`)}
			slices.Sort(b.Cgroups)
		case "b-inner":
			b.Cgroups = []uint64{idOf(t, c.top+"/outer/inner")}
		case "c-user":
			b.UIDs = []uint32{agentUID}
		case "d-host":
			b.Host = true
		}
		c.config.Agents = append(c.config.Agents, b)
		w.here.sh(t, fmt.Sprintf("ip addr add %s/32 dev bulkhead0; ip -6 addr add %s/128 dev bulkhead0 nodad", b.Addresses[0], b.Addresses[1]))
		if b.Host {
			continue
		}
		groups, err := CgroupPaths(c.top, b.Cgroups)
		if err != nil || len(groups) != len(b.Cgroups) {
			t.Fatalf("paths %v of %v: %v", groups, b.Cgroups, err)
		}
		c.owners = append(c.owners, Owner{Addresses: b.Addresses, UIDs: b.UIDs, Groups: slices.Sorted(maps.Values(groups))})
	}
	return c
}

// apply lets all agents and the other host open port 443, and ping, in both directions.
func (c *crew) apply(t *testing.T, w *world) {
	t.Helper()
	w.firewall.options.ByOwner = true
	w.fence(t)
	cfg := overlay.FirewallConfig{}
	for _, b := range c.config.Agents {
		cfg.Local = append(cfg.Local, b.Addresses...)
		for i, remote := range []netip.Addr{there4, there6} {
			for _, g := range slices.Concat(grant(overlay.In, protoTCP, 443, 444), grant(overlay.Out, protoTCP, 443, 443), grant(overlay.Out, protoUDP, 443, 443), grant(overlay.In, protoICMP, 0, 0)) {
				if g.Remote == remote {
					g.Local = b.Addresses[i]
					cfg.Allow = append(cfg.Allow, g)
				}
			}
		}
	}
	w.here.must(t, func() error { return w.firewall.Apply(t.Context(), cfg) })
	c.own(t, w)
}

func (c *crew) own(t *testing.T, w *world) {
	t.Helper()
	w.here.must(t, func() error { return w.firewall.SetOwners(t.Context(), c.owners) })
}

// Whose a program is decides, and nothing else, from which addresses it sends.
func TestOwnersAloneSendFromTheirAddresses(t *testing.T) {
	w := newWorld(t)
	serve(t, w.there, 443)
	c := newCrew(t, w)
	c.apply(t, w)
	if err := w.check(t); err != nil {
		t.Fatal(err)
	}
	outer, inner, plain, odd := c.top+"/outer", c.top+"/outer/inner", c.top+"/outer/plain", c.top+`/odd\x2dname.slice`
	for _, place := range []struct {
		group string
		uid   int
		above []string
	}{
		{c.top, 0, nil}, {c.top, 1000, nil}, {c.top, agentUID, nil},
		{outer, 0, []string{outer}}, {plain, 1000, []string{outer, plain}}, {plain, agentUID, []string{outer, plain}},
		{inner, 0, []string{outer, inner}}, {inner, agentUID, []string{outer, inner}},
		{odd, 0, []string{odd}},
	} {
		ids := []uint64{idOf(t, c.top)}
		for _, dir := range place.above {
			ids = append(ids, idOf(t, dir))
		}
		owner := c.config.Owner(ids, uint32(place.uid))
		p, stop := start(t, w.here, place.group, place.uid)
		for _, b := range c.config.Agents {
			for i, network := range []string{"udp", "tcp"} {
				dst := []netip.Addr{there4, there6}[i]
				order := fmt.Sprintf("ask %s %s %s 443", network, b.Addresses[i], dst)
				if network == "tcp" && b.Agent != owner {
					continue // a refused SYN is retried for long; datagrams and the answer below say the same
				}
				if got := p.tell(t, order); (got == "ok") != (b.Agent == owner) {
					t.Errorf("user %d in %s is %q: %s of %s: %s", place.uid, place.group, owner, order, b.Agent, got)
				}
			}
		}
		stop()
	}
	if drops := w.drops(t); drops[dropForeign] == 0 {
		t.Errorf("drops are not counted: %v", drops)
	}
}

// What the kernel answers for an address is not a program's: it passes.
func TestOwnersServe(t *testing.T) {
	w := newWorld(t)
	c := newCrew(t, w)
	c.apply(t, w)
	w.here.sh(t, "sysctl -qw net.ipv4.ip_unprivileged_port_start=0")
	for i, place := range []struct {
		group string
		uid   int
	}{{c.top + "/outer", 0}, {c.top + "/outer/inner", agentUID}, {c.top, agentUID}} {
		for j, remote := range []netip.Addr{there4, there6} {
			addr := c.config.Agents[i].Addresses[j]
			p, stop := start(t, w.here, place.group, place.uid)
			if got := p.tell(t, fmt.Sprintf("serve tcp %s 443", addr)); got != "ok" {
				t.Fatal(got)
			}
			if !passes(w.there, remote, addr, 443) {
				t.Errorf("%s does not answer", addr)
			}
			if ok, err := echo(w.there, remote, addr, expected); !ok || err != nil {
				t.Errorf("%s answers no ping: %v", addr, err)
			}
			err := w.there.do(func() error {
				conn, err := net.DialTimeout("tcp", netip.AddrPortFrom(addr, 444).String(), expected)
				if err == nil {
					conn.Close()
				}
				return err
			})
			if !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("%s, where nobody listens: %v", addr, err)
			}
			stop()
		}
	}
}

// A cgroup that is gone keeps no other rule out of the kernel; one that is made anew is another.
func TestOwnersFollowTheirCgroups(t *testing.T) {
	w := newWorld(t)
	serve(t, w.there, 443)
	c := newCrew(t, w)
	c.apply(t, w)
	ask := fmt.Sprintf("ask udp %s %s 443", c.config.Agents[1].Addresses[0], there4)
	inner := c.top + "/outer/inner"
	for _, noticed := range []bool{true, false} {
		if err := os.Remove(inner); err != nil {
			t.Fatal(err)
		}
		if noticed {
			w.here.sh(t, "iptables -t mangle -F; ip6tables -t mangle -F")
			w.here.must(t, func() error {
				drift, err := w.firewall.guardOnce(t.Context(), true)
				if drift == nil {
					t.Error("no drift is seen")
				}
				return err
			})
		}
		if err := w.check(t); err != nil {
			t.Error(err)
		}
		if err := os.Mkdir(inner, 0o755); err != nil {
			t.Fatal(err)
		}
		p, stop := start(t, w.here, inner, 0)
		if got := p.tell(t, ask); got == "ok" {
			t.Error("a new cgroup is taken for the old one")
		}
		c.own(t, w)
		if got := p.tell(t, ask); got != "ok" {
			t.Errorf("the new cgroup: %s", got)
		}
		stop()
	}
	before := kernelState(t, w)
	c.own(t, w)
	if after := kernelState(t, w); after != before {
		t.Error("equal owners change the kernel")
	}
}

// A restarted process leaves owners as they were until it knows better; one that needs none takes them away.
func TestOwnersOutliveTheProcess(t *testing.T) {
	w := newWorld(t)
	serve(t, w.there, 443)
	c := newCrew(t, w)
	c.apply(t, w)
	addr := c.config.Agents[2].Addresses[0]
	ask := fmt.Sprintf("ask udp %s %s 443", addr, there4)
	owner, _ := start(t, w.here, c.top, agentUID)
	stranger, _ := start(t, w.here, c.top, 0)
	try := func(when string, others bool) {
		t.Helper()
		if got := owner.tell(t, ask); got != "ok" {
			t.Errorf("%s: the owner: %s", when, got)
		}
		if got := stranger.tell(t, ask); (got == "ok") != others {
			t.Errorf("%s: another program: %s", when, got)
		}
		if err := w.check(t); err != nil {
			t.Errorf("%s: %v", when, err)
		}
	}
	try("at first", false)
	for _, when := range []string{"after a restart", "with owners again"} {
		if when == "after a restart" {
			w.firewall = w.newFirewall(t)
			w.firewall.options.ByOwner = true
			w.fence(t)
		} else {
			c.own(t, w)
		}
		try(when, false)
	}
	w.firewall = w.newFirewall(t)
	w.fence(t)
	try("without owners", true)
	if rules := saved(t, w.here); strings.Contains(rules, "OWNER") {
		t.Errorf("left behind:\n%s", rules)
	}
	w.remove(t)
}

// A cgroup that goes while rules are being written does not keep them out of the kernel.
func TestOwnersWhoseCgroupGoesMeanwhile(t *testing.T) {
	w := newWorld(t)
	c := newCrew(t, w)
	c.apply(t, w)
	w.here.must(t, func() error { return w.firewall.SetOwners(t.Context(), nil) })
	x := w.firewall.tables[0]
	script := filepath.Join(t.TempDir(), "restore")
	text := fmt.Sprintf("#!/bin/sh\nrmdir %s/outer/inner 2>/dev/null\nexec %s \"$@\"\n", c.top, x.restore)
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	x.restore = script
	c.own(t, w)
	if err := w.check(t); err != nil {
		t.Error(err)
	}
	rules := saved(t, w.here)
	if strings.Contains(rules, "outer/inner") || !strings.Contains(rules, "/outer") || !strings.Contains(rules, strconv.Itoa(agentUID)) {
		t.Errorf("rules are\n%s", rules)
	}
}
