// Package bind ties agents' overlay addresses to their processes, in the kernel, with eBPF programs on the cgroup root:
//
//	connect, sendmsg    an agent that opens something in the overlay has its own address as source
//	bind, sock_create   nobody takes another's address; raw sockets get a mark by which routes choose the source
//	egress, ingress     a packet with an agent's address leaves and reaches that agent's sockets only; what agents may not
//	                    reach outside the overlay does not leave, and agents of one host meet on the overlay only
//
// A process is the agent of its innermost claimed cgroup, else that of its user, else that of the host. A socket is what
// the process was that made it. Programs, links and maps are pinned: they enforce without the daemon, which adopts them
// when it starts again.
package bind
