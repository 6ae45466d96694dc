package names

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

// upstream is a DNS server over UDP and TCP that says what the test wants, until the test ends.
func upstream(t *testing.T, say func(*dns.Msg) *dns.Msg) netip.AddrPort {
	t.Helper()
	at := freePort(t)
	conn, err := net.ListenPacket("udp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	for _, server := range []*dns.Server{{PacketConn: conn}, {Listener: listener}} {
		server.Handler = dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
			m := say(q)
			if _, udp := w.RemoteAddr().(*net.UDPAddr); udp {
				m.Truncate(dns.MinMsgSize)
			}
			_ = w.WriteMsg(m)
		})
		ended, started := make(chan error, 1), make(chan struct{})
		server.NotifyStartedFunc = func() { close(started) }
		go func() { ended <- server.ActivateAndServe() }()
		<-started
		t.Cleanup(func() {
			if err := errors.Join(server.Shutdown(), <-ended); err != nil {
				t.Error(err)
			}
		})
	}
	return at
}

// zoneOf says what a map of names has, whole, whatever is asked about a name.
func zoneOf(t *testing.T, records map[string][]string) func(*dns.Msg) *dns.Msg {
	return func(q *dns.Msg) *dns.Msg {
		m := new(dns.Msg).SetReply(q)
		texts, ok := records[dns.CanonicalName(q.Question[0].Name)]
		if !ok {
			m.Rcode = dns.RcodeNameError
		}
		for _, text := range texts {
			rr, err := dns.NewRR(text)
			if err != nil {
				t.Error(err)
			}
			m.Answer = append(m.Answer, rr)
		}
		return m
	}
}

func askUpstream(t *testing.T, say func(*dns.Msg) *dns.Msg) (*Server, *phonebook) {
	t.Helper()
	p := &phonebook{}
	o := p.options()
	o.Upstream = []netip.AddrPort{upstream(t, say)}
	return New(o), p
}

// ask is what scout hears.
func ask(t *testing.T, s *Server, name string, kind uint16) string {
	t.Helper()
	return said(s.answer(t.Context(), scout, new(dns.Msg).SetQuestion(name, kind)))
}

// A name that an egress list has leads where it may only, and only once the way there is open.
func TestEgressNamesOpenWhatTheyLeadTo(t *testing.T) {
	s, p := askUpstream(t, zoneOf(t, map[string][]string{
		"api.example.com.": {"api.example.com. 30 IN CNAME cdn.example.net.", "cdn.example.net. 60 IN A 192.0.2.10", "cdn.example.net. 60 IN A 192.0.2.11", "evil.example.net. 60 IN A 192.0.2.66"},
		"six.example.org.": {"six.example.org. 60 IN AAAA 2001:db8::1", "six.example.org. 60 IN A 192.0.2.1"},
		"www.example.net.": {"www.example.net. 60 IN A 192.0.2.1"}, "example.org.": {"example.org. 60 IN A 192.0.2.1"},
	}))
	for _, tt := range []struct {
		name string
		kind uint16
		want string
	}{
		{"api.example.com.", dns.TypeA, "NOERROR, A 192.0.2.10, A 192.0.2.11"},
		{"API.example.COM.", dns.TypeA, "NOERROR, A 192.0.2.10, A 192.0.2.11"},
		{"api.example.com.", dns.TypeTXT, "NOERROR"},
		{"api.example.com.", dns.TypeHTTPS, "NOERROR"},
		{"api.example.com.", dns.TypeANY, "NOERROR"},
		{"six.example.org.", dns.TypeAAAA, "NOERROR, AAAA 2001:db8::1"},
		{"gone.example.org.", dns.TypeA, "NXDOMAIN"},
		{"www.example.net.", dns.TypeA, "REFUSED"},
		{"example.org.", dns.TypeA, "REFUSED"},
		{`www\.example.org.`, dns.TypeA, "REFUSED"}, // the label "www.example" right below org
		{`www\009.example.org.`, dns.TypeA, "REFUSED"},
	} {
		if got := ask(t, s, tt.name, tt.kind); got != tt.want {
			t.Errorf("%s %s: got %q, want %q", tt.name, dns.TypeToString[tt.kind], got, tt.want)
		}
	}
	slices.Sort(p.learned)
	want := []string{"api.example.com=192.0.2.10", "api.example.com=192.0.2.11", "six.example.org=2001:db8::1"}
	if diff := cmp.Diff(want, slices.Compact(p.learned)); diff != "" {
		t.Errorf("learned (-want +got):\n%s", diff)
	}
	p.refuse = errors.New("no room")
	if got := ask(t, s, "api.example.com.", dns.TypeA); got != "SERVFAIL" {
		t.Errorf("an answer whose way is not open: %q", got)
	}
}

