package api

import (
	"errors"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
)

// Forward hands requests on to the server that the client calls, with the client's credential: Options.Forward of
// a host that is not the authority.
func (c *Client) Forward(logger *slog.Logger) http.Handler {
	scheme, host, _ := strings.Cut(c.base, "://")
	return &httputil.ReverseProxy{
		Transport: c.http.Transport,
		ErrorLog:  slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: scheme, Host: host})
			r.Out.Header.Del("Authorization")
			if c.token != "" {
				r.Out.Header.Set("Authorization", "Bearer "+c.token)
			}
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			logger.WarnContext(r.Context(), "forward to control", "control", c.base, "error", err)
			if tooLarge := new(http.MaxBytesError); errors.As(err, &tooLarge) {
				newProblem(http.StatusRequestEntityTooLarge, CodeTooLarge, "the request is too large", "send less").write(w)
				return
			}
			newProblem(http.StatusBadGateway, CodeUnreachable, "the control host that holds the authority does not answer",
				"see `bulkhead status` on a control host; this host goes on enforcing").write(w)
		},
	}
}
