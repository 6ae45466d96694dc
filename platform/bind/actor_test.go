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

// order is what an actor shall do: serve, ask, bind, raw, packet, receive or move.
type order struct {
	Do, Network, Local, Remote string
	Option                     int // of level IP or IPv6, set to 1 before anything else
	Group                      string
}

type reply struct {
	Error, Local, Peer string
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
	kept net.Conn
	lent chan net.Conn
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
		if o.Local != "" {
			d.LocalAddr = localAddr(o)
		}
		conn, err := d.Dial(strings.TrimSuffix(o.Network, "-loose"), o.Remote)
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
		to := netip.MustParseAddrPort(o.Remote)
		return reply{}, unix.Connect(fd, &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()})
	case "raw":
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_UDP)
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
	case "lend": // passes the kept connection on, over a Unix socket
		return reply{}, a.lend(o.Remote)
	case "borrow":
		return a.borrow(o.Local)
	}
	return reply{}, fmt.Errorf("cannot %q", o.Do)
}

func (a *actorState) lend(path string) error {
	f, err := a.kept.(*net.TCPConn).File()
	if err != nil {
		return err
	}
	defer f.Close()
	conn, err := net.Dial("unix", path)
	if err != nil {
		return err
	}
	defer conn.Close()
	_, _, err = conn.(*net.UnixConn).WriteMsgUnix([]byte("x"), unix.UnixRights(int(f.Fd())), nil)
	return err
}

// borrow waits for a connection of another process and goes on with it: by "again".
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
		if borrowed, err := net.FileConn(os.NewFile(uintptr(fds[0]), "borrowed")); err == nil {
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
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer conn.Close(); _, _ = io.Copy(conn, conn) }()
		}
	}()
	return reply{Local: l.Addr().String()}, nil
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

// sendRaw sends a UDP packet whose whole header, source and all, is made here.
func sendRaw(fd int, o order) error {
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_HDRINCL, 1); err != nil {
		return err
	}
	src, dst := net.ParseIP(o.Local).To4(), net.ParseIP(o.Remote).To4()
	p := make([]byte, 28+5)
	p[0], p[8], p[9], p[3] = 0x45, 64, unix.IPPROTO_UDP, byte(len(p))
	copy(p[12:], src)
	copy(p[16:], dst)
	p[20], p[21], p[22], p[23], p[25] = 0x30, 0x39, 0x1f, 0x90, 13 // 12345 to 8080
	copy(p[28:], "forge")
	return unix.Sendto(fd, p, 0, &unix.SockaddrInet4{Addr: [4]byte(dst)})
}

// actor is a running program of the test.
type actor struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

// start runs an actor in a cgroup and network namespace, as a user, with files passed on as descriptors from 4.
func (w *world) start(group string, uid int, files ...*os.File) *actor {
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
	if err := w.inside(a.cmd.Start); err != nil {
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

// inside runs fn on a thread in the world's network namespace.
func (w *world) inside(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // the thread ends with fn
		f, err := os.Open("/run/netns/" + w.netns)
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
