package api

import (
	"context"
	"log/slog"
	"net/http"
	"net/netip"
	"reflect"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"

	"github.com/bulkhead-mesh/bulkhead/control/authority"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
	"github.com/bulkhead-mesh/bulkhead/overlay/signed"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

// Local is what the daemon of this host knows from verified state. Its methods are safe for concurrent use.
type Local interface {
	Status() Status
	Agents() []segment.Agent
	Policy() *signed.VerifiedPolicy // nil while this host has none
	Rollout(version uint64) Rollout // of all known hosts, this one included
	SeedRecords() [][]byte          // signed records by which a joining host finds the mesh
	// Events delivers what happens from now on; the channel is closed when ctx ends. Slow readers miss events.
	Events(ctx context.Context) <-chan Event

	// AddAgent declares an agent of this host, or changes what an agent that it has matches. The agent may be pending.
	AddAgent(context.Context, AgentDeclaration) (LocalAgent, error)
	// RemoveAgent gives an agent of this host up.
	RemoveAgent(ctx context.Context, name string) error
	LocalAgents() []LocalAgent // sorted by name
	// Whois says whose address addr is.
	Whois(addr netip.Addr) (Whois, bool)
	// WhoisFor is Whois for an agent of this host: it learns of itself, and of those that it may reach or that may
	// reach it. Of others it does not even learn that they exist.
	WhoisFor(agent string, addr netip.Addr) (Whois, bool)
	// Run puts the asking process into a cgroup of the agent, and calls entered when that is done and enforced. It returns
	// when ctx has ended: the asker has closed its connection. What it returns without a call of entered is the answer.
	Run(ctx context.Context, asker Asker, r RunRequest, entered func(RunScope) error) error
}

// Options are what a server is made of.
type Options struct {
	Authority *authority.Authority // nil on a host that is not the authority
	Local     Local
	Logger    *slog.Logger     // nil discards
	Now       func() time.Time // nil is time.Now
	Version   string           // of this program

	// Verify judges the certificate chain, leaf first, of a TCP client: an operator's or a host's.
	Verify func(chain [][]byte) (*identity.Certificate, error)
	// Forward hands what needs the authority to the host that is it. It acts in this host's name, so requests
	// reach it only after their caller's role was checked. Nil: this host cannot reach the authority.
	Forward http.Handler
}

// Server answers the API. It starts nothing: Socket and Public are its handlers.
type Server struct {
	options Options
	log     *slog.Logger
	now     func() time.Time
	mux     *http.ServeMux
	api     huma.API

	members   *limiters
	strangers *limiters
	crowd     *rate.Limiter // all strangers together
	askers    *limiters     // on the agents' socket
	streams   *slots
	runs      *slots
	parsing   *semaphore.Weighted // of policy documents that are not yet policy: they may take much memory
}

// New makes a server.
func New(o Options) *Server {
	s := &Server{
		options: o, log: o.Logger, now: o.Now, mux: http.NewServeMux(), parsing: semaphore.NewWeighted(2),
		members:   newLimiters(memberRate, memberBurst),
		strangers: newLimiters(strangerRate, strangerBurst),
		crowd:     rate.NewLimiter(crowdRate, crowdBurst),
		askers:    newLimiters(memberRate, memberBurst),
		streams:   newSlots(maxStreams, maxStreamsP),
		runs:      newSlots(maxRuns, maxRunsP),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.now == nil {
		s.now = time.Now
	}
	s.api = humago.New(s.mux, config(o.Version))
	s.api.UseMiddleware(s.admit)
	s.registerStatus()
	s.registerHosts()
	s.registerAgents()
	s.registerSegments()
	s.registerRules()
	s.registerPolicy()
	s.registerQuestions()
	s.registerTokens()
	s.registerOperators()
	s.registerEnroll()
	s.registerDeclare()
	s.registerLocal()
	s.registerAudit()
	s.registerEvents()
	s.mux.HandleFunc("/", s.nowhere)
	return s
}

func (s *Server) nowhere(w http.ResponseWriter, r *http.Request) {
	newProblem(http.StatusNotFound, authority.CodeNotFound, "there is no "+r.Method+" "+r.URL.Path, "see /openapi.json").write(w)
}

// config describes the API. Documentation pages are off: they would load programs from elsewhere.
func config(version string) huma.Config {
	c := huma.DefaultConfig("Bulkhead", version)
	c.Info.Description = "The control API of a mesh, and the local API of each of its hosts."
	c.DocsPath, c.SchemasPath = "", ""
	c.CreateHooks = nil // no $schema members in answers
	c.RejectUnknownQueryParameters = true
	registry := huma.NewMapRegistry("#/components/schemas/", schemaName)
	registry.RegisterTypeAlias(reflect.TypeFor[segment.Selector](), reflect.TypeFor[selectorSchema]())
	registry.RegisterTypeAlias(reflect.TypeFor[segment.Guard](), reflect.TypeFor[guardSchema]())
	c.Components.Schemas = registry
	c.Components.SecuritySchemes = map[string]*huma.SecurityScheme{
		"certificate": {Type: "mutualTLS", Description: "An operator's certificate, or a host's."},
		"bearer":      {Type: "http", Scheme: "bearer", Description: "An API token."},
	}
	c.Security = []map[string][]string{{"certificate": {}}, {"bearer": {}}}
	return c
}

// schemaName keeps types of one name from different packages apart.
func schemaName(t reflect.Type, hint string) string {
	switch t {
	case reflect.TypeFor[segment.Problem]():
		return "PolicyProblem"
	case reflect.TypeFor[segment.Change]():
		return "ReachChange"
	case reflect.TypeFor[segment.Agent]():
		return "PolicyAgent"
	case reflect.TypeFor[authority.Change]():
		return "PolicyChange"
	}
	return huma.DefaultSchemaNamer(t, hint)
}

// selectorSchema describes segment.Selector, which has a JSON form of its own.
type selectorSchema struct{}

// Schema is a map from label keys to a value, a set of values, or a bound on sensitivity.
func (selectorSchema) Schema(huma.Registry) *huma.Schema {
	text := &huma.Schema{Type: huma.TypeString}
	return &huma.Schema{
		Type:        huma.TypeObject,
		Description: "label key to a value, a set of values, or for sensitivity a bound like \"<=confidential\"",
		AdditionalProperties: &huma.Schema{
			OneOf: []*huma.Schema{text, {Type: huma.TypeArray, Items: text, MinItems: new(1)}},
		},
	}
}

// guardSchema describes segment.Guard, which has a JSON form of its own.
type guardSchema struct{}

// Schema is a word, or a list of destinations.
func (guardSchema) Schema(r huma.Registry) *huma.Schema {
	return &huma.Schema{
		Description: "what agents may reach outside the overlay: host, none, or a list of destinations",
		OneOf: []*huma.Schema{
			{Type: huma.TypeString, Enum: []any{segment.GuardHost, segment.GuardNone}},
			{Type: huma.TypeArray, Items: r.Schema(reflect.TypeFor[segment.EgressRule](), true, "EgressRule"), MinItems: new(1)},
		},
	}
}

// operation describes one operation and what it needs.
func operation(id, method, path, summary string, n need) huma.Operation {
	op := huma.Operation{
		OperationID:  id,
		Method:       method,
		Path:         path,
		Summary:      summary,
		MaxBodyBytes: maxBody,
		Metadata:     map[string]any{needKey: n},
		Errors:       []int{http.StatusUnauthorized, http.StatusForbidden, http.StatusUnprocessableEntity, http.StatusTooManyRequests},
	}
	switch {
	case n.local:
		op.Description = "On the host's own socket alone. Needs role " + string(n.role) + "."
	case n.role != "":
		op.Description = "Needs role " + string(n.role) + "."
	}
	return op
}

// register adds an operation whose errors become problems.
func register[I, O any](s *Server, op huma.Operation, handler func(context.Context, *I) (*O, error)) {
	registerOn(s, s.api, op, handler)
}

func registerOn[I, O any](s *Server, api huma.API, op huma.Operation, handler func(context.Context, *I) (*O, error)) {
	huma.Register(api, op, func(ctx context.Context, in *I) (*O, error) {
		out, err := handler(ctx, in)
		if err != nil {
			return nil, s.problemOf(ctx, err)
		}
		return out, nil
	})
}

// answer is a plain JSON answer.
type answer[T any] struct{ Body T }

func unwrap(ctx huma.Context) (*http.Request, http.ResponseWriter) { return humago.Unwrap(ctx) }

// policy is the newest policy that this host knows.
func (s *Server) policy() (*signed.VerifiedPolicy, error) {
	if s.options.Authority != nil {
		return s.options.Authority.Policy(), nil
	}
	if p := s.options.Local.Policy(); p != nil {
		return p, nil
	}
	return nil, newProblem(http.StatusServiceUnavailable, CodeNoPolicy, "this host has no policy yet",
		"wait until `bulkhead status` says ready")
}

func notFound(field, what, name, fix string) error {
	return &authority.Error{Code: authority.CodeNotFound, Field: field, Message: "there is no " + what + " " + name, Fix: fix}
}
