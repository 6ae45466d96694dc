package spiffe

import (
	"context"
	"errors"
	"net"
	"sync"

	"google.golang.org/grpc/credentials"
)

// quota lets each agent have so much at once, so that one that takes all leaves the others theirs. Processes that are no
// agent share what one agent has.
type quota struct {
	each int

	mu   sync.Mutex
	used map[string]int
}

// take takes one of those that agent may have. What it returns gives it back.
func (q *quota) take(agent string) (giveBack func(), ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.used[agent] >= q.each {
		return nil, false
	}
	if q.used == nil {
		q.used = make(map[string]int)
	}
	q.used[agent]++
	return sync.OnceFunc(func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		if q.used[agent]--; q.used[agent] == 0 {
			delete(q.used, agent)
		}
	}), true
}

// unixListener accepts connections that know whose place they take.
type unixListener struct{ net.Listener }

// Accept waits for a connection.
func (l unixListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	unix, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, errors.Join(errNoUnix, conn.Close())
	}
	return &placedConn{UnixConn: unix}, nil
}

var errNoUnix = errors.New("no Unix socket")

// placedConn gives its place back when it is closed.
type placedConn struct {
	*net.UnixConn

	mu     sync.Mutex
	closed bool
	leave  func()
}

// place notes how the place is given back.
func (c *placedConn) place(leave func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		leave()
		return
	}
	c.leave = leave
}

// Close closes the connection.
func (c *placedConn) Close() error {
	c.mu.Lock()
	c.closed = true
	if c.leave != nil {
		c.leave()
	}
	c.mu.Unlock()
	return c.UnixConn.Close()
}

// peerCredentials take every connection for which there is a place: the kernel says who is on the other end.
type peerCredentials struct{ server *Server }

func (p peerCredentials) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	placed, ok := conn.(*placedConn)
	if !ok {
		return nil, nil, errNoUnix
	}
	agent, err := p.server.options.Attest(placed.UnixConn)
	if err != nil {
		agent = "" // it hears so when it asks
	}
	leave, ok := p.server.conns.take(agent)
	if !ok {
		return nil, nil, errors.New("too many connections")
	}
	placed.place(leave)
	return conn, connInfo{placed.UnixConn}, nil
}

func (peerCredentials) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("not a client")
}

func (peerCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "unix"}
}
func (p peerCredentials) Clone() credentials.TransportCredentials { return p }
func (peerCredentials) OverrideServerName(string) error           { return nil }

// connInfo carries a connection to those who ask whose it is.
type connInfo struct{ *net.UnixConn }

// AuthType names the scheme, as grpc wants.
func (connInfo) AuthType() string { return "unix" }