// DNS rebinding: whoever has a listed name points it at what only the host can reach. The agent's list has 10.0.0.0/8 and,
// by number, loopback and links.
func TestNamesDoNotLeadInside(t *testing.T) {
	for _, tt := range []struct {
		addr string
		may  bool
	}{
		{"192.0.2.1", true}, {"2001:db8::1", true}, {"9.9.9.9", true}, {"10.9.9.9", true}, // the last as listed
		{"10.201.0.7", false}, {"10.201.255.255", false}, {"fd00::7", false}, // overlay, though 10.0.0.0/8 is listed
		{"127.0.0.1", false}, {"127.255.255.255", false}, {"0.0.0.0", false}, {"::1", false}, {"::", false}, {"::127.0.0.1", false},
		{"169.254.169.254", false}, {"169.254.0.1", false}, {"fd00:ec2::254", false}, {"fe80::1", false}, {"100.100.100.200", false}, {"168.63.129.16", false},
		{"192.168.1.1", false}, {"172.16.0.1", false}, {"172.31.255.255", false}, {"100.64.0.1", false}, {"198.18.0.1", false}, {"192.0.0.192", false},
		{"fd12::1", false}, {"fec0::1", false}, {"224.0.0.1", false}, {"255.255.255.255", false}, {"ff02::1", false}, {"240.0.0.1", false},
		{"::ffff:127.0.0.1", false}, {"::ffff:169.254.169.254", false}, {"::ffff:192.0.2.1", false}, {"::ffff:10.9.9.9", false},
		{"64:ff9b::7f00:1", false}, {"2002:7f00:1::1", false}, {"2001:0:7f00:1::1", false},
	} {
		kind, rr := dns.TypeA, "r.example.org. 60 IN A "+tt.addr
		if strings.Contains(tt.addr, ":") {
			kind, rr = dns.TypeAAAA, "r.example.org. 60 IN AAAA "+tt.addr
		}
		good := address("r.example.org.", netip.MustParseAddr("198.51.100.1"), 60)
		if kind == dns.TypeAAAA {
			good = address("r.example.org.", netip.MustParseAddr("2001:db8::99"), 60)
		}
		s, p := askUpstream(t, zoneOf(t, map[string][]string{"r.example.org.": {rr, good.String()}, "only.example.org.": {strings.Replace(rr, "r.", "only.", 1)}}))
		if got := ask(t, s, "r.example.org.", kind); strings.Contains(got, " "+tt.addr+",") != tt.may || !strings.HasPrefix(got, "NOERROR, ") {
			t.Errorf("%s: %q", tt.addr, got)
		}
		if got := ask(t, s, "only.example.org.", kind); (got == "NOERROR") == tt.may {
			t.Errorf("%s alone: %q", tt.addr, got)
		}
		for _, learned := range p.learned {
			if strings.HasSuffix(learned, "="+tt.addr) && !tt.may {
				t.Errorf("the way is open: %s", learned)
			}
		}
	}
}

// Rebinding in time: a name that first leads outside and then inside keeps leading nowhere but outside.
func TestNameThatTurnsInside(t *testing.T) {
	var mu sync.Mutex
	answers := []string{"192.0.2.1", "127.0.0.1"}
	s, p := askUpstream(t, func(q *dns.Msg) *dns.Msg {
		mu.Lock()
		defer mu.Unlock()
		m := new(dns.Msg).SetReply(q)
		m.Answer = []dns.RR{address(q.Question[0].Name, netip.MustParseAddr(answers[0]), 0)}
		answers = answers[1:]
		return m
	})
	first, second := ask(t, s, "r.example.org.", dns.TypeA), ask(t, s, "r.example.org.", dns.TypeA)
	if first != "NOERROR, A 192.0.2.1" || second != "NOERROR" {
		t.Errorf("got %q, then %q", first, second)
	}
	if diff := cmp.Diff([]string{"r.example.org=192.0.2.1"}, p.learned); diff != "" {
		t.Error(diff)
	}
}

func TestLifeOfAnAnswer(t *testing.T) {
	s, p := askUpstream(t, zoneOf(t, map[string][]string{
		"short.example.org.": {"short.example.org. 0 IN A 192.0.2.1"}, "long.example.org.": {"long.example.org. 604800 IN A 192.0.2.2"},
		"alias.example.org.": {"alias.example.org. 40 IN CNAME to.example.net.", "to.example.net. 600 IN A 192.0.2.3"},
		"mixed.example.org.": {"mixed.example.org. 300 IN A 192.0.2.4", "mixed.example.org. 200 IN A 192.0.2.5"},
	}))
	for _, tt := range []struct {
		name string
		ttl  uint32
	}{{"short", minTTL}, {"long", maxTTL}, {"alias", 40}, {"mixed", 200}} {
		m := s.answer(t.Context(), scout, new(dns.Msg).SetQuestion(tt.name+".example.org.", dns.TypeA))
		if len(m.Answer) == 0 || m.Answer[0].Header().Ttl != tt.ttl {
			t.Errorf("%s: %v, want %d s", tt.name, m.Answer, tt.ttl)
		}
		if got, want := p.lives[len(p.lives)-1], time.Duration(tt.ttl)*time.Second+grace; got != want {
			t.Errorf("%s stays open for %v, want %v", tt.name, got, want)
		}
	}
}

