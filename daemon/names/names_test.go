package names

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
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
	refuse  error
}

var (
	scout = netip.MustParseAddr("127.0.0.2")
	guest = netip.MustParseAddr("127.0.0.3")
	vec1  = segment.Agent{Name: "vec1", Addresses: []netip.Addr{netip.MustParseAddr("10.201.0.7"), netip.MustParseAddr("fd00::7")}}
	self  = segment.Agent{Name: "scout", Addresses: []netip.Addr{scout}}
)

func (p *phonebook) Asker(a netip.Addr) (string, bool) {
	switch a {
	case scout:
		return "scout", true
	case guest:
		return "guest", true
	}
	return "", false
}

func (p *phonebook) Reach(agent string) []segment.Agent {
	if agent == "scout" {
		return []segment.Agent{self, vec1}
	}
	return nil
}

func (p *phonebook) Egress(agent, name string) bool {
	return agent == "scout" && (name == "api.example.com" || strings.HasSuffix(name, ".example.org"))
}

func (p *phonebook) Private(_ string, a netip.Addr) bool { return a == netip.MustParseAddr("10.9.9.9") }

func (p *phonebook) learn(_, name string, addrs []netip.Addr, _ time.Duration) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, a := range addrs {
		p.learned = append(p.learned, name+"="+a.String())
	}
	return p.refuse
}

// upstream is a DNS server that says what the test wants, until the test ends.
func upstream(t *testing.T, answers map[string][]string) netip.AddrPort {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &dns.Server{PacketConn: conn, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		records, ok := answers[dns.CanonicalName(q.Question[0].Name)]
		if !ok {
			m.Rcode = dns.RcodeNameError
		}
		for _, text := range records {
			rr, err := dns.NewRR(text)
			if err != nil {
				t.Error(err)
			}
			m.Answer = append(m.Answer, rr)
		}
		_ = w.WriteMsg(m)
	})}
	ended := make(chan error, 1)
	started := make(chan struct{})
	server.NotifyStartedFunc = func() { close(started) }
	go func() { ended <- server.ActivateAndServe() }()
	<-started
	t.Cleanup(func() {
		if err := errors.Join(server.Shutdown(), <-ended); err != nil {
			t.Error(err)
		}
	})
	return conn.LocalAddr().(*net.UDPAddr).AddrPort()
}

func newServer(t *testing.T, answers map[string][]string) (*Server, *phonebook) {
	p := &phonebook{}
	return New(Options{
		Mesh: "acme.example", Upstream: []netip.AddrPort{upstream(t, answers)}, Directory: p, Learn: p.learn, Logger: slog.New(slog.DiscardHandler),
	}), p
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
	s, _ := newServer(t, nil)
	for _, tt := range []struct {
		asker netip.Addr
		name  string
		kind  uint16
		want  string
	}{
		{scout, "vec1.acme.example.internal.", dns.TypeA, "NOERROR, A 10.201.0.7"},
		{scout, "VEC1.acme.EXAMPLE.internal.", dns.TypeAAAA, "NOERROR, AAAA fd00::7"},
		{scout, "vec1.acme.example.internal.", dns.TypeMX, "NOERROR"},
		{scout, "scout.acme.example.internal.", dns.TypeA, "NOERROR, A 127.0.0.2"},
		{scout, "vault.acme.example.internal.", dns.TypeA, "NXDOMAIN"},
		{scout, "nobody.acme.example.internal.", dns.TypeA, "NXDOMAIN"},
		{scout, "a.vec1.acme.example.internal.", dns.TypeA, "NXDOMAIN"},
		{scout, "acme.example.internal.", dns.TypeA, "NOERROR"},
		{scout, "7.0.201.10.in-addr.arpa.", dns.TypePTR, "NOERROR, PTR vec1.acme.example.internal."},
		{scout, "8.0.201.10.in-addr.arpa.", dns.TypePTR, "NXDOMAIN"},
		{scout, "www.example.net.", dns.TypeA, "REFUSED"},
		{guest, "vec1.acme.example.internal.", dns.TypeA, "NXDOMAIN"},
		{guest, "7.0.201.10.in-addr.arpa.", dns.TypePTR, "NXDOMAIN"},
		{guest, "api.example.com.", dns.TypeA, "REFUSED"},
		{netip.MustParseAddr("127.0.0.9"), "vec1.acme.example.internal.", dns.TypeA, "REFUSED"},
	} {
		if got := said(s.answer(t.Context(), tt.asker, new(dns.Msg).SetQuestion(tt.name, tt.kind))); got != tt.want {
			t.Errorf("%s asks %s %s: got %q, want %q", tt.asker, dns.TypeToString[tt.kind], tt.name, got, tt.want)
		}
	}
}

// What exists and is not to be known cannot be told from what does not exist.
func TestUnknowableAndAbsentAreAlike(t *testing.T) {
	s, _ := newServer(t, nil)
	ask := func(name string) *dns.Msg {
		q := new(dns.Msg).SetQuestion(name, dns.TypeA)
		q.Id = 1
		m := s.answer(t.Context(), guest, q)
		m.Question[0].Name = ""
		return m
	}
	if diff := cmp.Diff(ask("nobody.acme.example.internal."), ask("vec1.acme.example.internal.")); diff != "" {
		t.Error(diff)
	}
}

