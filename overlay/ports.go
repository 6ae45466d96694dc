package overlay

import (
	"context"
	"net/netip"
	"time"
)

// Tunnel carries approved packets between hosts. Apply takes the whole desired state and may be
// called again with an equal one; it is safe for concurrent use with Peers.
type Tunnel interface {
	Apply(context.Context, TunnelConfig) error
	Peers(context.Context) ([]PeerStatus, error)
}

// TunnelConfig is every peer that the tunnel shall have, and no other.
type TunnelConfig struct {
	Peers []TunnelPeer // sorted by host
}

// TunnelPeer is a host that carries at least one agent that may talk to an agent here.
type TunnelPeer struct {
	Host       string
	PublicKey  [32]byte         // WireGuard
	AllowedIPs []netip.Addr     // exactly the approved agents' addresses, sorted
	Endpoints  []netip.AddrPort // candidates, best first
}

// PeerStatus is what the tunnel knows of a peer now.
type PeerStatus struct {
	Host          string
	Path          string // how packets reach it, like "direct 192.0.2.1:51900"; empty if unknown
	LastHandshake time.Time
	RxBytes       uint64
	TxBytes       uint64
}

// Firewall enforces flows in the kernel. Apply takes the whole desired state, atomically: what passes
// is the old or the new set. Flows that are no longer allowed are cut before Apply returns.
type Firewall interface {
	Apply(context.Context, FirewallConfig) error
}

// FirewallConfig is everything that may pass the overlay interface; all else is dropped.
type FirewallConfig struct {
	Local []netip.Addr // addresses of the agents here: the only sources that may leave, the usual one first
	Allow []Allow
}

// Direction says who may open a flow.
type Direction uint8

const (
	In  Direction = iota + 1 // the remote side opens
	Out                      // the local side opens
)

// Allow lets one side open a protocol and port range to the other; replies pass, nothing else does.
type Allow struct {
	Direction     Direction
	Remote, Local netip.Addr // of one family
	Proto         uint8      // IP protocol number: 6 TCP, 17 UDP, 1 ICMP (echo, both families)
	First, Last   uint16     // destination ports, inclusive; 0, 0 for ICMP
	Until         time.Time  // the kernel ends it then, daemon or not; zero: never
}

// Network carries messages between hosts over authenticated connections. The host names that it
// reports were proven by certificate.
type Network interface {
	// Send hands over one datagram of at most 1100 bytes. It never blocks; delivery is best effort.
	Send(host string, kind Kind, payload []byte) error
	// Open starts a stream. The caller closes it.
	Open(ctx context.Context, host string, kind Kind) (Stream, error)
}

// Stream is one bidirectional stream of a connection between two hosts.
type Stream interface {
	Read([]byte) (int, error)
	Write([]byte) (int, error)
	CloseWrite() error // ends our side; the other reads io.EOF
	Close() error      // ends both sides
	SetDeadline(time.Time) error
}

// Kind is the first byte of a datagram or stream. Append only.
type Kind byte

const (
	KindGossip Kind = iota + 1 // memberlist packets and push/pull streams
	KindHint                   // one Hint, datagram
	KindPull                   // records and policy, stream
)

// Gossip answers who is probably alive and spreads hints. Nothing it says is trusted.
type Gossip interface {
	Announce(Hint)       // replaces what this host says about itself; never blocks
	Learned(host string) // a verified record of host is stored: it may take part
	Forget(host string)  // host's certificate is void or expired
	Alive() []string     // other hosts that probably live, sorted
	Join(hosts []string) // asks for a full exchange with each, in the background
}

// Store keeps bytes in named buckets, transactionally and durably: once Update returns nil, its
// effects survive a crash.
type Store interface {
	Update(func(Tx) error) error
	View(func(Tx) error) error
}

// Tx is one transaction of a Store. Values are valid until it ends. In View, changes are errors.
type Tx interface {
	Get(bucket, key string) []byte // nil if absent
	Put(bucket, key string, value []byte) error
	Delete(bucket, key string) (existed bool, err error)
	// Each calls fn in key order until it returns an error.
	Each(bucket string, fn func(key string, value []byte) error) error
}
