package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const egressPolicy = `
segments:
  - name: planners
    match: {function: plan, sensitivity: internal}
    egress: none
  - name: retrievers
    match: {function: retrieval, sensitivity: internal}
    egress:
      - {to: 192.168.77.3/32, allow: [tcp/8001]}
      - {to: api.example.com, allow: [tcp/8002]}
      - {to: "*.rebind.example", allow: [tcp/8002]}
  - name: clerks
    match: {function: clerk, sensitivity: public}
rules: []
`

// zone is a DNS server that gives each name the addresses that it has now.
type zone struct {
	mu    sync.Mutex
	names map[string][]netip.Addr
}

func (z *zone) set(name string, addrs ...netip.Addr) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.names[name] = addrs
}

// serve answers queries for A records on a host until the socket closes.
func (z *zone) serve(conn net.PacketConn) {
	buf := make([]byte, 1500)
	for {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			return
		}
		var query dnsmessage.Message
		if query.Unpack(buf[:n]) != nil || len(query.Questions) != 1 {
			continue
		}
		q := query.Questions[0]
		answer := dnsmessage.Message{Header: dnsmessage.Header{ID: query.ID, Response: true, RecursionAvailable: true}, Questions: query.Questions}
		z.mu.Lock()
		for _, a := range z.names[strings.ToLower(strings.TrimSuffix(q.Name.String(), "."))] {
			if q.Type == dnsmessage.TypeA {
				answer.Answers = append(answer.Answers, dnsmessage.Resource{
					Header: dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: 5}, Body: &dnsmessage.AResource{A: a.As4()},
				})
			}
		}
		z.mu.Unlock()
		if packed, err := answer.Pack(); err == nil {
			_, _ = conn.WriteTo(packed, from)
		}
	}
}

