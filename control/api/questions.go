package api

import (
	"context"
	"net/http"
	"strings"

	"github.com/bulkhead-mesh/bulkhead/control/authority"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

func (s *Server) registerQuestions() {
	register(s, operation("explain", http.MethodGet, "/v1/policy/explain", "Whether one agent may open a port of another, and why", read),
		func(_ context.Context, in *struct {
			From string `query:"from" required:"true" maxLength:"80" example:"agent/scout"`
			To   string `query:"to" required:"true" maxLength:"80" example:"agent/vec1"`
			Port string `query:"port" required:"true" maxLength:"16" example:"tcp/5432"`
		}) (*answer[Explanation], error) {
			e, err := s.explain(in.From, in.To, in.Port)
			return &answer[Explanation]{e}, err
		})
	register(s, operation("reach", http.MethodGet, "/v1/policy/reach", "Whom an agent can get to, directly and through others", read),
		func(_ context.Context, in *struct {
			Agent string `query:"agent" required:"true" maxLength:"80" example:"agent/scout"`
		}) (*answer[Reach], error) {
			r, err := s.reach(in.Agent)
			return &answer[Reach]{r}, err
		})
	register(s, operation("getRollout", http.MethodGet, "/v1/policy/rollout", "Which hosts enforce a policy version", read),
		func(_ context.Context, in *struct {
			Version uint64 `query:"version" doc:"0: the newest that this host knows"`
		}) (*answer[Rollout], error) {
			if in.Version == 0 {
				p, err := s.policy()
				if err != nil {
					return nil, err
				}
				in.Version = p.Version
			}
			return &answer[Rollout]{s.options.Local.Rollout(in.Version)}, nil
		})
}

func (s *Server) explain(from, to, port string) (Explanation, error) {
	p, err := s.policy()
	if err != nil {
		return Explanation{}, err
	}
	agents, err := s.policyAgents()
	if err != nil {
		return Explanation{}, err
	}
	src, err := findAgent(agents, "from", from)
	if err != nil {
		return Explanation{}, err
	}
	dst, err := findAgent(agents, "to", to)
	if err != nil {
		return Explanation{}, err
	}
	parsed, err := segment.ParsePort(port)
	if err != nil {
		return Explanation{}, &authority.Error{Code: authority.CodeInvalid, Field: "port", Message: err.Error()}
	}
	return Explanation{Explanation: p.Parsed.Explain(src, dst, parsed, s.now()), From: src.Name, To: dst.Name, Port: port, PolicyVersion: p.Version}, nil
}

func (s *Server) reach(name string) (Reach, error) {
	p, err := s.policy()
	if err != nil {
		return Reach{}, err
	}
	agents, err := s.policyAgents()
	if err != nil {
		return Reach{}, err
	}
	agent, err := findAgent(agents, "agent", name)
	if err != nil {
		return Reach{}, err
	}
	reached, err := p.Parsed.Reach(agent.Name, agents, s.now())
	return Reach{AgentReach: AgentReach{Agent: agent.Name, Reached: reached}, PolicyVersion: p.Version}, err
}

// findAgent takes an agent's name with or without the agent/ before it.
func findAgent(agents []segment.Agent, field, name string) (segment.Agent, error) {
	name = strings.TrimPrefix(name, "agent/")
	for _, a := range agents {
		if a.Name == name {
			return a, nil
		}
	}
	return segment.Agent{}, notFound(field, "agent", name, "`bulkhead agent list` shows all")
}
