package tunnel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
)

// received is one call of a receive function.
type received struct {
	packets [][]byte
	sizes   []int
	from    []conn.Endpoint
}

func newReceived(batch int) received {
	r := received{packets: make([][]byte, batch), sizes: make([]int, batch), from: make([]conn.Endpoint, batch)}
	for i := range r.packets {
		r.packets[i] = make([]byte, 1<<16-1)
	}
	return r
}

func openBind(t testing.TB) (*splitBind, []conn.ReceiveFunc, *net.UDPConn) {
	t.Helper()
	b := newSplitBind(conn.NewStdNetBind(), newPathTable())
	receive, port, err := b.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	remote, err := net.DialUDP("udp4", nil, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: int(port)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = remote.Close() })
	return b, receive, remote
}

func TestReceiveSplitsInPlace(t *testing.T) {
	b, receive, remote := openBind(t)
	initiation := append([]byte{1}, make([]byte, 147)...)
	transport := append([]byte{4}, bytes.Repeat([]byte{0}, 63)...)
	sent := [][]byte{{0x41, 1}, initiation, {0x20}, transport, {0xc0, 2}, {4, 9, 9, 9}}
	for _, p := range sent {
		if _, err := remote.Write(p); err != nil {
			t.Fatal(err)
		}
	}
	r := newReceived(b.BatchSize())
	var forDevice [][]byte
	for total := 0; total < len(sent); {
		n, err := receive[0](r.packets, r.sizes, r.from)
		if err != nil {
			t.Fatal(err)
		}
		total += n
		for i := range n {
			if r.sizes[i] > 0 {
				forDevice = append(forDevice, bytes.Clone(r.packets[i][:r.sizes[i]]))
			}
		}
	}
	if len(forDevice) != 2 || !bytes.Equal(forDevice[0], initiation) || !bytes.Equal(forDevice[1], transport) {
		t.Errorf("WireGuard got %d packets, want the initiation and the transport packet", len(forDevice))
	}
	buffer := make([]byte, quicDatagram)
	for _, want := range [][]byte{{0x41, 1}, {0xc0, 2}} {
		n, from, err := b.quic.ReadFrom(buffer)
		if err != nil || !bytes.Equal(buffer[:n], want) || from.String() != remote.LocalAddr().String() {
			t.Errorf("QUIC got %x from %v, %v; want %x", buffer[:n], from, err, want)
		}
	}
	if got := b.foreign.Load(); got != 2 {
		t.Errorf("counted %d foreign packets, want 2", got)
	}
	if k := b.knocks.take(); len(k) != 1 || k[0].String() != remote.LocalAddr().String() {
		t.Errorf("knocks are %v, want one by %v", k, remote.LocalAddr())
	}
}

func TestReopenedBindServesTheSamePacketConn(t *testing.T) {
	b, receive, _ := openBind(t)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	r := newReceived(b.BatchSize())
	if _, err := receive[0](r.packets, r.sizes, r.from); !errors.Is(err, net.ErrClosed) {
		t.Errorf("receive after Close: %v", err)
	}
	receive, port, err := b.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	to := &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: int(port)}
	if _, err := b.quic.WriteTo([]byte{0x40, 7}, to); err != nil {
		t.Fatal(err)
	}
	if _, err := receive[0](r.packets, r.sizes, r.from); err != nil {
		t.Fatal(err)
	}
	buffer := make([]byte, 10)
	if n, _, err := b.quic.ReadFrom(buffer); err != nil || !bytes.Equal(buffer[:n], []byte{0x40, 7}) {
		t.Errorf("got %x, %v", buffer[:n], err)
	}
}

// flakyBind fails some receives as a system short of memory does.
type flakyBind struct {
	conn.Bind
	failures int
}

func (f *flakyBind) Open(uint16) ([]conn.ReceiveFunc, uint16, error) {
	return []conn.ReceiveFunc{func([][]byte, []int, []conn.Endpoint) (int, error) {
		if f.failures--; f.failures >= 0 {
			return 0, &net.OpError{Op: "read", Err: syscall.ENOMEM}
		}
		return 0, nil
	}}, 1, nil
}

func (f *flakyBind) Close() error { return nil }

func TestReceiveOutlivesErrors(t *testing.T) {
	inner := &flakyBind{failures: 3}
	b := newSplitBind(inner, newPathTable())
	receive, _, err := b.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := receive[0](nil, nil, nil); err != nil || b.receiveErrors.Load() != 3 {
		t.Errorf("got %v after %d errors, want success after 3", err, b.receiveErrors.Load())
	}
	inner.failures = 1 << 30
	ended := make(chan error)
	go func() {
		_, err := receive[0](nil, nil, nil)
		ended <- err
	}()
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("got %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Error("Close does not end a receive that fails again and again")
	}
}

// The receive path of wireguard-go's own bind and of ours, batches of WireGuard packets over loopback.
func BenchmarkReceive(b *testing.B) {
	b.Run("bare", func(b *testing.B) {
		inner := conn.NewStdNetBind()
		receive, port, err := inner.Open(0)
		if err != nil {
			b.Fatal(err)
		}
		defer inner.Close()
		benchmarkReceive(b, inner, receive[0], port)
	})
	b.Run("split", func(b *testing.B) {
		inner := newSplitBind(conn.NewStdNetBind(), newPathTable())
		receive, port, err := inner.Open(0)
		if err != nil {
			b.Fatal(err)
		}
		defer inner.Close()
		benchmarkReceive(b, inner, receive[0], port)
	})
}

func benchmarkReceive(b *testing.B, bind conn.Bind, receive conn.ReceiveFunc, port uint16) {
	batch := make([][]byte, 64)
	for i := range batch {
		batch[i] = make([]byte, 1420, 1<<16-1)
		batch[i][0] = messageTransport
	}
	to := &conn.StdNetEndpoint{AddrPort: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port)}
	r := newReceived(bind.BatchSize())
	b.SetBytes(64 * 1420)
	b.ReportAllocs()
	for b.Loop() {
		if err := bind.Send(batch, to); err != nil {
			b.Fatal(err)
		}
		for got := 0; got < len(batch); {
			n, err := receive(r.packets, r.sizes, r.from)
			if err != nil {
				b.Fatal(err)
			}
			got += n
			for i := range n { // as the device does; else only ours would pay for the first touch
				if r.sizes[i] < messageMinimum || binary.LittleEndian.Uint32(r.packets[i]) != messageTransport {
					b.Fatal("not a transport packet")
				}
			}
		}
		for i := range batch {
			batch[i] = batch[i][:1420] // the bind coalesces into the first
		}
	}
}
