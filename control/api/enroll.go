package api

import (
	"context"
	"net/http"

	"github.com/bulkhead-mesh/bulkhead/control/authority"
)

func (s *Server) registerEnroll() {
	enroll := operation("enroll", http.MethodPost, enrollPath, "Join the mesh with a token", anyone)
	enroll.Security = []map[string][]string{{}} // the token in the body is the credential
	enroll.MaxBodyBytes = maxOpenBody
	register(s, enroll, func(ctx context.Context, in *struct{ Body authority.EnrollRequest }) (*answer[Enrolled], error) {
		e, err := s.options.Authority.Enroll(callerOf(ctx).From, in.Body)
		if err != nil {
			return nil, err
		}
		return &answer[Enrolled]{Enrolled{Enrollment: *e, Records: append([][]byte{}, s.options.Local.SeedRecords()...)}}, nil
	})
	register(s, ofHosts("renew", "/v1/renew", "Renew the certificates of a host and its agents"),
		func(ctx context.Context, in *struct{ Body authority.RenewRequest }) (*answer[authority.Enrollment], error) {
			host, from, err := callingHost(ctx)
			if err != nil {
				return nil, err
			}
			in.Body.From = from
			e, err := s.options.Authority.Renew(host, in.Body)
			if err != nil {
				return nil, err
			}
			return &answer[authority.Enrollment]{*e}, nil
		})
}
