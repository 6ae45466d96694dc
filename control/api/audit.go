package api

import (
	"context"
	"net/http"

	"github.com/bulkhead-mesh/bulkhead/control/authority"
)

func (s *Server) registerAudit() {
	register(s, operation("listAudit", http.MethodGet, "/v1/audit", "The newest audit entries, oldest first", ask),
		func(ctx context.Context, in *struct {
			Limit int `query:"limit" minimum:"1" maximum:"10000" default:"100"`
		}) (*answer[[]authority.AuditEntry], error) {
			entries, err := s.options.Authority.Audit(in.Limit)
			return &answer[[]authority.AuditEntry]{entries}, err
		})
}