// Outside the overlay an agent reaches what its segment says: by address, and by name for as long as the name leads there.
// The rest of the host is untouched.
func TestEgressIsGuarded(t *testing.T) {
	m := newTestMesh(t, Spec{}, Spec{Config: "dnsUpstream: [\"192.168.77.3:5353\"]\n"}, Spec{})
	outside := m.Hosts[2]
	c := newCrew(t, m)
	if err := outside.ns.ip("addr add 169.254.169.254/32 dev eth0", "addr add 198.51.100.7/32 dev eth0", "addr add 198.51.100.8/32 dev eth0"); err != nil {
		t.Fatal(err)
	}
	for _, to := range []string{"169.254.169.254/32", "198.51.100.0/24"} {
		if err := c.node.Route(netip.MustParsePrefix(to), outside.Addresses()[0]); err != nil {
			t.Fatal(err)
		}
	}
	far, other, metadata := netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("198.51.100.8"), netip.MustParseAddr("169.254.169.254")
	listed := outside.Addresses()[0]
	server, err := outside.Serve([]netip.Addr{listed, far, other, metadata}, 8001, 8002)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	z := &zone{names: map[string][]netip.Addr{}}
	err = outside.Do(func() error {
		conn, err := net.ListenPacket("udp", "192.168.77.3:5353")
		if err != nil {
			return err
		}
		var serving sync.WaitGroup
		serving.Go(func() { z.serve(conn) })
		t.Cleanup(func() {
			_ = conn.Close()
			serving.Wait()
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	retriever, planner, clerk := c.actors["retriever1"], c.actors["planner1"], c.actors["clerk1"]
	reaches := func(a *Actor, to netip.Addr, port uint16, want bool) {
		t.Helper()
		r, err := a.Tell(Order{Do: "ask", Network: "tcp", Remote: netip.AddrPortFrom(to, port).String()})
		if err != nil || (r.Error == "") != want {
			t.Errorf("%s/%d: %+v, %v; want %v", to, port, r, err, want)
		}
	}
	for _, a := range []*Actor{retriever, planner, clerk, c.stranger} {
		reaches(a, far, 8001, true) // before there is a guard
	}
	open := Order{Do: "hold", Network: "tcp", Remote: netip.AddrPortFrom(far, 8001).String()}
	for _, a := range []*Actor{planner, c.stranger} {
		if _, err := a.Do(open); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.Apply(t.Context(), egressPolicy); err != nil {
		t.Fatal(err)
	}
	if r, err := planner.Tell(Order{Do: "say"}); err != nil || r.Error == "" {
		t.Errorf("a connection that the guard forbids goes on: %+v, %v", r, err)
	}
	if _, err := c.stranger.Do(Order{Do: "say"}); err != nil {
		t.Errorf("a connection of another program has ended: %v", err)
	}
	t.Run("addresses", func(t *testing.T) {
		reaches(retriever, listed, 8001, true)
		reaches(retriever, listed, 8002, false)
		reaches(retriever, far, 8001, false)
		reaches(retriever, far, 8002, false)
		reaches(planner, listed, 8001, false)
		reaches(clerk, far, 8001, true)
		reaches(c.stranger, far, 8001, true)
		for _, a := range []*Actor{retriever, planner, clerk} {
			reaches(a, metadata, 8001, false)
		}
		reaches(c.stranger, metadata, 8001, true)
	})
	t.Run("names", func(t *testing.T) {
		z.set("api.example.com", far)
		// The agent asks a server of its own choice, and hears this host's resolver.
		lookup := func(a *Actor, name string) Reply {
			t.Helper()
			r, err := a.Tell(Order{Do: "lookup", Remote: name, Server: "192.0.2.53:53"})
			if err != nil {
				t.Fatal(err)
			}
			return r
		}
		if r := lookup(planner, "api.example.com"); r.Error == "" {
			t.Errorf("an agent without a list hears %+v", r)
		}
		if r := lookup(retriever, "www.example.com"); r.Error == "" {
			t.Errorf("a name that is not in the list is %+v", r)
		}
		if r := lookup(retriever, "api.example.com"); r.Error != "" || len(r.Names) != 1 || r.Names[0] != far.String() {
			t.Fatalf("got %+v", r)
		}
		reaches(retriever, far, 8002, true)
		reaches(retriever, far, 8001, false)
		reaches(planner, far, 8002, false)
		// The name leads elsewhere: the old address closes when its time is over.
		z.set("api.example.com", other)
		if r := lookup(retriever, "api.example.com"); r.Error != "" || len(r.Names) != 1 || r.Names[0] != other.String() {
			t.Fatalf("got %+v", r)
		}
		reaches(retriever, other, 8002, true)
		err := Eventually(t.Context(), 20*time.Second, func() error {
			r, err := retriever.Tell(Order{Do: "ask", Network: "tcp", Remote: netip.AddrPortFrom(far, 8002).String()})
			if err == nil && r.Error == "" {
				err = fmt.Errorf("%s is still open", far)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	})
	t.Run("withdrawal", func(t *testing.T) {
		z.set("api.example.com", other)
		if r, err := retriever.Tell(Order{Do: "lookup", Remote: "api.example.com", Server: "192.0.2.53:53"}); err != nil || r.Error != "" {
			t.Fatal(r, err)
		}
		if _, err := retriever.Do(Order{Do: "hold", Network: "tcp", Remote: netip.AddrPortFrom(other, 8002).String()}); err != nil {
			t.Fatal(err)
		}
		if err := m.Apply(t.Context(), strings.Replace(egressPolicy, "{to: api.example.com,", "{to: www.example.com,", 1)); err != nil {
			t.Fatal(err)
		}
		err := Eventually(t.Context(), time.Second, func() error {
			r, err := retriever.Tell(Order{Do: "say"})
			if err == nil && r.Error == "" {
				err = errors.New("a connection to what a withdrawn name led to goes on")
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
		reaches(retriever, other, 8002, false)
	})
	t.Run("rebinding", func(t *testing.T) {
		inner := c.agents["planner1"].Addresses[0]
		for i, to := range []netip.Addr{netip.MustParseAddr("127.0.0.1"), metadata, inner, netip.MustParseAddr("192.168.77.2")} {
			name := fmt.Sprintf("n%d.rebind.example", i)
			z.set(name, to)
			r, err := retriever.Tell(Order{Do: "lookup", Remote: name, Server: "192.0.2.53:53"})
			if err != nil || r.Error == "" || len(r.Names) > 0 {
				t.Errorf("a name that leads to %s: %+v, %v", to, r, err)
			}
		}
	})
}
