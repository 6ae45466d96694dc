package names

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/miekg/dns"
)

const (
	perServer = 2 * time.Second
	minTTL    = 5    // seconds
	maxTTL    = 3600 // seconds
	maxAddrs  = 32   // of one name
	maxChain  = 8    // of aliases
)

var (
	errMismatch  = errors.New("the answer is to another question")
	errTruncated = errors.New("the answer is too long")
)

// found is what a name was resolved to.
type found struct {
	addrs []netip.Addr
	ttl   uint32 // seconds
	code  int
}

// resolve asks for the addresses of a name, and of its alias if the server does not say where that leads.
func (s *Server) resolve(ctx context.Context, name string, kind uint16) (found, error) {
	result := found{ttl: maxTTL}
	for range maxChain {
		answer, err := s.ask(ctx, name, kind)
		if err != nil {
			return found{}, err
		}
		addrs, end, ttl := flatten(answer, name, kind)
		result.addrs, result.ttl, result.code = addrs, min(result.ttl, ttl), answer.Rcode
		looked := slices.ContainsFunc(answer.Ns, func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeSOA })
		if len(addrs) > 0 || end == name || looked || answer.Rcode != dns.RcodeSuccess || s.ours(end) || !plain(end) {
			break
		}
		name = end
	}
	result.ttl = max(result.ttl, minTTL)
	return result, nil
}

// ask asks the servers in turn.
func (s *Server) ask(ctx context.Context, name string, kind uint16) (*dns.Msg, error) {
	servers := *s.upstream.Load()
	if len(servers) == 0 {
		var err error
		if servers, err = systemServers("/etc/resolv.conf", s.options.Listen); err != nil {
			return nil, err
		}
	}
	var faults []error
	for _, server := range servers {
		answer, err := exchange(ctx, server, name, kind)
		if err == nil {
			return answer, nil
		}
		faults = append(faults, fmt.Errorf("server %s: %w", server, err))
	}
	return nil, errors.Join(faults...)
}

// exchange asks one server, and again over TCP if the answer does not fit UDP or looks forged. The letters' case is random,
// and has to come back over UDP: one more thing that a forger off the path would have to guess.
func exchange(ctx context.Context, server netip.AddrPort, name string, kind uint16) (*dns.Msg, error) {
	query := new(dns.Msg).SetQuestion(randomCase(name), kind)
	query.SetEdns0(udpAnswer, false)
	answer, err := exchangeOver(ctx, "udp", server, query)
	if errors.Is(err, errMismatch) || errors.Is(err, errTruncated) {
		answer, err = exchangeOver(ctx, "tcp", server, query)
	}
	return answer, err
}

func exchangeOver(ctx context.Context, network string, server netip.AddrPort, query *dns.Msg) (*dns.Msg, error) {
	client := &dns.Client{Net: network, Timeout: perServer, UDPSize: udpAnswer}
	conn, err := client.DialContext(ctx, server.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })() // its reads have deadlines only
	answer, _, err := client.ExchangeWithConnContext(ctx, query, conn)
	if err != nil {
		return nil, err
	}
	if !answer.Response || answer.Id != query.Id || len(answer.Question) != 1 {
		return nil, errMismatch
	}
	got, want := answer.Question[0], query.Question[0]
	if network == "tcp" { // not every server keeps the case
		got.Name, want.Name = dns.CanonicalName(got.Name), dns.CanonicalName(want.Name)
	}
	switch {
	case got != want:
		return nil, errMismatch
	case answer.Truncated:
		return nil, errTruncated
	case answer.Rcode != dns.RcodeSuccess && answer.Rcode != dns.RcodeNameError:
		return nil, fmt.Errorf("it says %s", dns.RcodeToString[answer.Rcode])
	}
	return answer, nil
}

func randomCase(name string) string {
	coins := rand.Text() + rand.Text() + rand.Text()
	i := 0
	return strings.Map(func(r rune) rune {
		i++
		if coins[i%len(coins)]&1 == 1 {
			return unicode.ToUpper(r)
		}
		return r
	}, name)
}

// flatten follows the aliases of an answer from name on, and returns the addresses at their end, that end, and the shortest
// life of all records that led there.
func flatten(answer *dns.Msg, name string, kind uint16) (addrs []netip.Addr, end string, ttl uint32) {
	end, ttl = dns.CanonicalName(name), maxTTL
	for range maxChain {
		next := ""
		for _, rr := range answer.Answer {
			h := rr.Header()
			if dns.CanonicalName(h.Name) != end || h.Class != dns.ClassINET {
				continue
			}
			if alias, ok := rr.(*dns.CNAME); ok {
				next, ttl = dns.CanonicalName(alias.Target), min(ttl, h.Ttl)
			}
			if addr, ok := addressIn(rr, kind); ok && !slices.Contains(addrs, addr) && len(addrs) < maxAddrs {
				addrs, ttl = append(addrs, addr), min(ttl, h.Ttl)
			}
		}
		if len(addrs) > 0 || next == "" {
			break
		}
		end = next
	}
	return addrs, end, ttl
}

func addressIn(rr dns.RR, kind uint16) (netip.Addr, bool) {
	switch rr := rr.(type) {
	case *dns.A:
		addr, ok := netip.AddrFromSlice(rr.A)
		return addr.Unmap(), ok && kind == dns.TypeA
	case *dns.AAAA:
		addr, ok := netip.AddrFromSlice(rr.AAAA)
		return addr, ok && kind == dns.TypeAAAA
	}
	return netip.Addr{}, false
}

// systemServers are those of a resolv.conf that are not ours.
func systemServers(file string, ours []netip.AddrPort) ([]netip.AddrPort, error) {
	config, err := dns.ClientConfigFromFile(file)
	if err != nil {
		return nil, fmt.Errorf("read upstream servers: %w", err)
	}
	var out []netip.AddrPort
	for _, server := range config.Servers {
		addr, err := netip.ParseAddr(server)
		if err != nil || slices.ContainsFunc(ours, func(own netip.AddrPort) bool { return own.Addr() == addr }) {
			continue
		}
		out = append(out, netip.AddrPortFrom(addr, 53))
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("read upstream servers: %s names none (fix: set dnsUpstream)", file)
	}
	return out, nil
}
