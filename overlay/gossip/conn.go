package gossip

import (
	"bufio"
	"bytes"
	"net"
	"sync"
	"time"

	"github.com/bulkhead-mesh/bulkhead/overlay"
)

// conn shows a stream to memberlist as a net.Conn. What memberlist reads from it has been inspected.
type conn struct {
	overlay.Stream
	local, remote string
	inspect       func(*bufio.Reader) ([]byte, error)
	onClose       func()

	once   sync.Once
	body   bytes.Reader
	err    error
	closed sync.Once
}

// Read inspects the whole message before it gives out the first byte; memberlist expects one only.
func (c *conn) Read(p []byte) (int, error) {
	c.once.Do(func() {
		var body []byte
		body, c.err = c.inspect(bufio.NewReader(c.Stream))
		c.body.Reset(body)
	})
	if c.err != nil {
		return 0, c.err
	}
	return c.body.Read(p)
}

func (c *conn) Close() error {
	err := c.Stream.Close()
	c.closed.Do(c.onClose)
	return err
}

func (c *conn) LocalAddr() net.Addr                { return addr(c.local) }
func (c *conn) RemoteAddr() net.Addr               { return addr(c.remote) }
func (c *conn) SetReadDeadline(t time.Time) error  { return c.SetDeadline(t) }
func (c *conn) SetWriteDeadline(t time.Time) error { return c.SetDeadline(t) }

// addr is a host name as a net.Addr, in the form that memberlist can parse.
type addr string

func (a addr) Network() string { return "bulkhead" }
func (a addr) String() string  { return hostPort(string(a)) }
