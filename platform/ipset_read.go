package platform

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

var errSetMessage = errors.New("malformed ipset message")

// Values of the kernel's ipset protocol that the netlink package does not name.
const (
	setFlagListHeader = 1 << 2 // sizes without members
	attrTypeMask      = 0x3fff // without the flags "nested" and "network byte order"
)

// setPart is what one message of a dump says of a set; members come in several.
type setPart struct {
	name, kind string
	family     family
	elements   uint32
	entries    map[entry]instant
}

// readSets reads the sets of ours with all members.
func readSets(now time.Time) (sets, error) {
	out := make(sets)
	err := dumpSets(0, instantOf(now), func(p setPart) {
		s := out[p.name]
		if s == nil {
			s = newSet(p.kind, p.family)
			s.read = true
			out[p.name] = s
		}
		for e, end := range p.entries {
			s.entries[e] = end
		}
	})
	return out, err
}

// setSizes reads how many members each set of ours has.
func setSizes() (map[string]int, error) {
	out := make(map[string]int)
	err := dumpSets(setFlagListHeader, 0, func(p setPart) { out[p.name] = int(p.elements) })
	return out, err
}

func setNames() ([]string, error) {
	sizes, err := setSizes()
	names := make([]string, 0, len(sizes))
	for name := range sizes {
		names = append(names, name)
	}
	return names, err
}

// dumpSets calls fn for each message about a set of ours.
func dumpSets(flags uint32, now instant, fn func(setPart)) error {
	req := nl.NewNetlinkRequest(nl.IPSET_CMD_LIST|unix.NFNL_SUBSYS_IPSET<<8, unix.NLM_F_DUMP)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, Version: nl.NFNETLINK_V0})
	req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_PROTOCOL, nl.Uint8Attr(nl.IPSET_PROTOCOL)))
	if flags != 0 {
		req.AddData(nl.NewRtAttr(int(nl.IPSET_ATTR_FLAGS|nl.NLA_F_NET_BYTEORDER), binary.BigEndian.AppendUint32(nil, flags)))
	}
	messages, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil {
		return fmt.Errorf("list ipsets: %w", err)
	}
	var last setPart
	for _, m := range messages {
		part, err := parseSet(m, last, now)
		if err != nil {
			return err
		}
		last = part
		if ownedName.MatchString(part.name) {
			fn(part)
		}
	}
	return nil
}

// parseSet decodes one message of a dump. One that goes on with the set of the message before, last, does not
// say its type again. Members of sets that are not of ours are not looked at.
func parseSet(message []byte, last setPart, now instant) (setPart, error) {
	var p setPart
	if len(message) < nl.SizeofNfgenmsg {
		return p, errSetMessage
	}
	var members []byte
	err := eachAttr(message[nl.SizeofNfgenmsg:], func(kind uint16, value []byte) error {
		switch kind {
		case nl.IPSET_ATTR_SETNAME:
			p.name = cString(value)
		case nl.IPSET_ATTR_TYPENAME:
			p.kind = cString(value)
		case nl.IPSET_ATTR_FAMILY:
			if len(value) != 1 {
				return errSetMessage
			}
			p.family = ipv4
			if value[0] == unix.AF_INET6 {
				p.family = ipv6
			}
		case nl.IPSET_ATTR_DATA:
			return p.parseHeader(value)
		case nl.IPSET_ATTR_ADT:
			members = value
		}
		return nil
	})
	if p.kind == "" && p.name == last.name {
		p.kind, p.family = last.kind, last.family
	}
	if err != nil || !ownedName.MatchString(p.name) || (p.kind != kindAddress && p.kind != kindFlow) {
		return p, err
	}
	p.entries = make(map[entry]instant)
	return p, eachAttr(members, func(_ uint16, value []byte) error {
		e, end, err := parseMember(value, now)
		if flow := e.dst.IsValid(); err == nil && (flow != (p.kind == kindFlow) || !flow && (e.proto != 0 || e.port != 0)) {
			err = errSetMessage
		}
		if err != nil {
			return fmt.Errorf("ipset %s: %w", p.name, err)
		}
		p.entries[e] = end
		return nil
	})
}

func (p *setPart) parseHeader(data []byte) error {
	return eachAttr(data, func(kind uint16, value []byte) error {
		if kind != nl.IPSET_ATTR_ELEMENTS {
			return nil
		}
		if len(value) != 4 {
			return errSetMessage
		}
		p.elements = binary.BigEndian.Uint32(value)
		return nil
	})
}

func parseMember(data []byte, now instant) (e entry, end instant, err error) {
	err = eachAttr(data, func(kind uint16, value []byte) (err error) {
		switch kind {
		case nl.IPSET_ATTR_IP:
			e.src, err = parseSetAddr(value)
		case nl.IPSET_ATTR_IP2:
			e.dst, err = parseSetAddr(value)
		case nl.IPSET_ATTR_PROTO:
			if len(value) != 1 {
				return errSetMessage
			}
			e.proto = value[0]
		case nl.IPSET_ATTR_PORT:
			if len(value) != 2 {
				return errSetMessage
			}
			e.port = binary.BigEndian.Uint16(value)
		case nl.IPSET_ATTR_TIMEOUT:
			if len(value) != 4 {
				return errSetMessage
			}
			if left := instant(binary.BigEndian.Uint32(value)); left != 0 {
				end = now + left*1000 + 500 // the kernel rounds down
			}
		}
		return err
	})
	if err == nil && (!e.src.IsValid() || e.dst.IsValid() && e.dst.Is4() != e.src.Is4()) {
		err = errSetMessage
	}
	return e, end, err
}

func parseSetAddr(data []byte) (netip.Addr, error) {
	var addr netip.Addr
	err := eachAttr(data, func(kind uint16, value []byte) error {
		a, ok := netip.AddrFromSlice(value)
		if !ok || a.Is4() != (kind == nl.IPSET_ATTR_IPADDR_IPV4) {
			return errSetMessage
		}
		addr = a
		return nil
	})
	return addr, err
}

// eachAttr calls fn for each netlink attribute in data, without the flags of its type.
func eachAttr(data []byte, fn func(kind uint16, value []byte) error) error {
	for len(data) > 0 {
		if len(data) < unix.SizeofRtAttr {
			return errSetMessage
		}
		n := int(binary.NativeEndian.Uint16(data))
		if n < unix.SizeofRtAttr || n > len(data) {
			return errSetMessage
		}
		if err := fn(binary.NativeEndian.Uint16(data[2:])&attrTypeMask, data[unix.SizeofRtAttr:n]); err != nil {
			return err
		}
		data = data[min((n+3)&^3, len(data)):]
	}
	return nil
}

func cString(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}
