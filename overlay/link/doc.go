// Package link carries messages between hosts over QUIC with mutual TLS 1.3. A connection belongs to the
// host that its certificate proves; addresses are only ways to get there.
//
// On the wire a datagram or a stream starts with one byte, its overlay.Kind. After the handshake the
// accepting side sends one byte on a unidirectional stream: only then has it accepted the certificate of
// the dialling side, which TLS 1.3 does not tell the client.
package link
