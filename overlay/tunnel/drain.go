package tunnel

import (
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
)

// drainingTUN hands the device all packets that wait in the TUN together, where wireguard-go's own hands over one:
// what is read together is encrypted together, and sent in one system call.
type drainingTUN struct {
	tun.Device
	readable func() bool // a read would return at once

	// What one read of the native TUN gave: at times it has more packets than the device has buffers left.
	packets [][]byte
	sizes   []int
	next    int // of packets, the first that was not handed over
	count   int // of packets
}

func newDrainingTUN(native tun.Device) (*drainingTUN, error) {
	raw, err := native.File().SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("poll TUN: %w", err)
	}
	d := &drainingTUN{Device: native, readable: func() bool { return readable(raw) }}
	batch := native.BatchSize()
	d.packets, d.sizes = make([][]byte, batch), make([]int, batch)
	memory := make([]byte, batch*device.MaxMessageSize) // of which only what packets fill is ever touched
	for i := range d.packets {
		d.packets[i] = memory[i*device.MaxMessageSize : (i+1)*device.MaxMessageSize]
	}
	return d, nil
}

// Read waits for the first packet. After a segmented one, which fills the batch by itself, it takes no more.
func (d *drainingTUN) Read(bufs [][]byte, sizes []int, offset int) (n int, err error) {
	if d.next < d.count {
		return d.handOver(bufs, sizes, offset), nil
	}
	if n, err = d.Device.Read(bufs, sizes, offset); n != 1 || err != nil {
		return n, err
	}
	for n < len(bufs) && d.readable() {
		d.next = 0
		// An error comes back with the packets before it, so nothing is lost.
		if d.count, err = d.Device.Read(d.packets, d.sizes, offset); err != nil {
			n += d.handOver(bufs[n:], sizes[n:], offset)
			return n, err
		}
		segmented := d.count > 1
		n += d.handOver(bufs[n:], sizes[n:], offset)
		if segmented {
			break
		}
	}
	return n, nil
}

// handOver copies as many packets as fit.
func (d *drainingTUN) handOver(bufs [][]byte, sizes []int, offset int) (n int) {
	for ; n < len(bufs) && d.next < d.count; n++ {
		sizes[n] = copy(bufs[n][offset:], d.packets[d.next][offset:offset+d.sizes[d.next]])
		d.next++
	}
	return n
}

func readable(raw syscall.RawConn) (yes bool) {
	err := raw.Control(func(fd uintptr) {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(poll, 0)
		yes = err == nil && n == 1 && poll[0].Revents&unix.POLLIN != 0
	})
	return err == nil && yes
}
