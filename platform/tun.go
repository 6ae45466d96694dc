package platform

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

const tunPath = "/dev/net/tun"

// OpenTUN makes the overlay interface name and returns its packet side: layer 3, no extra header, offloads
// possible. The interface goes away when the file is closed.
func OpenTUN(name string) (*os.File, error) {
	fd, err := unix.Open(tunPath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w (fix: load the tun module; in a container pass the device)", tunPath, err)
	}
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make interface %q: %w", name, err), unix.Close(fd))
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		return nil, errors.Join(tunError(name, err), unix.Close(fd))
	}
	// Non-blocking, so that the runtime's poller waits for packets and a close ends the wait.
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), tunPath), nil
}

func tunError(name string, err error) error {
	switch {
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("make interface %s: it exists and is in use (fix: stop the program that uses it, or set `interface` to another name)", name)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("make interface %s: %w (fix: run as root or with CAP_NET_ADMIN)", name, err)
	default:
		return fmt.Errorf("make interface %s: %w", name, err)
	}
}
