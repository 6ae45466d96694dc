package api

import (
	"context"
	"net/http"
)

func (s *Server) registerStatus() {
	register(s, operation("getStatus", http.MethodGet, "/v1/status", "What this host says about itself", read),
		func(context.Context, *struct{}) (*answer[Status], error) {
			return &answer[Status]{s.options.Local.Status()}, nil
		})
}
