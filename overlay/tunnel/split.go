package tunnel

// class says which protocol on the shared socket a packet belongs to.
type class uint8

const (
	foreign class = iota
	wireGuard
	quic
)

const (
	messageInitiation     = 1   // WireGuard: opens a handshake
	messageInitiationSize = 148 // bytes
	messageTransport      = 4   // WireGuard: the last of its message types
	messageMinimum        = 32  // bytes; no WireGuard message is shorter
	quicFixedBit          = 0x40
)

// classify looks at the first bytes only: WireGuard has a type from 1 to 4 and three reserved zero
// bytes, QUIC version 1 always sets its fixed bit.
func classify(packet []byte) class {
	if len(packet) == 0 {
		return foreign
	}
	if first := packet[0]; first >= quicFixedBit {
		return quic
	} else if first < messageInitiation || first > messageTransport {
		return foreign
	}
	if len(packet) < messageMinimum || packet[1]|packet[2]|packet[3] != 0 {
		return foreign
	}
	return wireGuard
}

// isInitiation says whether a batch to send is a handshake initiation, which WireGuard sends alone.
func isInitiation(packets [][]byte) bool {
	return len(packets) == 1 && len(packets[0]) == messageInitiationSize && packets[0][0] == messageInitiation
}
