package api

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/bulkhead-mesh/bulkhead/control/authority"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
)

const enrollPath = "/v1/enroll" // the one that is open to all: its secret is in its body

type callerKey struct{}

// caller is who asks, and the host certificate that it proved to hold, if it did.
type caller struct {
	authority.Principal
	host  *identity.Certificate
	local bool  // on this host's socket
	asker Asker // on the agents' socket
}

// callerOf returns who asks. The zero caller has no role.
func callerOf(ctx context.Context) caller {
	c, _ := ctx.Value(callerKey{}).(caller)
	return c
}

// Socket serves the local socket, whose peers the daemon has authenticated: principal says who
// one is, or nobody: the zero principal is refused.
func (s *Server) Socket(principal func(*http.Request) authority.Principal) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p := refuseBrowser(r); p != nil {
			p.write(w)
			return
		}
		p := principal(r)
		if p.Name == "" {
			newProblem(http.StatusForbidden, authority.CodeDenied, "the local socket is not for this user, nor for an agent",
				"use it as root, or as the user that the daemon runs as").write(w)
			return
		}
		s.serve(w, r, caller{Principal: p, local: true})
	})
}

// Public serves TCP: callers prove who they are by a client certificate or a bearer token. All but enrolment
// needs that.
func (s *Server) Public() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p := refuseBrowser(r); p != nil {
			p.write(w)
			return
		}
		now := s.now()
		c, problem := s.authenticate(r)
		if problem != nil || c.Name == "" {
			if !s.strangers.allow(source(r.RemoteAddr), now) || !s.crowd.AllowN(now, 1) {
				tooMany().write(w)
				return
			}
		} else if !s.members.allow(c.Name, now) {
			tooMany().write(w)
			return
		}
		if problem == nil && c.Name == "" && r.URL.Path != enrollPath {
			problem = newProblem(http.StatusUnauthorized, CodeUnauthenticated, "this needs a credential",
				"use an operator certificate or a bearer token")
		}
		if problem != nil {
			problem.write(w)
			return
		}
		s.serve(w, r, c)
	})
}

func tooMany() *Problem {
	p := newProblem(http.StatusTooManyRequests, CodeRateLimited, "too many requests", "wait a moment and try again")
	p.retry = 1
	return p
}

// refuseBrowser stops web pages from using the network position of whoever looks at them.
func refuseBrowser(r *http.Request) *Problem {
	for _, name := range []string{"Origin", "Referer", "Sec-Fetch-Site"} {
		if r.Header.Get(name) != "" {
			return newProblem(http.StatusForbidden, CodeBrowser, "requests from web pages are refused", "use the command line or a program")
		}
	}
	return nil
}

// authenticate says who asks. A caller without any credential has no name; a bad credential is a problem.
func (s *Server) authenticate(r *http.Request) (caller, *Problem) {
	unknown := func(detail, fix string) (caller, *Problem) {
		return caller{}, newProblem(http.StatusUnauthorized, CodeUnauthenticated, detail, fix)
	}
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		chain := make([][]byte, 0, len(r.TLS.PeerCertificates))
		for _, cert := range r.TLS.PeerCertificates {
			chain = append(chain, cert.Raw)
		}
		cert, err := s.options.Verify(chain)
		if err != nil {
			return unknown("the client certificate is not accepted: "+err.Error(), "use a valid certificate of this mesh")
		}
		return certificateCaller(cert, r.RemoteAddr)
	}
	header := r.Header.Get("Authorization")
	if header == "" {
		return caller{Principal: authority.Principal{From: r.RemoteAddr}}, nil
	}
	scheme, token, _ := strings.Cut(header, " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return unknown("the authorization scheme is not known", "use Bearer")
	}
	if s.options.Authority == nil {
		return unknown("this host does not know bearer tokens", "ask the control host that made the token, or use an operator certificate")
	}
	p, err := s.options.Authority.Bearer(strings.TrimSpace(token))
	if err != nil {
		return unknown("the bearer token is not accepted", "create a new one: `bulkhead token create --role ROLE`")
	}
	p.From = r.RemoteAddr
	return caller{Principal: p}, nil
}

