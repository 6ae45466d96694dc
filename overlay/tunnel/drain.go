package tunnel

import (
	"syscall"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"
)

// drainingTUN hands the device all packets that wait in the TUN at once, where wireguard-go's own reads one at a
// time: what is read together is encrypted, and sent in one system call, together.
type drainingTUN struct {
	tun.Device
	raw syscall.RawConn
}

// room is how many free buffers one more read needs: as many segments as 64 KiB of TCP have at an MSS above 1024.
const room = 64

func newDrainingTUN(native tun.Device) (tun.Device, error) {
	raw, err := native.File().SyscallConn()
	if err != nil {
		return nil, err
	}
	return &drainingTUN{Device: native, raw: raw}, nil
}

// Read waits for the first packet only.
func (d *drainingTUN) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n, err := d.Device.Read(bufs, sizes, offset)
	for err == nil && len(bufs)-n >= room && d.ready() {
		var more int
		more, err = d.Device.Read(bufs[n:], sizes[n:], offset)
		n += more
	}
	return n, err
}

// ready says whether a read would return at once.
func (d *drainingTUN) ready() (ready bool) {
	err := d.raw.Control(func(fd uintptr) {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(poll, 0)
		ready = err == nil && n == 1 && poll[0].Revents&unix.POLLIN != 0
	})
	return err == nil && ready
}