// A name that an egress list has leads to public addresses only, and only once the way there is open.
func TestEgressNamesOpenWhatTheyLeadTo(t *testing.T) {
	s, p := newServer(t, map[string][]string{
		"api.example.com.": {"api.example.com. 30 IN CNAME cdn.example.net.", "cdn.example.net. 60 IN A 192.0.2.10", "cdn.example.net. 60 IN A 192.0.2.11", "evil.example.net. 60 IN A 192.0.2.66"},
		"r.example.org.": {
			"r.example.org. 60 IN A 127.0.0.1", "r.example.org. 60 IN A 10.201.0.7", "r.example.org. 60 IN A 169.254.169.254", "r.example.org. 60 IN A 192.168.1.1",
			"r.example.org. 60 IN A 10.9.9.9",
		},
		"six.example.org.":  {"six.example.org. 60 IN AAAA ::ffff:169.254.169.254", "six.example.org. 60 IN AAAA fd00:ec2::254", "six.example.org. 60 IN AAAA 2002:7f00:1::1"},
		"loop.example.org.": {"loop.example.org. 60 IN CNAME loop.example.org."},
	})
	for _, tt := range []struct {
		name string
		kind uint16
		want string
	}{
		{"api.example.com.", dns.TypeA, "NOERROR, A 192.0.2.10, A 192.0.2.11"},
		{"api.example.com.", dns.TypeTXT, "NOERROR"},
		{"r.example.org.", dns.TypeA, "NOERROR, A 10.9.9.9"},
		{"six.example.org.", dns.TypeAAAA, "NOERROR"},
		{"loop.example.org.", dns.TypeA, "NOERROR"},
		{"gone.example.org.", dns.TypeA, "NXDOMAIN"},
		{"example.org.", dns.TypeA, "REFUSED"},
	} {
		if got := said(s.answer(t.Context(), scout, new(dns.Msg).SetQuestion(tt.name, tt.kind))); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
	want := []string{"api.example.com=192.0.2.10", "api.example.com=192.0.2.11", "r.example.org=10.9.9.9"}
	slices.Sort(p.learned)
	if diff := cmp.Diff(want, p.learned); diff != "" {
		t.Errorf("learned (-want +got):\n%s", diff)
	}
	p.refuse = errors.New("no room")
	if got := said(s.answer(t.Context(), scout, new(dns.Msg).SetQuestion("api.example.com.", dns.TypeA))); got != "SERVFAIL" {
		t.Errorf("an answer whose way is not open: %q", got)
	}
}

// Over real sockets, UDP and TCP, also at an address that comes later.
func TestServesOverUDPAndTCP(t *testing.T) {
	p := &phonebook{}
	ctx, cancel := context.WithCancel(t.Context())
	l, err := net.Listen("tcp", "127.0.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	at := l.Addr().(*net.TCPAddr).AddrPort()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	s := New(Options{Mesh: "acme.example", Listen: []netip.AddrPort{at}, Directory: p, Learn: p.learn, Logger: slog.New(slog.DiscardHandler)})
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	for _, network := range []string{"udp", "tcp"} {
		client := &dns.Client{Net: network, Timeout: time.Second, Dialer: &net.Dialer{LocalAddr: localOf(network)}}
		var m *dns.Msg
		err := errors.New("not asked")
		for tries := 0; err != nil && tries < 50; tries++ { // it serves in a moment
			m, _, err = client.Exchange(new(dns.Msg).SetQuestion("vec1.acme.example.internal.", dns.TypeA), at.String())
		}
		if err != nil {
			t.Fatalf("%s: %v", network, err)
		}
		if got := said(m); got != "NOERROR, A 10.201.0.7" {
			t.Errorf("%s: %q", network, got)
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func localOf(network string) net.Addr {
	if network == "udp" {
		return &net.UDPAddr{IP: scout.AsSlice()}
	}
	return &net.TCPAddr{IP: scout.AsSlice()}
}

// Whatever comes as a query, the answer can be packed, is to that query, and tells nobody more than he may know.
func FuzzAnswer(f *testing.F) {
	for _, name := range []string{"vec1.acme.example.internal.", "7.0.201.10.in-addr.arpa.", "www.example.net.", "."} {
		packed, err := new(dns.Msg).SetQuestion(name, dns.TypeA).Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(packed)
	}
	s := New(Options{Mesh: "acme.example", Directory: closed{}, Logger: slog.New(slog.DiscardHandler)})
	f.Fuzz(func(t *testing.T, raw []byte) {
		q := new(dns.Msg)
		if q.Unpack(raw) != nil {
			return
		}
		m := s.answer(t.Context(), guest, q)
		if m.Id != q.Id || !m.Response {
			t.Errorf("the answer is to another query: %v", m)
		}
		if len(m.Answer) > 0 {
			t.Errorf("one who may know nothing hears %v", m.Answer)
		}
		if _, err := m.Pack(); err != nil && len(q.Question) <= 1 {
			t.Errorf("%v: %v", m, err)
		}
	})
}

// closed is a directory with nothing in it.
type closed struct{}

func (closed) Asker(netip.Addr) (string, bool) { return "guest", true }
func (closed) Reach(string) []segment.Agent    { return nil }
func (closed) Egress(string, string) bool      { return false }
func (closed) Private(string, netip.Addr) bool { return false }

// What systemd-resolved is told has the types of its interface: a(iay) and a(sb).
func TestResolvedIsToldInItsTypes(t *testing.T) {
	servers := linkServers([]netip.AddrPort{netip.MustParseAddrPort("10.201.0.53:53"), netip.MustParseAddrPort("[fd00::35]:53")})
	if got := dbus.SignatureOf(servers).String(); got != "a(iay)" {
		t.Errorf("servers are %s", got)
	}
	domains := linkDomains("acme.example.internal.")
	if got := dbus.SignatureOf(domains).String(); got != "a(sb)" || domains[0].Name != "acme.example.internal" || !domains[0].Routing {
		t.Errorf("domains are %s: %v", got, domains)
	}
	if servers[0].Family != 2 || len(servers[0].Address) != 4 || servers[1].Family != 10 || len(servers[1].Address) != 16 {
		t.Errorf("got %v", servers)
	}
}
