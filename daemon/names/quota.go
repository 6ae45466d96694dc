package names

import (
	"net"
	"net/netip"
	"sync"
)

const (
	maxAsking  = 32 // queries of one agent that wait for an upstream
	maxTalking = 16 // TCP connections of one address
)

// quota lets each have so much at once, so that one who takes all leaves the others theirs.
type quota[K comparable] struct {
	each int

	mu   sync.Mutex
	used map[K]int
}

// take takes one of those that k may have. What it returns gives it back.
func (q *quota[K]) take(k K) (giveBack func(), ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.used[k] >= q.each {
		return nil, false
	}
	if q.used == nil {
		q.used = make(map[K]int)
	}
	q.used[k]++
	return sync.OnceFunc(func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		if q.used[k]--; q.used[k] == 0 {
			delete(q.used, k)
		}
	}), true
}

// bounded closes the connections of an address that has its share.
type bounded struct {
	net.Listener
	talking *quota[netip.Addr]
}

// Accept waits for a connection within its address's share.
func (b bounded) Accept() (net.Conn, error) {
	for {
		conn, err := b.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if release, ok := b.talking.take(addrOf(conn.RemoteAddr())); ok {
			return &boundedConn{conn, release}, nil
		}
		_ = conn.Close() // the client tries again
	}
}

// boundedConn gives its place back when it is closed.
type boundedConn struct {
	net.Conn
	release func()
}

// Close closes the connection.
func (c *boundedConn) Close() error {
	c.release()
	return c.Conn.Close()
}

func addrOf(a net.Addr) netip.Addr {
	switch a := a.(type) {
	case *net.UDPAddr:
		return a.AddrPort().Addr().Unmap()
	case *net.TCPAddr:
		return a.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}