// Aliases are followed to their end, also where the server leaves that to the asker; never into the mesh's names.
func TestAliasesAreFollowed(t *testing.T) {
	var mu sync.Mutex
	asked := map[string]bool{}
	zone := zoneOf(t, map[string][]string{
		"a.example.org.": {"a.example.org. 60 IN CNAME b.example.net."}, "b.example.net.": {"b.example.net. 20 IN CNAME c.example.net."}, "c.example.net.": {"c.example.net. 60 IN A 192.0.2.1"},
		"self.example.org.": {"self.example.org. 60 IN CNAME self.example.org."},
		"ping.example.org.": {"ping.example.org. 60 IN CNAME pong.example.org."}, "pong.example.org.": {"pong.example.org. 60 IN CNAME ping.example.org."},
		"mesh.example.org.": {"mesh.example.org. 60 IN CNAME vault.acme.example.internal."}, "vault.acme.example.internal.": {"vault.acme.example.internal. 60 IN A 192.0.2.66"},
		"dead.example.org.": {"dead.example.org. 60 IN CNAME gone.example.net."},
		"in.example.org.":   {"in.example.org. 60 IN CNAME home.example.net.", "home.example.net. 60 IN A 192.168.0.1"},
	})
	s, _ := askUpstream(t, func(q *dns.Msg) *dns.Msg {
		mu.Lock()
		defer mu.Unlock()
		asked[dns.CanonicalName(q.Question[0].Name)] = true
		return zone(q)
	})
	for name, want := range map[string]string{
		"a": "NOERROR, A 192.0.2.1", "self": "NOERROR", "ping": "NOERROR", "mesh": "NOERROR", "dead": "NXDOMAIN", "in": "NOERROR",
	} {
		if got := ask(t, s, name+".example.org.", dns.TypeA); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if asked["vault.acme.example.internal."] {
		t.Error("a stranger was asked for a name of the mesh")
	}
}

// An answer over UDP whose letters' case did not come back may be forged: what TCP says counts.
func TestForgedAnswersAreNotBelieved(t *testing.T) {
	var mu sync.Mutex
	spellings := map[string]bool{}
	s, p := askUpstream(t, func(q *dns.Msg) *dns.Msg {
		mu.Lock()
		defer mu.Unlock()
		name := q.Question[0].Name
		m := new(dns.Msg).SetReply(q)
		if !spellings[name] { // the first with this spelling is over UDP
			spellings[name] = true
			m.Question[0].Name = strings.ToLower(name) + "x."
			m.Answer = []dns.RR{address(name, netip.MustParseAddr("203.0.113.66"), 60)}
			return m
		}
		m.Question[0].Name = strings.ToLower(name) // as servers do that do not keep the case
		m.Answer = []dns.RR{address(strings.ToLower(name), netip.MustParseAddr("192.0.2.1"), 60)}
		return m
	})
	for range 5 {
		if got := ask(t, s, "some.long.name.example.org.", dns.TypeA); got != "NOERROR, A 192.0.2.1" {
			t.Errorf("got %q", got)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if len(spellings) < 4 || slices.Contains(p.learned, "some.long.name.example.org=203.0.113.66") {
		t.Errorf("spelled %v, learned %v", spellings, p.learned)
	}
}

// A server that does not answer, or says that it cannot, is passed over; a new list counts from the next query on.
func TestUpstreamsStandInForEachOther(t *testing.T) {
	good := upstream(t, zoneOf(t, map[string][]string{"a.example.org.": {"a.example.org. 60 IN A 192.0.2.1"}}))
	bad := upstream(t, func(q *dns.Msg) *dns.Msg { return new(dns.Msg).SetRcode(q, dns.RcodeServerFailure) })
	o := (&phonebook{}).options()
	o.Upstream = []netip.AddrPort{bad}
	s := New(o)
	if got := ask(t, s, "a.example.org.", dns.TypeA); got != "SERVFAIL" {
		t.Errorf("got %q", got)
	}
	s.SetUpstream([]netip.AddrPort{freePort(t), bad, good})
	if got := ask(t, s, "a.example.org.", dns.TypeA); got != "NOERROR, A 192.0.2.1" {
		t.Errorf("got %q", got)
	}
}

func TestSystemServers(t *testing.T) {
	file := filepath.Join(t.TempDir(), "resolv.conf")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	ours := []netip.AddrPort{netip.MustParseAddrPort("10.201.0.53:53")}
	write("nameserver 10.201.0.53\nnameserver 192.0.2.53\nnameserver 2001:db8::53\nnameserver nonsense\n")
	got, err := systemServers(file, ours)
	if err != nil {
		t.Fatal(err)
	}
	if want := []netip.AddrPort{netip.MustParseAddrPort("192.0.2.53:53"), netip.MustParseAddrPort("[2001:db8::53]:53")}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	write("nameserver 10.201.0.53\n")
	if _, err := systemServers(file, ours); err == nil || !strings.Contains(err.Error(), "set dnsUpstream") {
		t.Errorf("only ourselves: %v", err)
	}
	if _, err := systemServers(file+"x", ours); err == nil {
		t.Error("no file")
	}
}
