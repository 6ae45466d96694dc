package names

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"pgregory.net/rapid"
)

// noEgress keeps the fuzzer from the network.
type noEgress struct{ phonebook }

func (*noEgress) Egress(string, string) bool { return false }

// Whatever comes as a query, the answer can be packed, is to that query, fits what it says, and tells nobody more than he
// may know.
func FuzzAnswer(f *testing.F) {
	for _, name := range []string{"vec1.acme.example.internal.", "acme.example.internal.", "7.0.201.10.in-addr.arpa.", "www.example.net.", `a\.b.example.org.`, "."} {
		for _, kind := range []uint16{dns.TypeA, dns.TypePTR, dns.TypeANY} {
			packed, err := new(dns.Msg).SetQuestion(name, kind).SetEdns0(512, true).Pack()
			if err != nil {
				f.Fatal(err)
			}
			f.Add(packed)
		}
	}
	p := &noEgress{}
	o := p.options()
	o.Directory = p
	s := New(o)
	known := map[string]bool{"10.201.0.7": true, "fd00::7": true, "127.0.0.2": true, "vec1.acme.example.internal.": true, "scout.acme.example.internal.": true}
	f.Fuzz(func(t *testing.T, raw []byte) {
		q := new(dns.Msg)
		if q.Unpack(raw) != nil {
			return
		}
		for _, asker := range []netip.Addr{scout, guest, nobody} {
			m := s.answer(t.Context(), asker, q)
			if m.Id != q.Id || !m.Response {
				t.Errorf("the answer is to another query: %v", m)
			}
			if len(m.Answer) > 0 && asker != scout {
				t.Errorf("%s, who may know nothing, hears %v", asker, m.Answer)
			}
			for _, rr := range m.Answer {
				if value := dns.Field(rr, 1); !known[value] {
					t.Errorf("scout hears %s", value)
				}
			}
			m.Truncate(dns.MinMsgSize)
			packed, err := m.Pack()
			if err != nil {
				t.Fatalf("%v: %v", m, err)
			}
			if len(packed) > dns.MinMsgSize {
				t.Errorf("%d bytes", len(packed))
			}
		}
	})
}

// Whatever a server answers, what is read from it is bounded, and is in it.
func FuzzFlatten(f *testing.F) {
	m := new(dns.Msg).SetQuestion("a.example.org.", dns.TypeA)
	for _, text := range []string{"a.example.org. 60 IN CNAME b.example.org.", "b.example.org. 30 IN A 192.0.2.1", "b.example.org. 30 IN AAAA 2001:db8::1"} {
		rr, err := dns.NewRR(text)
		if err != nil {
			f.Fatal(err)
		}
		m.Answer = append(m.Answer, rr)
	}
	packed, err := m.Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(packed)
	f.Fuzz(func(t *testing.T, raw []byte) {
		m := new(dns.Msg)
		if m.Unpack(raw) != nil {
			return
		}
		for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA} {
			addrs, end, ttl := flatten(m, "a.example.org.", kind)
			if len(addrs) > maxAddrs || ttl > maxTTL {
				t.Errorf("%d addresses for %d s", len(addrs), ttl)
			}
			for _, addr := range addrs {
				if addr.Is4() != (kind == dns.TypeA) || !holds(m, end, addr) {
					t.Errorf("%s is not in %v", addr, m)
				}
			}
		}
	})
}

func holds(m *dns.Msg, name string, addr netip.Addr) bool {
	for _, rr := range m.Answer {
		if got, ok := addressIn(rr, rr.Header().Rrtype); ok && got == addr && dns.CanonicalName(rr.Header().Name) == name {
			return true
		}
	}
	return false
}

// The reverse of a reverse name is the address that it was made of, and its prefix's zone holds it.
func TestReverseNames(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size, step := 4, 8
		if rapid.Bool().Draw(t, "six") {
			size, step = 16, 4
		}
		addr, _ := netip.AddrFromSlice(rapid.SliceOfN(rapid.Byte(), size, size).Draw(t, "address"))
		name, err := dns.ReverseAddr(addr.String())
		if err != nil {
			t.Skip("v4 in v6 has no name of its own")
		}
		if got, ok := addrOfReverse(dns.CanonicalName(name)); !ok || got != addr.Unmap() {
			t.Fatalf("%s is of %s, got %s", name, addr, got)
		}
		if addr.Is4In6() {
			return
		}
		bits := step * rapid.IntRange(1, addr.BitLen()/step).Draw(t, "labels")
		prefix, err := addr.Prefix(bits)
		if err != nil {
			t.Fatal(err)
		}
		zone, ok := reverseZone(prefix)
		if !ok || !dns.IsSubDomain(zone, name) || dns.CountLabel(zone) != 2+bits/step {
			t.Fatalf("the zone of %s is %q, and has not %s", prefix, zone, name)
		}
	})
	for _, name := range []string{"in-addr.arpa.", "10.in-addr.arpa.", "1.2.3.4.5.in-addr.arpa.", "01.2.3.4.in-addr.arpa.", "256.2.3.4.in-addr.arpa.", "::1.in-addr.arpa.", "ip6.arpa.", "1.ip6.arpa.", "example.org."} {
		if addr, ok := addrOfReverse(name); ok {
			t.Errorf("%s is of %s", name, addr)
		}
	}
	for _, p := range []string{"10.201.0.0/20", "fd00::/50", "0.0.0.0/0"} {
		if zone, ok := reverseZone(netip.MustParsePrefix(p)); ok {
			t.Errorf("%s has zone %s", p, zone)
		}
	}
}

// The quota gives back what was taken, once.
func TestQuota(t *testing.T) {
	q := quota[string]{each: 2}
	one, ok1 := q.take("a")
	_, ok2 := q.take("a")
	_, ok3 := q.take("a")
	_, other := q.take("b")
	if diff := cmp.Diff([]bool{true, true, false, true}, []bool{ok1, ok2, ok3, other}); diff != "" {
		t.Fatal(diff)
	}
	one()
	one()
	_, ok1 = q.take("a")
	_, ok2 = q.take("a")
	if !ok1 || ok2 {
		t.Errorf("after one was given back: %t, %t", ok1, ok2)
	}
}

var _ Directory = (*noEgress)(nil)
