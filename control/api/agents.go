package api

import (
	"cmp"
	"context"
	"net/http"
	"net/netip"
	"slices"

	"github.com/bulkhead-mesh/bulkhead/control/authority"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

func (s *Server) registerAgents() {
	register(s, operation("listAgents", http.MethodGet, "/v1/agents", "All agents", read),
		func(context.Context, *struct{}) (*answer[[]Agent], error) {
			agents, err := s.agents()
			return &answer[[]Agent]{agents}, err
		})
	register(s, operation("getAgent", http.MethodGet, "/v1/agents/{name}", "One agent", read),
		func(_ context.Context, in *NameInput) (*answer[Agent], error) {
			agents, err := s.agents()
			if err != nil {
				return nil, err
			}
			for _, a := range agents {
				if a.Name == in.Name {
					return &answer[Agent]{a}, nil
				}
			}
			return nil, notFound("name", "agent", in.Name, "`bulkhead agent list` shows all")
		})
	register(s, operation("approveAgent", http.MethodPost, "/v1/agents/{name}/approve", "Let a pending agent take part", operate),
		func(ctx context.Context, in *struct {
			NameInput
			MatchInput
			Body authority.ApproveRequest
		}) (*answer[Agent], error) {
			match, err := in.version()
			if err != nil {
				return nil, err
			}
			info, err := s.options.Authority.Approve(callerOf(ctx).Principal, in.Name, in.Body, match)
			return &answer[Agent]{s.registered(info)}, err
		})
	register(s, operation("revokeAgent", http.MethodPost, "/v1/agents/{name}/revoke", "Void an agent's certificates",
		operate),
		func(ctx context.Context, in *RevokeInput) (*answer[authority.Change], error) {
			change, err := s.options.Authority.RevokeAgent(callerOf(ctx).Principal, in.Name, in.Body.Reason)
			return &answer[authority.Change]{change}, err
		})
	register(s, operation("relabelAgent", http.MethodPut, "/v1/agents/{name}/labels", "Replace an agent's labels",
		operate),
		func(ctx context.Context, in *struct {
			NameInput
			MatchInput
			Body LabelsRequest
		}) (*answer[authority.Change], error) {
			match, err := in.version()
			if err != nil {
				return nil, err
			}
			change, err := s.options.Authority.Relabel(callerOf(ctx).Principal, in.Name, in.Body.Labels, match)
			return &answer[authority.Change]{change}, err
		})
}

// agents are those that the registry has, or elsewhere those that records tell of, and this host's that are pending.
func (s *Server) agents() ([]Agent, error) {
	agents := []Agent{}
	if s.options.Authority == nil {
		for _, a := range s.options.Local.Agents() {
			agents = append(agents, s.agent(a))
		}
		agents = append(agents, s.pending()...)
	} else {
		infos, err := s.options.Authority.Agents()
		if err != nil {
			return nil, err
		}
		for _, info := range infos {
			agents = append(agents, s.registered(info))
		}
	}
	slices.SortFunc(agents, func(a, b Agent) int { return cmp.Compare(a.Name, b.Name) })
	return agents, nil
}

// pending are the agents of this host that wait for an operator.
func (s *Server) pending() (agents []Agent) {
	for _, a := range s.options.Local.LocalAgents() {
		if a.State == AgentPending {
			agents = append(agents, Agent{
				Name: a.Name, Host: s.options.Local.Status().Host, Labels: a.Labels, Addresses: []netip.Addr{}, Segments: []string{}, State: AgentPending,
			})
		}
	}
	return agents
}

// registered is an agent of the registry.
func (s *Server) registered(info authority.AgentInfo) Agent {
	a := s.agent(info.Agent)
	a.Revoked = info.Revoked
	if !info.Expires.IsZero() {
		a.Expires = &info.Expires
	}
	switch {
	case info.Revoked != nil:
		a.State = AgentRevoked
	case info.Pending:
		a.State = AgentPending
	}
	return a
}

func (s *Server) agent(a segment.Agent) Agent {
	out := Agent{Name: a.Name, Host: a.Host, Labels: a.Labels, Addresses: append([]netip.Addr{}, a.Addresses...), Segments: []string{}, State: AgentActive}
	if p, err := s.policy(); err == nil {
		out.Segments = append(out.Segments, p.Parsed.SegmentsOf(a)...)
	}
	return out
}

// policyAgents are the agents that policy is about now.
func (s *Server) policyAgents() ([]segment.Agent, error) {
	if s.options.Authority != nil {
		return s.options.Authority.PolicyAgents()
	}
	return s.options.Local.Agents(), nil
}
