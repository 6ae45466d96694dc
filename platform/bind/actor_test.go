package bind

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// The test's programs are the test's own binary, told what to do on standard input.
const actorEnv = "BULKHEAD_BIND_ACTOR"

func TestMain(m *testing.M) {
	if os.Getenv(actorEnv) != "" {
		act()
		return
	}
	goleak.VerifyTestMain(m)
}

// order is what an actor shall do, as obey knows it.
type order struct {
	Do, Network, Local, Remote string
	Option                     int // of level IP or IPv6, set to 1 before anything else
	Group                      string
}

type reply struct {
	Error, Local, Peer string
	Heard              int64 // datagrams, by all its servers
}

func act() {
	in, out := bufio.NewScanner(os.Stdin), json.NewEncoder(os.Stdout)
	a := &actorState{lent: make(chan net.Conn, 1)}
	for in.Scan() {
		var o order
		var r reply
		err := json.Unmarshal(in.Bytes(), &o)
		if err == nil {
			r, err = a.obey(o)
		}
		if err != nil {
			r.Error = err.Error()
		}
		if out.Encode(r) != nil {
			return
		}
	}
}

type actorState struct {
	kept  net.Conn
	lent  chan net.Conn
	heard atomic.Int64
}

func (a *actorState) obey(o order) (reply, error) {
	control := func(_, _ string, c syscall.RawConn) (err error) {
		if o.Option == 0 {
			return nil
		}
		level := unix.SOL_IP
		if o.Option == unix.IPV6_FREEBIND || o.Option == unix.IPV6_TRANSPARENT {
			level = unix.SOL_IPV6
		}
		return errors.Join(c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, o.Option, 1) }), err)
	}
	switch o.Do {
	case "serve":
		return a.serve(o, net.ListenConfig{Control: control})
	case "ask", "keep":
		d := net.Dialer{Timeout: time.Second, Control: control}
		d.SetMultipathTCP(strings.HasPrefix(o.Network, "mp"))
		if o.Local != "" {
			d.LocalAddr = localAddr(o)
		}
		conn, err := d.Dial(strings.TrimPrefix(o.Network, "mp"), o.Remote)
		if err != nil {
			return reply{}, err
		}
		if o.Do == "keep" {
			a.kept = conn
		} else {
			defer conn.Close()
		}
		return reply{Local: conn.LocalAddr().String(), Peer: conn.RemoteAddr().String()}, converse(conn)
	case "take":
		a.kept = <-a.lent
		return reply{Local: a.kept.LocalAddr().String()}, nil
	case "again":
		return reply{}, converse(a.kept)
	case "loose":
		return loose(o)
	case "mapped": // IPv4 from a socket for IPv6
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM, 0)
		if err != nil {
			return reply{}, err
		}
		defer unix.Close(fd)
		if o.Local != "" {
			at := netip.MustParseAddrPort(o.Local)
			return reply{}, unix.Bind(fd, &unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16()})
		}
		to := netip.MustParseAddrPort(o.Remote)
		return reply{}, unix.Connect(fd, &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()})
	case "raw":
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW)
		if err != nil {
			return reply{}, err
		}
		defer unix.Close(fd)
		return reply{}, sendRaw(fd, o)
	case "packet":
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM, 0)
		if err == nil {
			err = unix.Close(fd)
		}
		return reply{}, err
	case "exec":
		out, err := exec.Command("sh", "-c", o.Remote).CombinedOutput()
		return reply{Local: string(out)}, err
	case "move":
		return reply{}, os.WriteFile(filepath.Join(o.Group, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0)
	case "source": // that a datagram would have
		conn, err := net.Dial("udp", o.Remote)
		if err != nil {
			return reply{}, err
		}
		return reply{Local: hostOf(conn.LocalAddr().String())}, conn.Close()
	case "connect":
		return reply{}, connectOften(o)
	case "heard":
		return reply{Heard: a.heard.Load()}, nil
	case "pretend":
		return reply{}, pretend(o)
	case "lend": // passes the kept connection on, or a listener, over a Unix socket
		return reply{}, a.lend(o)
	case "borrow":
		return a.borrow(o.Local)
	}
	return reply{}, fmt.Errorf("cannot %q", o.Do)
}

