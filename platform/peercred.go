package platform

import (
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// PeerUID is the user on the other end of a Unix socket, as the kernel saw it connect.
func PeerUID(conn *net.UnixConn) (int, error) {
	p, err := PeerOf(conn)
	return p.UID, err
}

// Peer is the process on the other end of a Unix socket, as the kernel saw it connect.
type Peer struct {
	PID, UID int
}

// PeerOf asks the kernel who connected.
func PeerOf(conn *net.UnixConn) (Peer, error) {
	var cred *unix.Ucred
	err := control(conn, func(fd int) (err error) {
		cred, err = unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
		return err
	})
	if err != nil {
		return Peer{}, fmt.Errorf("read peer credentials: %w", err)
	}
	return Peer{PID: int(cred.Pid), UID: int(cred.Uid)}, nil
}

// Inspect calls fn, which reads what the kernel says of a peer by its process ID, and fails if that ID may have been
// another process's while it did. Kernels before 6.5 cannot tell, except that the process is there before and after.
func (p Peer) Inspect(conn *net.UnixConn, fn func(pid int) error) error {
	var pidfd int
	err := control(conn, func(fd int) (err error) {
		pidfd, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEERPIDFD)
		return err
	})
	if err != nil {
		if pidfd, err = unix.PidfdOpen(p.PID, 0); err != nil {
			return fmt.Errorf("inspect process %d: %w", p.PID, err)
		}
	}
	defer unix.Close(pidfd)
	if err := fn(p.PID); err != nil {
		return err
	}
	// The ID was this process's all along, if it has not ended yet: its descriptor is readable once it has.
	ended, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 0)
	for errors.Is(err, unix.EINTR) {
		ended, err = unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 0)
	}
	if err != nil || ended != 0 {
		return fmt.Errorf("inspect process %d: it has ended", p.PID)
	}
	return nil
}

func control(conn *net.UnixConn, fn func(fd int) error) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var fault error
	if err := raw.Control(func(fd uintptr) { fault = fn(int(fd)) }); err != nil {
		return err
	}
	return fault
}
