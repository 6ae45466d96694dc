package names

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

const (
	reverse4 = ".in-addr.arpa."
	reverse6 = ".ip6.arpa."
)

// addrOfReverse is the address that a whole reverse name is about.
func addrOfReverse(name string) (netip.Addr, bool) {
	if digits, ok := strings.CutSuffix(name, reverse4); ok {
		labels := strings.Split(digits, ".")
		slices.Reverse(labels)
		addr, err := netip.ParseAddr(strings.Join(labels, "."))
		return addr, err == nil && addr.Is4()
	}
	digits, ok := strings.CutSuffix(name, reverse6)
	labels := strings.Split(digits, ".")
	if !ok || len(labels) != 32 {
		return netip.Addr{}, false
	}
	slices.Reverse(labels)
	var text strings.Builder
	for i, label := range labels {
		if len(label) != 1 {
			return netip.Addr{}, false
		}
		if i > 0 && i%4 == 0 {
			text.WriteByte(':')
		}
		text.WriteString(label)
	}
	addr, err := netip.ParseAddr(text.String())
	return addr, err == nil
}

// reverseZone is the reverse domain of a prefix that ends where a label does.
func reverseZone(p netip.Prefix) (zone string, ok bool) {
	bits, labels := 8, 4
	if p.Addr().Is6() {
		bits, labels = 4, 32
	}
	name, err := dns.ReverseAddr(p.Addr().String())
	if err != nil || p.Bits()%bits != 0 || p.Bits() == 0 {
		return "", false
	}
	parts := strings.SplitN(name, ".", labels-p.Bits()/bits+1)
	return parts[len(parts)-1], true
}