func (a *actorState) lend(o order) error {
	var f *os.File
	var err error
	if o.Network == "" {
		f, err = a.kept.(*net.TCPConn).File()
	} else {
		var l net.Listener
		if l, err = net.Listen(o.Network, o.Local); err != nil {
			return err
		}
		defer l.Close()
		f, err = l.(*net.TCPListener).File()
	}
	if err != nil {
		return err
	}
	defer f.Close()
	conn, err := net.Dial("unix", o.Remote)
	if err != nil {
		return err
	}
	defer conn.Close()
	_, _, err = conn.(*net.UnixConn).WriteMsgUnix([]byte("x"), unix.UnixRights(int(f.Fd())), nil)
	return err
}

// borrow waits for a connection of another process and goes on with it, by "take" and "again"; or for a listener, and serves.
func (a *actorState) borrow(path string) (reply, error) {
	l, err := net.Listen("unix", path)
	if err != nil {
		return reply{}, err
	}
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		oob := make([]byte, unix.CmsgSpace(4))
		_, n, _, _, err := conn.(*net.UnixConn).ReadMsgUnix(make([]byte, 1), oob)
		if err != nil {
			return
		}
		messages, err := unix.ParseSocketControlMessage(oob[:n])
		if err != nil || len(messages) != 1 {
			return
		}
		fds, err := unix.ParseUnixRights(&messages[0])
		if err != nil {
			return
		}
		f := os.NewFile(uintptr(fds[0]), "borrowed")
		if listens, err := unix.GetsockoptInt(fds[0], unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err == nil && listens != 0 {
			if l, err := net.FileListener(f); err == nil {
				accept(l)
			}
		} else if borrowed, err := net.FileConn(f); err == nil {
			a.lent <- borrowed
		}
	}()
	return reply{}, nil
}

func localAddr(o order) net.Addr {
	addr, err := net.ResolveTCPAddr("tcp", o.Local)
	if err != nil {
		return nil
	}
	if strings.HasPrefix(o.Network, "udp") {
		return (*net.UDPAddr)(addr)
	}
	return addr
}

func (a *actorState) serve(o order, lc net.ListenConfig) (reply, error) {
	if strings.HasPrefix(o.Network, "udp") {
		conn, err := lc.ListenPacket(context.Background(), o.Network, o.Local)
		if err != nil {
			return reply{}, err
		}
		go func() {
			buf := make([]byte, 2048)
			for {
				n, from, err := conn.ReadFrom(buf)
				if errors.Is(err, net.ErrClosed) {
					return
				}
				if err == nil {
					a.heard.Add(1)
					_, _ = conn.WriteTo(buf[:n], from)
				}
			}
		}()
		return reply{Local: conn.LocalAddr().String()}, nil
	}
	l, err := lc.Listen(context.Background(), o.Network, o.Local)
	if err != nil {
		return reply{}, err
	}
	go accept(l)
	return reply{Local: l.Addr().String()}, nil
}

// accept echoes on all connections.
func accept(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() { defer conn.Close(); _, _ = io.Copy(conn, conn) }()
	}
}

func converse(conn net.Conn) error {
	if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte("hello")); err != nil {
		return err
	}
	_, err := io.ReadFull(conn, make([]byte, 5))
	return err
}

func loose(o order) (reply, error) {
	to, err := net.ResolveUDPAddr("udp", o.Remote)
	if err != nil {
		return reply{}, err
	}
	network := "udp4"
	if to.IP.To4() == nil {
		network = "udp6"
	}
	if o.Network != "" {
		network = o.Network
	}
	conn, err := net.ListenPacket(network, o.Local)
	if err != nil {
		return reply{}, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return reply{}, err
	}
	if _, err := conn.WriteTo([]byte("hello"), to); err != nil {
		return reply{}, err
	}
	buf := make([]byte, 2048)
	_, from, err := conn.ReadFrom(buf)
	if err != nil {
		return reply{}, err
	}
	return reply{Peer: from.String()}, nil
}

