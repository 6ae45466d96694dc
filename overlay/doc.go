// Package overlay is the mesh as state: what this host has verified about the others, and what follows from it.
//
// One goroutine, [Mesh.Run], owns the state. Events (a record, a policy, a hint, a timer) change it; a [Planner] turns
// it into a [HostPlan], which is a value; the plan is applied through the ports that this package declares.
//
//	hints ─┐                                                  ┌─> Firewall.Apply   (what may pass)
//	pulls ─┼─> verify ─> store ─> state ─> Planner ─> HostPlan ┤
//	timer ─┘                                                  └─> Tunnel.Apply     (who may connect)
//
// Records and policies are verified before they are stored, and stored before they are acted on. Gossip is a hint:
// it says what to pull and from whom, and never decides who is a peer.
package overlay