// VerifyClient judges the certificate chain of a client: an operator's or a host's.
func VerifyClient(trust *identity.Trust, chain [][]byte, now time.Time) (*identity.Certificate, error) {
	cert, err := trust.Verify(chain, identity.KindOperator, now)
	if errors.Is(err, identity.ErrForeign) {
		return trust.Verify(chain, identity.KindHost, now)
	}
	return cert, err
}

// certificateCaller maps a verified client certificate to what its holder may do.
func certificateCaller(cert *identity.Certificate, from string) (caller, *Problem) {
	c := caller{Principal: authority.Principal{Name: string(cert.Kind) + "/" + cert.Name, From: from}}
	switch cert.Kind {
	case identity.KindOperator:
		c.Role = authority.Role(cert.Claims.Role)
	case identity.KindHost:
		c.host = cert
		if cert.Claims.Control {
			c.Role = authority.RoleAdmin
		}
	default:
		return caller{}, newProblem(http.StatusUnauthorized, CodeUnauthenticated,
			"a certificate of kind "+string(cert.Kind)+" may not use the API", "use an operator certificate")
	}
	return c, nil
}

// serve hands an authenticated request on.
func (s *Server) serve(w http.ResponseWriter, r *http.Request, c caller) {
	if c.From == "" {
		c.From = r.RemoteAddr
	}
	limit := int64(maxBody)
	if c.Name == "" {
		limit = maxOpenBody
	}
	r.Body = http.MaxBytesReader(w, r.Body, limit)
	s.mux.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, c)))
}

// need is what an operation asks of its caller, in its metadata.
type need struct {
	role      authority.Role // least role; empty: any caller, the operation looks for itself
	authority bool           // only the host with the authority can do it
	change    bool           // the authority checks the role itself, so that refusals are in its audit record
	local     bool           // asked on the socket of the host that it is about, and nowhere else
}

var (
	read     = need{role: authority.RoleViewer}
	ask      = need{role: authority.RoleViewer, authority: true}
	operate  = need{role: authority.RoleOperator, authority: true, change: true}
	govern   = need{role: authority.RoleAdmin, authority: true, change: true}
	anyone   = need{authority: true}
	overview = need{role: authority.RoleOperator, authority: true}
	here     = need{role: authority.RoleAdmin, local: true}
)

const needKey = "need"

// admit runs before every operation: it checks the role, and sends what needs the authority to it.
//
// What is forwarded is done in this host's name, which is an admin's: so only an admin's requests are, and never those
// by which a host speaks for itself.
func (s *Server) admit(ctx huma.Context, next func(huma.Context)) {
	n, _ := ctx.Operation().Metadata[needKey].(need)
	c := callerOf(ctx.Context())
	if n.local && !c.local {
		s.refuse(ctx, newProblem(http.StatusForbidden, authority.CodeDenied, "this is asked on the host's own socket alone", "run the command on that host, without --server"))
		return
	}
	audited := n.change && s.options.Authority != nil
	if n.role != "" && !audited && !c.Role.Allows(n.role) {
		s.refuse(ctx, newProblem(http.StatusForbidden, authority.CodeDenied,
			c.Name+" may not do this: it needs role "+string(n.role), "ask someone with that role"))
		return
	}
	if n.authority && s.options.Authority == nil {
		if s.options.Forward == nil {
			s.refuse(ctx, newProblem(http.StatusNotImplemented, CodeNoControl, "this host has no control role",
				"run the command on a control host, or use --server with an operator credential"))
			return
		}
		if n.role == "" || !c.Role.Allows(authority.RoleAdmin) {
			s.refuse(ctx, newProblem(http.StatusForbidden, authority.CodeDenied,
				"this host passes on what its admins ask alone: it would be done in the host's own name", "ask the control host that has the authority"))
			return
		}
		r, w := unwrap(ctx)
		s.options.Forward.ServeHTTP(w, r)
		return
	}
	next(ctx)
}

func (s *Server) refuse(ctx huma.Context, p *Problem) {
	_, w := unwrap(ctx)
	p.write(w)
}
