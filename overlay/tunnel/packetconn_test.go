package tunnel

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/conn"
)

var sender = netip.MustParseAddrPort("192.0.2.1:51900")

func TestReadFromObeysDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newPacketConn(conn.NewStdNetBind())
		start := time.Now()
		_ = c.SetReadDeadline(start.Add(time.Second))
		if _, _, err := c.ReadFrom(nil); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != time.Second {
			t.Errorf("got %v after %v, want the deadline after 1s", err, time.Since(start))
		}
		_ = c.SetReadDeadline(time.Time{})
		c.deliver([]byte{0x40}, sender)
		if n, from, err := c.ReadFrom(make([]byte, 10)); n != 1 || from.String() != sender.String() || err != nil {
			t.Errorf("got %d bytes from %v, %v", n, from, err)
		}
		_ = c.SetReadDeadline(time.Unix(1, 0))
		if _, _, err := c.ReadFrom(nil); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a past deadline gave %v", err)
		}
	})
}

func TestDeadlineWakesWaitingRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newPacketConn(conn.NewStdNetBind())
		ended := make(chan error)
		go func() {
			_, _, err := c.ReadFrom(nil)
			ended <- err
		}()
		synctest.Wait()
		_ = c.SetReadDeadline(time.Now())
		if err := <-ended; !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		_ = c.SetReadDeadline(time.Now().Add(time.Hour))
		go func() {
			_, _, err := c.ReadFrom(nil)
			ended <- err
		}()
		synctest.Wait()
		_ = c.Close()
		if err := <-ended; !errors.Is(err, net.ErrClosed) {
			t.Errorf("got %v", err)
		}
		_ = c.SetReadDeadline(time.Time{})
	})
}

func TestFullQueueDropsAndCounts(t *testing.T) {
	c := newPacketConn(conn.NewStdNetBind())
	for range quicQueue + 5 {
		c.deliver([]byte{0x40}, sender)
	}
	c.deliver(make([]byte, quicDatagram+1), sender)
	if c.overflow.Load() != 5 || c.oversize.Load() != 1 || len(c.queue) != quicQueue {
		t.Errorf("overflow %d, oversize %d, queued %d; want 5, 1, %d", c.overflow.Load(), c.oversize.Load(), len(c.queue), quicQueue)
	}
}

func TestWriteToClosedOrForeignAddress(t *testing.T) {
	c := newPacketConn(conn.NewStdNetBind())
	if _, err := c.WriteTo([]byte{0x40}, &net.TCPAddr{}); err == nil {
		t.Error("wrote to a TCP address")
	}
	if n, err := c.WriteTo([]byte{0x40}, net.UDPAddrFromAddrPort(sender)); n != 1 || err != nil || c.sendErrors.Load() != 1 {
		t.Errorf("without a socket: %d, %v, %d errors; want it lost and counted", n, err, c.sendErrors.Load())
	}
	_ = c.Close()
	if _, err := c.WriteTo([]byte{0x40}, net.UDPAddrFromAddrPort(sender)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

func mustUDP(a netip.AddrPort) *net.UDPAddr { return net.UDPAddrFromAddrPort(a) }
