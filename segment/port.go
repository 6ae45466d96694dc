package segment

import (
	"fmt"
	"strconv"
	"strings"
)

// Proto is an IP protocol number.
type Proto uint8

// The protocols that policy knows. ICMP is echo (ping), in both families; errors about allowed flows always pass.
const (
	ICMP Proto = 1
	TCP  Proto = 6
	UDP  Proto = 17
)

// String is the name in policy.
func (p Proto) String() string {
	switch p {
	case ICMP:
		return "icmp"
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	default:
		return "proto-" + strconv.Itoa(int(p))
	}
}

// Ports is a protocol and a range of destination ports, First to Last; 0 to 0 for ICMP.
type Ports struct {
	Proto       Proto
	First, Last uint16
}

// Port is one protocol and destination port; 0 for ICMP.
type Port struct {
	Proto  Proto
	Number uint16
}

const portFix = "write it like tcp/443, tcp/6333-6334, udp/53 or icmp"

// ParsePorts reads "tcp/443", "tcp/6333-6334", "udp/53" or "icmp".
func ParsePorts(s string) (Ports, error) {
	p, ok := parsePorts(s)
	if !ok {
		return Ports{}, fmt.Errorf("%.40q is no port (fix: %s)", s, portFix)
	}
	return p, nil
}

// ParsePort reads "tcp/443" or "icmp".
func ParsePort(s string) (Port, error) {
	p, ok := parsePorts(s)
	if !ok || p.First != p.Last {
		return Port{}, fmt.Errorf("%.40q is no single port (fix: write it like tcp/443, udp/53 or icmp)", s)
	}
	return Port{Proto: p.Proto, Number: p.First}, nil
}

// parsePorts takes the one text that String gives for each value.
func parsePorts(s string) (Ports, bool) {
	if s == "icmp" {
		return Ports{Proto: ICMP}, true
	}
	name, numbers, _ := strings.Cut(s, "/")
	proto, ok := map[string]Proto{"tcp": TCP, "udp": UDP}[name]
	first, last, isRange := strings.Cut(numbers, "-")
	a, okA := parsePortNumber(first)
	b := a
	okB := true
	if isRange {
		b, okB = parsePortNumber(last)
		okB = okB && a < b
	}
	return Ports{Proto: proto, First: a, Last: b}, ok && okA && okB
}

// parsePortNumber takes 1 to 65535 without sign or leading zero.
func parsePortNumber(s string) (uint16, bool) {
	n, err := strconv.ParseUint(s, 10, 16)
	return uint16(n), err == nil && s[0] != '0' && s[0] != '+'
}

// Contains reports whether q is one of p.
func (p Ports) Contains(q Port) bool {
	return p.Proto == q.Proto && p.First <= q.Number && q.Number <= p.Last
}

// String is the form that ParsePorts reads.
func (p Ports) String() string {
	switch {
	case p == Ports{Proto: ICMP}:
		return "icmp"
	case p.First == p.Last:
		return fmt.Sprintf("%s/%d", p.Proto, p.First)
	default:
		return fmt.Sprintf("%s/%d-%d", p.Proto, p.First, p.Last)
	}
}

// String is the form that ParsePort reads.
func (p Port) String() string { return Ports{p.Proto, p.Number, p.Number}.String() }

// MarshalText is String.
func (p Ports) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText is ParsePorts.
func (p *Ports) UnmarshalText(b []byte) (err error) { *p, err = ParsePorts(string(b)); return err }

// MarshalText is String.
func (p Port) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText is ParsePort.
func (p *Port) UnmarshalText(b []byte) (err error) { *p, err = ParsePort(string(b)); return err }
