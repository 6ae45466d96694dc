package daemon

import (
	"fmt"
	"net"
	"net/http"
	"os"

	"github.com/bulkhead-mesh/bulkhead/control/api"
	"github.com/bulkhead-mesh/bulkhead/control/authority"
	"github.com/bulkhead-mesh/bulkhead/platform"
	"github.com/bulkhead-mesh/bulkhead/platform/workload"
)

// caller is who is on the other end of a Unix socket.
type caller struct {
	platform.Peer
	agent string // empty: none. It may be no more: what was run as it stays that
}

// attest says which agent the process on the other end of a connection is, by the same facts as the kernel does.
func (d *daemon) attest(conn *net.UnixConn) (caller, error) {
	peer, err := platform.PeerOf(conn)
	if err != nil {
		return caller{}, err
	}
	c := caller{Peer: peer}
	err = peer.Inspect(conn, func(pid int) error {
		groups, err := workload.CgroupsOf(d.cgroupRoot, pid)
		if err != nil {
			return err
		}
		if c.agent = d.mesh.Snapshot().Plan.Bindings.Owner(groups, uint32(peer.UID)); !d.isFree(c.agent) {
			return nil
		}
		ran, err := workload.RunAs(d.cgroupRoot, pid)
		if ran != "" {
			c.agent = ran
		}
		return err
	})
	if err != nil {
		return caller{}, fmt.Errorf("attest caller: %w", err)
	}
	return c, nil
}

func connOf(r *http.Request) (*net.UnixConn, bool) {
	conn, ok := r.Context().Value(api.ConnContextKey{}).(*net.UnixConn)
	return conn, ok
}

// socketPrincipal is who asks over the local socket; the zero principal, which may nothing, for other users, and for
// agents: one that runs as root must not administer what keeps it in. An agent that is the whole host is the
// administrator's shell, too.
func (d *daemon) socketPrincipal(r *http.Request) authority.Principal {
	conn, ok := connOf(r)
	if !ok {
		return authority.Principal{}
	}
	c, err := d.attest(conn)
	if err != nil || (c.UID != 0 && c.UID != os.Getuid()) {
		return authority.Principal{}
	}
	if !d.isFree(c.agent) {
		d.log.Warn("refused an agent at the local socket", "agent", c.agent, "pid", c.PID)
		return authority.Principal{}
	}
	return authority.Principal{Name: fmt.Sprintf("local/uid-%d", c.UID), Role: authority.RoleAdmin, From: "socket"}
}
