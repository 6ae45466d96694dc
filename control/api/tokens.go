package api

import (
	"context"
	"net/http"
	"time"

	"github.com/bulkhead-mesh/bulkhead/control/authority"
)

func (s *Server) registerTokens() {
	register(s, operation("listTokens", http.MethodGet, "/v1/tokens", "All tokens, without their secrets", overview),
		func(context.Context, *struct{}) (*answer[[]authority.TokenInfo], error) {
			tokens, err := s.options.Authority.Tokens()
			return &answer[[]authority.TokenInfo]{tokens}, err
		})
	create := operation("createToken", http.MethodPost, "/v1/tokens", "Make a join token, or an API token; its secret is shown this once", operate)
	create.DefaultStatus = http.StatusCreated
	register(s, create, func(ctx context.Context, in *struct{ Body TokenRequest }) (*answer[authority.CreatedToken], error) {
		ttl, err := life(in.Body.TTL)
		if err != nil {
			return nil, err
		}
		token, err := s.options.Authority.CreateToken(callerOf(ctx).Principal, authority.TokenRequest{
			Uses: in.Body.Uses, TTL: ttl, Grant: in.Body.Grant, Control: in.Body.Control, Role: in.Body.Role,
		})
		return &answer[authority.CreatedToken]{token}, err
	})
	register(s, operation("revokeToken", http.MethodDelete, "/v1/tokens/{id}", "Make a token worthless", operate),
		func(ctx context.Context, in *struct {
			ID string `path:"id" maxLength:"64"`
		}) (*struct{}, error) {
			return nil, s.options.Authority.RevokeToken(callerOf(ctx).Principal, in.ID)
		})
}

// life parses a duration; empty is 0, the default.
func life(text string) (time.Duration, error) {
	if text == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		return 0, &authority.Error{Code: authority.CodeInvalid, Field: "ttl", Message: "is not a duration above zero", Fix: "write it like 30m or 24h"}
	}
	return d, nil
}
