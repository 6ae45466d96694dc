package names

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"go.uber.org/goleak"

	"github.com/bulkhead-mesh/bulkhead/segment"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// phonebook knows scout, who may reach vec1 and names of an egress list; vault is for nobody.
type phonebook struct {
	mu      sync.Mutex
	learned []string
	lives   []time.Duration
	refuse  error
}

var (
	scout   = netip.MustParseAddr("127.0.0.2")
	guest   = netip.MustParseAddr("127.0.0.3")
	rover   = netip.MustParseAddr("127.0.0.4")
	nobody  = netip.MustParseAddr("127.0.0.9")
	vec1    = segment.Agent{Name: "vec1", Addresses: []netip.Addr{netip.MustParseAddr("10.201.0.7"), netip.MustParseAddr("fd00::7")}}
	self    = segment.Agent{Name: "scout", Addresses: []netip.Addr{scout}}
	overlay = []netip.Prefix{netip.MustParsePrefix("10.201.0.0/16"), netip.MustParsePrefix("fd00::/48")}
)

func (p *phonebook) Asker(a netip.Addr) (string, bool) {
	name, ok := map[netip.Addr]string{scout: "scout", guest: "guest", rover: "rover"}[a]
	return name, ok
}

func (p *phonebook) Reach(agent string) []segment.Agent {
	if agent == "scout" {
		return []segment.Agent{self, vec1}
	}
	return nil
}

func (p *phonebook) Egress(agent, name string) bool {
	return agent != "guest" && (name == "api.example.com" || strings.HasSuffix(name, ".example.org"))
}

// Private is as if the list had 10.0.0.0/8, and the nets of loopback and links.
func (p *phonebook) Private(_ string, a netip.Addr) bool {
	return within(prefixes("10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "fe80::/10"), a)
}

func (p *phonebook) learn(_, name string, addrs []netip.Addr, life time.Duration) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, a := range addrs {
		p.learned = append(p.learned, name+"="+a.String())
		p.lives = append(p.lives, life)
	}
	return p.refuse
}

func (p *phonebook) options() Options {
	return Options{Mesh: "acme.example", Prefixes: overlay, Directory: p, Learn: p.learn, Logger: slog.New(slog.DiscardHandler)}
}

// said is an answer in short: its code, and its records.
func said(m *dns.Msg) string {
	parts := []string{dns.RcodeToString[m.Rcode]}
	for _, rr := range m.Answer {
		parts = append(parts, strings.Join(strings.Fields(rr.String())[3:], " "))
	}
	return strings.Join(parts, ", ")
}

func TestEachAgentHearsWhatItMayKnow(t *testing.T) {
	s := New((&phonebook{}).options())
	for _, tt := range []struct {
		asker netip.Addr
		name  string
		kind  uint16
		want  string
	}{
		{scout, "vec1.acme.example.internal.", dns.TypeA, "NOERROR, A 10.201.0.7"},
		{scout, "VEC1.acme.EXAMPLE.internal.", dns.TypeAAAA, "NOERROR, AAAA fd00::7"},
		{scout, "vec1.acme.example.internal.", dns.TypeANY, "NOERROR, A 10.201.0.7, AAAA fd00::7"},
		{scout, "vec1.acme.example.internal.", dns.TypeMX, "NOERROR"},
		{scout, "scout.acme.example.internal.", dns.TypeA, "NOERROR, A 127.0.0.2"},
		{scout, "vault.acme.example.internal.", dns.TypeA, "NXDOMAIN"},
		{scout, "nobody.acme.example.internal.", dns.TypeA, "NXDOMAIN"},
		{scout, "a.vec1.acme.example.internal.", dns.TypeA, "NXDOMAIN"},
		{scout, `a\.vec1.acme.example.internal.`, dns.TypeA, "NXDOMAIN"},
		{scout, "acme.example.internal.", dns.TypeA, "NOERROR"},
		{scout, "acme.example.internal.", dns.TypeAXFR, "NOERROR"},
		{scout, "7.0.201.10.in-addr.arpa.", dns.TypePTR, "NOERROR, PTR vec1.acme.example.internal."},
		{scout, "7.0.201.10.in-addr.arpa.", dns.TypeA, "NOERROR"},
		{scout, "7.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.D.F.ip6.arpa.", dns.TypePTR, "NOERROR, PTR vec1.acme.example.internal."},
		{scout, "8.0.201.10.in-addr.arpa.", dns.TypePTR, "NXDOMAIN"},
		{scout, "8.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa.", dns.TypePTR, "NXDOMAIN"},
		{scout, "1.2.0.192.in-addr.arpa.", dns.TypePTR, "REFUSED"},
		{scout, "www.example.net.", dns.TypeA, "REFUSED"},
		{scout, ".", dns.TypeNS, "REFUSED"},
		{guest, "vec1.acme.example.internal.", dns.TypeA, "NXDOMAIN"},
		{guest, "7.0.201.10.in-addr.arpa.", dns.TypePTR, "NXDOMAIN"},
		{guest, "api.example.com.", dns.TypeA, "REFUSED"},
		{nobody, "vec1.acme.example.internal.", dns.TypeA, "REFUSED"},
		{nobody, "api.example.com.", dns.TypeA, "REFUSED"},
	} {
		if got := said(s.answer(t.Context(), tt.asker, new(dns.Msg).SetQuestion(tt.name, tt.kind))); got != tt.want {
			t.Errorf("%s asks %s %s: got %q, want %q", tt.asker, dns.TypeToString[tt.kind], tt.name, got, tt.want)
		}
	}
}

// What exists and is not to be known cannot be told from what does not exist.
func TestUnknowableAndAbsentAreAlike(t *testing.T) {
	s := New((&phonebook{}).options())
	ask := func(name string, kind uint16) *dns.Msg {
		q := new(dns.Msg).SetQuestion(name, kind)
		q.Id = 1
		m := s.answer(t.Context(), guest, q)
		m.Question[0].Name = ""
		return m
	}
	if diff := cmp.Diff(ask("nobody.acme.example.internal.", dns.TypeA), ask("vec1.acme.example.internal.", dns.TypeA)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(ask("9.9.201.10.in-addr.arpa.", dns.TypePTR), ask("7.0.201.10.in-addr.arpa.", dns.TypePTR)); diff != "" {
		t.Error(diff)
	}
}

func TestOddQueriesAreRefused(t *testing.T) {
	s := New((&phonebook{}).options())
	const name = "vec1.acme.example.internal."
	for want, change := range map[string]func(*dns.Msg){
		"NOTIMP":  func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate },
		"BADVERS": func(m *dns.Msg) { m.SetEdns0(udpAnswer, false).IsEdns0().SetVersion(1) },
		"NOERROR, A 10.201.0.7": func(m *dns.Msg) {
			m.SetEdns0(udpAnswer, true)
		},
	} {
		q := new(dns.Msg).SetQuestion(name, dns.TypeA)
		change(q)
		m := s.answer(t.Context(), scout, q)
		if got := said(m); got != want && !(want == "BADVERS" && m.Rcode == dns.RcodeBadVers) {
			t.Errorf("got %q, want %q", got, want)
		}
		if (q.IsEdns0() == nil) != (m.IsEdns0() == nil) {
			t.Errorf("%s: the answer has EDNS0 and the query not, or the other way", want)
		}
	}
	chaos := new(dns.Msg).SetQuestion("version.bind.", dns.TypeTXT)
	chaos.Question[0].Qclass = dns.ClassCHAOS
	none := new(dns.Msg).SetQuestion(name, dns.TypeA)
	none.Question = nil
	two := new(dns.Msg).SetQuestion(name, dns.TypeA)
	two.Question = append(two.Question, two.Question[0])
	for _, q := range []*dns.Msg{chaos, none, two} {
		if got := said(s.answer(t.Context(), scout, q)); got != "NOTIMP" {
			t.Errorf("%v: %q", q.Question, got)
		}
	}
}

// run runs a server at free addresses of scout and guest until the test ends.
func run(t *testing.T, o Options) (at netip.AddrPort) {
	t.Helper()
	at = freePort(t)
	o.Listen = []netip.AddrPort{at}
	s := New(o)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(time.Second):
			t.Error("it does not end with its context")
		}
	})
	waitServed(t, at)
	return at
}

