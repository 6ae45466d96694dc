package api

import (
	"cmp"
	"context"
	"net/http"

	"github.com/bulkhead-mesh/bulkhead/control/authority"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
)

const operatorLife = "720h" // of a certificate, unless the request says

func (s *Server) registerOperators() {
	register(s, operation("listOperators", http.MethodGet, "/v1/operators", "All operators", ask),
		func(context.Context, *struct{}) (*answer[[]authority.OperatorInfo], error) {
			operators, err := s.options.Authority.Operators()
			return &answer[[]authority.OperatorInfo]{operators}, err
		})
	create := operation("createOperator", http.MethodPost, "/v1/operators", "Certify an operator's key with a role", govern)
	create.DefaultStatus = http.StatusCreated
	register(s, create, func(ctx context.Context, in *struct{ Body OperatorRequest }) (*answer[OperatorCertificate], error) {
		ttl, err := life(cmp.Or(in.Body.TTL, operatorLife))
		if err != nil {
			return nil, err
		}
		id, key, err := identity.ParseCSR(in.Body.CSR)
		if want := (identity.ID{Mesh: s.options.Authority.Mesh(), Kind: identity.KindOperator, Name: in.Body.Name}); err != nil || id != want {
			return nil, &authority.Error{Code: authority.CodeInvalid, Field: "csr", Message: "is not a certificate request for " + want.String()}
		}
		chain, err := s.options.Authority.IssueOperator(callerOf(ctx).Principal, in.Body.Name, in.Body.Role, key, ttl)
		out := OperatorCertificate{Chain: chain}
		for _, root := range s.options.Authority.Roots() {
			out.Roots = append(out.Roots, root.Raw)
		}
		return &answer[OperatorCertificate]{out}, err
	})
	register(s, operation("revokeOperator", http.MethodPost, "/v1/operators/{name}/revoke", "Void an operator's certificates", govern),
		func(ctx context.Context, in *RevokeInput) (*answer[authority.Change], error) {
			c, err := s.options.Authority.RevokeOperator(callerOf(ctx).Principal, in.Name, in.Body.Reason)
			return &answer[authority.Change]{c}, err
		})
}