// sendRaw sends a packet of a network, whose whole header, source and all, is made here: from 12345 to 8080, if it has
// ports, and the beginning of a connection, if it is TCP.
func sendRaw(fd int, o order) error {
	payload := map[string][]byte{
		"udp":  append([]byte{0x30, 0x39, 0x1f, 0x90, 0, 13, 0, 0}, "forge"...),
		"tcp":  {0x30, 0x39, 0x1f, 0x90, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0},
		"icmp": {8, 0, 0xf7, 0xff, 0, 0, 0, 0},
	}[o.Network]
	protocol := map[string]byte{"udp": unix.IPPROTO_UDP, "tcp": unix.IPPROTO_TCP, "icmp": unix.IPPROTO_ICMP}[o.Network]
	src, dst := netip.MustParseAddr(o.Local).As4(), netip.MustParseAddr(o.Remote).As4()
	p := []byte{0x45, 0, 0, byte(20 + len(payload)), 0, 0, 0, 0, 64, protocol, 0, 0}
	p = append(append(append(p, src[:]...), dst[:]...), payload...)
	return unix.Sendto(fd, p, 0, &unix.SockaddrInet4{Addr: dst})
}

// connectOften opens and closes connections one after another.
func connectOften(o order) error {
	to := netip.MustParseAddrPort(o.Remote)
	for range connects {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		if err != nil {
			return err
		}
		if o.Local != "" {
			err = unix.Bind(fd, &unix.SockaddrInet4{Addr: netip.MustParseAddrPort(o.Local).Addr().As4()})
		}
		// No end stays behind to wait: ports would run out.
		err = errors.Join(err, unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}),
			unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}), unix.Close(fd))
		if err != nil {
			return err
		}
	}
	return nil
}

// pretend sends a datagram from an address that its socket is not bound to, or, without one, from a socket that is
// connected to somewhere else.
func pretend(o order) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return err
	}
	to := netip.MustParseAddrPort(o.Remote)
	var info []byte
	if o.Local != "" {
		info = unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: netip.MustParseAddr(o.Local).As4()})
	} else if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: 9}); err != nil {
		return err
	}
	return unix.Sendmsg(fd, []byte("hello"), info, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}, 0)
}

// actor is a running program of the test.
type actor struct {
	t   testing.TB
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

// start runs an actor in a cgroup and network namespace, as a user, with files passed on as descriptors from 4.
func (w *world) start(group string, uid int, files ...*os.File) *actor {
	w.t.Helper()
	return w.startIn(w.netns, group, uid, files...)
}

func (w *world) startIn(netns, group string, uid int, files ...*os.File) *actor {
	w.t.Helper()
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		w.t.Fatal(err)
	}
	defer self.Close()
	// By descriptor: the user need not be able to find the test's directory.
	a := &actor{t: w.t, cmd: exec.Command("/proc/self/fd/3")}
	a.cmd.Env = append(os.Environ(), actorEnv+"=1")
	a.cmd.Stderr, a.cmd.ExtraFiles = os.Stderr, append([]*os.File{self}, files...)
	dir, err := os.Open(filepath.Join(w.root, group))
	if err != nil {
		w.t.Fatal(err)
	}
	defer dir.Close()
	a.cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd()), Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	if a.in, err = a.cmd.StdinPipe(); err != nil {
		w.t.Fatal(err)
	}
	out, err := a.cmd.StdoutPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	a.out = bufio.NewScanner(out)
	if err := inside(netns, a.cmd.Start); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		_ = a.in.Close() // then it ends
		_ = a.cmd.Wait()
	})
	return a
}

// tell gives an order and returns the answer.
func (a *actor) tell(o order) reply {
	a.t.Helper()
	line, err := json.Marshal(o)
	if err != nil {
		a.t.Fatal(err)
	}
	if _, err := a.in.Write(append(line, '\n')); err != nil {
		a.t.Fatal(err)
	}
	if !a.out.Scan() {
		a.t.Fatalf("the actor is gone: %v", a.out.Err())
	}
	var r reply
	if err := json.Unmarshal(a.out.Bytes(), &r); err != nil {
		a.t.Fatal(err)
	}
	return r
}

// must is tell for what has to work.
func (a *actor) must(o order) reply {
	a.t.Helper()
	r := a.tell(o)
	if r.Error != "" {
		a.t.Fatalf("%+v: %s", o, r.Error)
	}
	return r
}

func (w *world) inside(fn func() error) error { return inside(w.netns, fn) }

// inside runs fn on a thread in a network namespace.
func inside(netns string, fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // the thread ends with fn
		f, err := os.Open("/run/netns/" + netns)
		if err == nil {
			err = errors.Join(unix.Setns(int(f.Fd()), unix.CLONE_NEWNET), f.Close())
		}
		if err == nil {
			err = fn()
		}
		done <- err
	}()
	return <-done
}
