package api

import (
	"context"
	"net/http"
	"net/netip"

	"github.com/bulkhead-mesh/bulkhead/control/authority"
)

// WhoisInput is the address in a question.
type WhoisInput struct {
	Addr string `query:"addr" required:"true" maxLength:"64" example:"10.201.0.7:443" doc:"overlay address, with or without a port"`
}

// registerLocal adds what is asked on this host alone, and of it.
func (s *Server) registerLocal() {
	register(s, operation("addLocalAgent", http.MethodPost, "/v1/local/agents", "Declare an agent of this host", here),
		func(ctx context.Context, in *struct{ Body AgentDeclaration }) (*answer[LocalAgent], error) {
			agent, err := s.options.Local.AddAgent(ctx, in.Body)
			return &answer[LocalAgent]{agent}, err
		})
	register(s, operation("removeLocalAgent", http.MethodDelete, "/v1/local/agents/{name}", "Give an agent of this host up", here),
		func(ctx context.Context, in *NameInput) (*struct{}, error) {
			return nil, s.options.Local.RemoveAgent(ctx, in.Name)
		})
	register(s, operation("listLocalAgents", http.MethodGet, "/v1/local/agents", "The agents of this host, and their processes", here),
		func(context.Context, *struct{}) (*answer[[]LocalAgent], error) {
			return &answer[[]LocalAgent]{append([]LocalAgent{}, s.options.Local.LocalAgents()...)}, nil
		})
	register(s, operation("whois", http.MethodGet, "/v1/whois", "Who is behind an overlay address", read),
		func(_ context.Context, in *WhoisInput) (*answer[Whois], error) {
			return in.answer(s.options.Local.Whois)
		})
}

// answer asks who has the address.
func (in *WhoisInput) answer(whois func(netip.Addr) (Whois, bool)) (*answer[Whois], error) {
	addr, err := parseWhois(in.Addr)
	if err != nil {
		return nil, err
	}
	who, ok := whois(addr)
	if !ok {
		return nil, notFound("addr", "agent with address", addr.String(), "`bulkhead agent list` shows all addresses")
	}
	return &answer[Whois]{who}, nil
}

// parseWhois takes an address as logs and peers show it: with or without a port, and IPv4 also within IPv6.
func parseWhois(s string) (netip.Addr, error) {
	addr, err := netip.ParseAddr(s)
	if err != nil {
		var ap netip.AddrPort
		ap, err = netip.ParseAddrPort(s)
		addr = ap.Addr()
	}
	if err != nil || addr.Zone() != "" {
		return netip.Addr{}, &authority.Error{Code: authority.CodeInvalid, Field: "addr", Message: "it is no address",
			Fix: "write it like 10.201.0.7, 10.201.0.7:443, fd00::7 or [fd00::7]:443"}
	}
	return addr.Unmap(), nil
}
