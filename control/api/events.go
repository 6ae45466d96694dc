package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/sse"
)

func (s *Server) registerEvents() {
	op := operation("streamEvents", http.MethodGet, "/v1/events", "What happens from now on, as server-sent events", read)
	op.Middlewares = huma.Middlewares{s.takeStream}
	sse.Register(s.api, op, map[string]any{"message": Event{}}, func(ctx context.Context, _ *struct{}, send sse.Sender) {
		events := s.options.Local.Events(ctx)
		// The first one is sent at once, so that the client knows that it listens.
		status := s.options.Local.Status()
		if err := send.Data(Event{Time: s.now(), Kind: EventPhase, Host: status.Host, Version: status.PolicyVersion, Message: status.Phase}); err != nil {
			return
		}
		for event := range events {
			if err := send.Data(event); err != nil {
				return
			}
		}
	})
}

// takeStream bounds how many streams run at once.
func (s *Server) takeStream(ctx huma.Context, next func(huma.Context)) {
	release := s.streams.take(callerOf(ctx.Context()).Name)
	if release == nil {
		p := newProblem(http.StatusTooManyRequests, CodeRateLimited, "too many event streams are open", "close one")
		p.retry = 10
		s.refuse(ctx, p)
		return
	}
	defer release()
	next(ctx)
}
