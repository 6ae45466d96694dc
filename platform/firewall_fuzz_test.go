package platform

import (
	"encoding/binary"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

func attr(kind uint16, value []byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, value...)
	return append(b, make([]byte, -len(b)&3)...)
}

// setMessage encodes what the kernel says of a set with one entry.
func setMessage(name string, e entry, seconds uint32) []byte {
	const nested, order = unix.NLA_F_NESTED, unix.NLA_F_NET_BYTEORDER
	ip := func(kind uint16, a []byte) []byte {
		inner := uint16(nl.IPSET_ATTR_IPADDR_IPV4)
		if len(a) == 16 {
			inner = nl.IPSET_ATTR_IPADDR_IPV6
		}
		return attr(kind|nested, attr(inner|order, a))
	}
	member := ip(nl.IPSET_ATTR_IP, e.src.AsSlice())
	kind := kindAddress
	if e.dst.IsValid() {
		kind = kindFlow
		member = append(member, ip(nl.IPSET_ATTR_IP2, e.dst.AsSlice())...)
		member = append(member, attr(nl.IPSET_ATTR_PROTO, []byte{e.proto})...)
		member = append(member, attr(nl.IPSET_ATTR_PORT|order, binary.BigEndian.AppendUint16(nil, e.port))...)
	}
	member = append(member, attr(nl.IPSET_ATTR_TIMEOUT|order, binary.BigEndian.AppendUint32(nil, seconds))...)
	family := byte(unix.AF_INET)
	if e.src.Is6() {
		family = unix.AF_INET6
	}
	m := []byte{unix.AF_INET, 0, 0, 0}
	m = append(m, attr(nl.IPSET_ATTR_SETNAME, []byte(name+"\x00"))...)
	m = append(m, attr(nl.IPSET_ATTR_TYPENAME, []byte(kind+"\x00"))...)
	m = append(m, attr(nl.IPSET_ATTR_FAMILY, []byte{family})...)
	return append(m, attr(nl.IPSET_ATTR_ADT|nested, attr(nl.IPSET_ATTR_DATA|nested, member))...)
}

// FuzzParseSet: whatever is read as an entry is read again as the same when written, and belongs to its set.
func FuzzParseSet(f *testing.F) {
	f.Add(setMessage("bulkhead-in4", entry{there4, protoTCP, 443, here4}, 0))
	f.Add(setMessage("bulkhead-out6", entry{here6, protoICMPv6, 128 << 8, there6}, 77))
	f.Add(setMessage("bulkhead-local4", entry{src: here4}, 0))
	f.Add(setMessage("theirs", entry{src: here4}, 0))
	f.Add(setMessage("bulkhead-local4", entry{src: here4, dst: here4, port: 443}, 0))
	f.Add([]byte{2, 0, 0, 0, 4})
	f.Fuzz(func(t *testing.T, message []byte) {
		part, err := parseSet(message, setPart{}, 0)
		if err != nil {
			return
		}
		if len(part.entries) > 0 && !ownedName.MatchString(part.name) {
			t.Fatalf("entries of %q are looked at", part.name)
		}
		for e, end := range part.entries {
			if (part.kind == kindFlow) != e.dst.IsValid() {
				t.Fatalf("entry %+v in a set of type %s", e, part.kind)
			}
			again, err := parseSet(setMessage(part.name, e, uint32(end/1000)), setPart{}, 0)
			if got, ok := again.entries[e]; err != nil || !ok || got != end {
				t.Fatalf("%+v until %d is read again as %+v, %v", e, end, again, err)
			}
		}
	})
}

// FuzzCanonical: the order of options does not matter, nor does writing the canonical form again.
func FuzzCanonical(f *testing.F) {
	f.Add("-A BULKHEAD-IN -p icmp -m icmp ! --icmp-type 5 -m conntrack --ctstate RELATED -j RETURN", uint64(1))
	f.Add(`-A PREROUTING -m comment --comment "a \"quoted\" one" -j BULKHEAD-RAW`, uint64(2))
	f.Add("! ! -m -m x -", uint64(3))
	f.Add(`-A OUTPUT -m comment --comment "\\\\\\" -j RETURN`, uint64(4))
	f.Fuzz(func(t *testing.T, rule string, seed uint64) {
		options := ruleOptions(rule)
		shuffled := append([]string(nil), options...)
		rand.New(rand.NewPCG(seed, 0)).Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		for i := range shuffled {
			if !strings.HasPrefix(shuffled[i], "-") && !strings.HasPrefix(shuffled[i], "! ") {
				return // values without an option belong to what is before them
			}
		}
		if a, b := canonical(rule), canonical(strings.ReplaceAll(strings.Join(shuffled, " "), `\`, `\\`)); a != b {
			t.Fatalf("%q and %q are not one rule", a, b)
		}
		if callsOurs(rule) && !strings.Contains(rule, strings.TrimSuffix(chainPrefix, "-")) {
			t.Fatalf("%q does not call us", rule)
		}
	})
}

// FuzzParseCounter: a reason is one that the rule names.
func FuzzParseCounter(f *testing.F) {
	f.Add(`-A BULKHEAD-IN -m comment --comment "bulkhead:invalid" -c 12 840 -j DROP`)
	f.Add("-A BULKHEAD-IN -c 99999999999999999999 1 -m comment --comment bulkhead:leak -j DROP")
	f.Fuzz(func(t *testing.T, rule string) {
		reason, packets, ok := parseCounter(rule)
		if ok != (reason != "") || !ok && packets != 0 {
			t.Fatalf("%q, %d, %t", reason, packets, ok)
		}
	})
}
