package spiffe

import (
	"errors"
	"net"
	"sync"
)

// bounded accepts so many connections at once; more wait in the kernel.
type bounded struct {
	net.Listener
	slots chan struct{}
}

// Accept waits for a slot, and for a connection.
func (b *bounded) Accept() (net.Conn, error) {
	for {
		conn, err := b.Listener.Accept()
		if err != nil {
			return nil, err
		}
		unix, ok := conn.(*net.UnixConn)
		if !ok {
			return nil, errors.Join(errors.New("no Unix socket"), conn.Close())
		}
		select {
		case b.slots <- struct{}{}:
			return &slotConn{UnixConn: unix, release: sync.OnceFunc(func() { <-b.slots })}, nil
		default:
			_ = conn.Close() // too many: the client tries again
		}
	}
}

// slotConn gives its slot back when it is closed.
type slotConn struct {
	*net.UnixConn
	release func()
}

// Close closes the connection.
func (c *slotConn) Close() error {
	c.release()
	return c.UnixConn.Close()
}
