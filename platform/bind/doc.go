// Package bind ties agents' overlay addresses to their processes, in the kernel, with eBPF programs on the cgroup root:
//
//	connect, sendmsg    an agent that opens something in the overlay has its own address as source
//	bind, sock_create   nobody takes another's address; raw sockets get a mark by which routes choose the source
//	egress, ingress     a packet with an agent's address leaves and reaches that agent's sockets only; what agents may not
//	                    reach outside the overlay does not leave, and agents of one host meet on the overlay only
//
// A process is the agent of its innermost claimed cgroup, else that of its user, else that of the host. A socket is what
// the process was that made it, wherever the process or the socket goes: one that is passed on over a Unix socket, or
// inherited from whoever activated a service, is its maker's. Programs, links and maps are pinned: they enforce without the
// daemon, which adopts them when it starts again.
//
// Three things the programs cannot do. A socket that took a port but no address has its source chosen by the routes, which
// on one host would choose the other agent's own: such a connection is refused. A packet socket, which needs CAP_NET_RAW,
// is in no program's way: it sees all agents' packets and sends past the programs. And a listener of another process for
// all addresses keeps an agent from listening for all addresses at the same port; it hears nothing of the agent's.
package bind
