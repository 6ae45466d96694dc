// Package daemon wires the rest on one host: configuration, lifecycle, state directory, local socket.
//
// A daemon's life is starting → fenced → ready ⇄ degraded → draining → stopped. Fenced means that deny is in the
// kernel before the first packet or peer; ready means that the stored policy is enforced.
//
//	order  start                                   stop (reverse)
//	1      open the state directory                close it
//	2      fence: deny all in the kernel           leave it: only `bulkhead down` removes the rules
//	3      interface, then sets and rules          the interface goes with the process
//	4      tunnel, QUIC, gossip, mesh loop         leave gossip, then all of them
//	5      local socket, control API, notify ready notify stopping, close listeners
package daemon
