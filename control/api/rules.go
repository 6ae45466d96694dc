package api

import (
	"context"
	"net/http"

	"github.com/bulkhead-mesh/bulkhead/control/authority"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

func (s *Server) registerRules() {
	register(s, operation("listRules", http.MethodGet, "/v1/rules", "All rules", read),
		func(context.Context, *struct{}) (*answer[[]segment.Rule], error) {
			p, err := s.policy()
			if err != nil {
				return nil, err
			}
			return &answer[[]segment.Rule]{append([]segment.Rule{}, p.Parsed.Rules...)}, nil
		})
	register(s, operation("getRule", http.MethodGet, "/v1/rules/{name}", "One rule", read),
		func(_ context.Context, in *NameInput) (*answer[segment.Rule], error) {
			p, err := s.policy()
			if err != nil {
				return nil, err
			}
			for _, rule := range p.Parsed.Rules {
				if rule.Name == in.Name {
					return &answer[segment.Rule]{rule}, nil
				}
			}
			return nil, notFound("name", "rule", in.Name, "`bulkhead rule list` shows all")
		})
	register(s, operation("createRule", http.MethodPost, "/v1/rules", "Add a rule to the policy", operate),
		func(ctx context.Context, in *struct {
			MatchInput
			Body segment.Rule
		}) (*answer[authority.Change], error) {
			match, err := in.version()
			if err != nil {
				return nil, err
			}
			c, err := s.options.Authority.CreateRule(callerOf(ctx).Principal, match, in.Body)
			return &answer[authority.Change]{c}, err
		})
	register(s, operation("deleteRule", http.MethodDelete, "/v1/rules/{name}", "Remove a rule", operate),
		func(ctx context.Context, in *DeleteInput) (*answer[authority.Change], error) {
			match, err := in.version()
			if err != nil {
				return nil, err
			}
			c, err := s.options.Authority.DeleteRule(callerOf(ctx).Principal, match, in.Name)
			return &answer[authority.Change]{c}, err
		})
}
