package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/bulkhead-mesh/bulkhead/control/authority"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
)

// SignedJWT is a JWT-SVID.
type SignedJWT struct {
	Token string `json:"token"`
}

// registerDeclare adds what a host asks for its agents, with its own certificate.
func (s *Server) registerDeclare() {
	register(s, ofHosts("declareAgents", "/v1/declare", "Have more agents on a host"),
		func(ctx context.Context, in *struct{ Body authority.DeclareRequest }) (*answer[authority.Declared], error) {
			host, from, err := callingHost(ctx)
			if err != nil {
				return nil, err
			}
			in.Body.From = from
			declared, err := s.options.Authority.Declare(host, in.Body)
			if err != nil {
				return nil, err
			}
			return &answer[authority.Declared]{*declared}, nil
		})
	register(s, ofHosts("withdrawAgents", "/v1/withdraw", "Give agents of a host up"),
		func(ctx context.Context, in *struct{ Body authority.WithdrawRequest }) (*struct{}, error) {
			host, from, err := callingHost(ctx)
			if err != nil {
				return nil, err
			}
			in.Body.From = from
			return nil, s.options.Authority.Withdraw(host, in.Body)
		})
	register(s, ofHosts("signJWT", "/v1/jwt", "A JWT-SVID for an agent of a host"),
		func(ctx context.Context, in *struct{ Body authority.JWTRequest }) (*answer[SignedJWT], error) {
			host, from, err := callingHost(ctx)
			if err != nil {
				return nil, err
			}
			in.Body.From = from
			token, err := s.options.Authority.SignJWT(host, in.Body)
			return &answer[SignedJWT]{SignedJWT{token}}, err
		})
}

// ofHosts is an operation that only a host's own certificate is good for.
func ofHosts(id, path, summary string) huma.Operation {
	op := operation(id, http.MethodPost, path, summary, anyone)
	op.Security = []map[string][]string{{"certificate": {}}}
	return op
}

// callingHost is the host that asks for itself, and where it asks from.
func callingHost(ctx context.Context) (host *identity.Certificate, from string, err error) {
	c := callerOf(ctx)
	if c.host == nil {
		return nil, "", &authority.Error{Code: authority.CodeDenied, Message: "only a host asks this, with its own certificate"}
	}
	return c.host, c.From, nil
}
