package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/bulkhead-mesh/bulkhead/control/authority"
)

// Agents serves the socket that all processes of this host may open: attest says which agent one is, if any. It answers
// little: an agent learns of those that policy lets it have to do with, and a process may ask to become an agent's.
func (s *Server) Agents(attest func(*http.Request) (Asker, error)) http.Handler {
	mux, _ := s.attested()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p := refuseBrowser(r); p != nil {
			p.write(w)
			return
		}
		asker, err := attest(r)
		if err != nil {
			if s.askers.allow("unknown", s.now()) {
				s.log.WarnContext(r.Context(), "attest a process", "error", err)
			}
			newProblem(http.StatusForbidden, authority.CodeDenied, "this process cannot be told", "try again; the daemon's log says why").write(w)
			return
		}
		if !s.askers.allow(asker.key(), s.now()) {
			tooMany().write(w)
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxOpenBody)
		c := caller{Principal: authority.Principal{Name: asker.key(), From: "agents' socket"}, asker: asker}
		mux.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, c)))
	})
}

// key is what limits and logs know an asker by.
func (a Asker) key() string {
	if a.Agent != "" {
		return "agent/" + a.Agent
	}
	return fmt.Sprintf("uid/%d", a.UID)
}

// attested are the operations of the agents' socket.
func (s *Server) attested() (*http.ServeMux, huma.API) {
	mux := http.NewServeMux()
	mux.HandleFunc("/", s.nowhere)
	api := humago.New(mux, config(s.options.Version))
	whois := operation("whois", http.MethodGet, "/v1/whois", "Who is behind an overlay address, as far as policy lets this agent know", need{})
	registerOn(s, api, whois, func(ctx context.Context, in *WhoisInput) (*answer[Whois], error) {
		asker := callerOf(ctx).asker
		if asker.Agent == "" {
			return nil, &authority.Error{Code: authority.CodeDenied, Message: "this process is no agent's", Fix: "ask on the daemon's own socket, as root"}
		}
		return in.answer(func(addr netip.Addr) (Whois, bool) { return s.options.Local.WhoisFor(asker.Agent, addr) })
	})
	run := operation("run", http.MethodPost, "/v1/run",
		"Make this process an agent's, for as long as the answer is read: it is one line, sent once that is enforced, and goes on until the asker closes it", need{})
	run.MaxBodyBytes = maxOpenBody
	run.Middlewares = huma.Middlewares{s.takeRun}
	registerOn(s, api, run, func(_ context.Context, in *struct{ Body RunRequest }) (*huma.StreamResponse, error) {
		return &huma.StreamResponse{Body: func(ctx huma.Context) { s.run(ctx, in.Body) }}, nil
	})
	return mux, api
}

// run answers with one line and keeps the answer open until the asker closes its connection.
func (s *Server) run(ctx huma.Context, in RunRequest) {
	r, w := unwrap(ctx)
	answered := false
	// The answer may come late, where control is asked first, and its end comes later.
	err := http.NewResponseController(w).SetWriteDeadline(time.Time{})
	if err == nil {
		err = s.options.Local.Run(r.Context(), callerOf(r.Context()).asker, in, func(scope RunScope) error {
			answered = true
			w.Header().Set("Content-Type", contentJSON)
			if err := json.NewEncoder(w).Encode(scope); err != nil {
				return err
			}
			return http.NewResponseController(w).Flush()
		})
	}
	switch {
	case err != nil && answered:
		s.log.WarnContext(r.Context(), "end a run", "agent", in.Agent, "error", err)
	case err != nil:
		s.problemOf(r.Context(), err).write(w)
	}
}

// takeRun bounds how many processes one asker can hold scopes for.
func (s *Server) takeRun(ctx huma.Context, next func(huma.Context)) {
	release := s.runs.take(callerOf(ctx.Context()).Name)
	if release == nil {
		s.refuse(ctx, newProblem(http.StatusTooManyRequests, CodeRateLimited, "too many commands run already", "wait until one has ended"))
		return
	}
	defer release()
	next(ctx)
}