// freePort is a port at which neither UDP nor TCP is served.
func freePort(t *testing.T) netip.AddrPort {
	t.Helper()
	for range 100 {
		l, err := net.Listen("tcp", netip.AddrPortFrom(scout, 0).String())
		if err != nil {
			t.Fatal(err)
		}
		at := l.Addr().(*net.TCPAddr).AddrPort()
		c, err := net.ListenPacket("udp", at.String())
		if err = errors.Join(err, l.Close()); err == nil {
			err = c.Close()
		}
		if err == nil {
			return at
		}
	}
	t.Fatal("no port is free")
	return netip.AddrPort{}
}

// waitServed waits until both UDP and TCP are answered.
func waitServed(t *testing.T, at netip.AddrPort) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for _, network := range []string{"udp", "tcp"} {
		for {
			_, err := exchangeFrom(scout, network, at, new(dns.Msg).SetQuestion("acme.example.internal.", dns.TypeSOA))
			if err == nil {
				break
			}
			if wait(ctx, 10*time.Millisecond); ctx.Err() != nil {
				t.Fatalf("%s at %s: %v", network, at, err)
			}
		}
	}
}

func exchangeFrom(asker netip.Addr, network string, at netip.AddrPort, q *dns.Msg) (*dns.Msg, error) {
	var local net.Addr = &net.UDPAddr{IP: asker.AsSlice()}
	if network == "tcp" {
		local = &net.TCPAddr{IP: asker.AsSlice()}
	}
	client := &dns.Client{Net: network, Timeout: 5 * time.Second, Dialer: &net.Dialer{LocalAddr: local}}
	m, _, err := client.Exchange(q, at.String())
	return m, err
}
