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
	minTTL    = 5
	maxTTL    = 3600
	maxAddrs  = 32 // of one name
	maxChain  = 8  // of aliases
)

var errMismatch = errors.New("the answer is to another question")

// resolve asks the servers in turn for the addresses of a name. ttl is in seconds.
func (s *Server) resolve(ctx context.Context, name string, kind uint16) (addrs []netip.Addr, ttl uint32, code int, err error) {
	servers := s.options.Upstream
	if len(servers) == 0 {
		if servers, err = systemServers(s.options.Listen); err != nil {
			return nil, 0, 0, err
		}
	}
	var faults []error
	for _, server := range servers {
		answer, err := exchange(ctx, server, name, kind)
		if err != nil {
			faults = append(faults, fmt.Errorf("server %s: %w", server, err))
			continue
		}
		addrs, ttl := flatten(answer, name, kind)
		return addrs, ttl, answer.Rcode, nil
	}
	return nil, 0, 0, errors.Join(faults...)
}

// exchange asks one server, over TCP if the answer does not fit UDP. The letters' case is random, and has to come back:
// one more thing that a forger off the path would have to guess.
func exchange(ctx context.Context, server netip.AddrPort, name string, kind uint16) (*dns.Msg, error) {
	query := new(dns.Msg).SetQuestion(randomCase(name), kind)
	query.SetEdns0(udpAnswer, false)
	for _, network := range []string{"udp", "tcp"} {
		client := &dns.Client{Net: network, Timeout: perServer, UDPSize: udpAnswer}
		answer, _, err := client.ExchangeContext(ctx, query, server.String())
		if err != nil {
			return nil, err
		}
		if answer.Id != query.Id || len(answer.Question) != 1 || answer.Question[0] != query.Question[0] || !answer.Response {
			return nil, errMismatch
		}
		if answer.Truncated && network == "udp" {
			continue
		}
		if answer.Rcode != dns.RcodeSuccess && answer.Rcode != dns.RcodeNameError {
			return nil, fmt.Errorf("it says %s", dns.RcodeToString[answer.Rcode])
		}
		return answer, nil
	}
	return nil, errors.New("the answer is too long")
}

func randomCase(name string) string {
	coins := []byte(rand.Text() + rand.Text() + rand.Text())
	i := 0
	return strings.Map(func(r rune) rune {
		i++
		if coins[i%len(coins)]&1 == 1 {
			return unicode.ToUpper(r)
		}
		return r
	}, name)
}

// flatten follows the aliases of an answer from name on, and returns the addresses at their end and the shortest life of
// all records that led there.
func flatten(answer *dns.Msg, name string, kind uint16) (addrs []netip.Addr, ttl uint32) {
	ttl = maxTTL
	at := dns.CanonicalName(name)
	for range maxChain {
		next := ""
		for _, rr := range answer.Answer {
			h := rr.Header()
			if dns.CanonicalName(h.Name) != at || h.Class != dns.ClassINET {
				continue
			}
			if alias, ok := rr.(*dns.CNAME); ok {
				next, ttl = dns.CanonicalName(alias.Target), min(ttl, h.Ttl)
			}
			if addr, ok := addressOf(rr, kind); ok && !slices.Contains(addrs, addr) && len(addrs) < maxAddrs {
				addrs, ttl = append(addrs, addr), min(ttl, h.Ttl)
			}
		}
		if len(addrs) > 0 || next == "" {
			break
		}
		at = next
	}
	return addrs, max(ttl, minTTL)
}

func addressOf(rr dns.RR, kind uint16) (netip.Addr, bool) {
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
