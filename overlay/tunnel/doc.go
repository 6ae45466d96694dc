// Package tunnel carries approved packets between hosts with WireGuard, and shares its one UDP socket
// with QUIC: the first byte of a packet tells which of the two it is for.
//
// WireGuard addresses a host, not an IP. A host has candidate addresses, at best one that QUIC has
// verified, and WireGuard's own roaming moves the path whenever an authenticated packet comes from
// somewhere else; the latest of these events wins.
package tunnel
