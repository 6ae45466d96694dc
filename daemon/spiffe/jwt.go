package spiffe

import (
	"context"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
)

const (
	maxAudiences = 16
	maxAudience  = 256
	signRate     = 10 // JWT-SVIDs a second for one agent: control hears a host only so often
	signBurst    = 50
)

// FetchJWTSVID has control sign a token for the agent and the audience that it asks for.
func (s *Server) FetchJWTSVID(ctx context.Context, r *workload.JWTSVIDRequest) (*workload.JWTSVIDResponse, error) {
	agent, err := s.attest(ctx)
	if err != nil {
		return nil, err
	}
	svid, err := s.svid(agent)
	if err != nil {
		return nil, err
	}
	if r.SpiffeId != "" && r.SpiffeId != svid.ID {
		return nil, status.Error(codes.PermissionDenied, "no identity issued: this agent is "+svid.ID)
	}
	if len(r.Audience) == 0 || len(r.Audience) > maxAudiences {
		return nil, status.Errorf(codes.InvalidArgument, "audience: give 1 to %d", maxAudiences)
	}
	for _, a := range r.Audience {
		if a == "" || len(a) > maxAudience {
			return nil, status.Errorf(codes.InvalidArgument, "audience: each has 1 to %d bytes", maxAudience)
		}
	}
	limiter, _ := s.signing.LoadOrStore(agent, rate.NewLimiter(signRate, signBurst))
	if !limiter.(*rate.Limiter).Allow() {
		return nil, status.Errorf(codes.ResourceExhausted, "more than %d tokens a second for this agent", signRate)
	}
	token, err := s.options.Source.SignJWT(ctx, agent, r.Audience)
	if err != nil {
		s.options.Logger.Warn("sign JWT-SVID", "agent", agent, "error", err)
		return nil, status.Error(codes.Unavailable, "control does not sign now; the daemon's log says why")
	}
	return &workload.JWTSVIDResponse{Svids: []*workload.JWTSVID{{SpiffeId: svid.ID, Svid: token}}}, nil
}

// FetchJWTBundles sends the keys that JWT-SVIDs are verified by.
func (s *Server) FetchJWTBundles(_ *workload.JWTBundlesRequest, stream workload.SpiffeWorkloadAPI_FetchJWTBundlesServer) error {
	return push(s, stream, func(string) (*workload.JWTBundlesResponse, error) {
		bundle, err := s.jwtBundle()
		if err != nil {
			return nil, err
		}
		body, err := bundle.Marshal()
		if err != nil {
			return nil, status.Error(codes.Internal, "encode bundle")
		}
		return &workload.JWTBundlesResponse{Bundles: map[string][]byte{s.domain: body}}, nil
	})
}

// ValidateJWTSVID verifies a token for a program that cannot do so itself.
func (s *Server) ValidateJWTSVID(ctx context.Context, r *workload.ValidateJWTSVIDRequest) (*workload.ValidateJWTSVIDResponse, error) {
	if _, err := s.attest(ctx); err != nil {
		return nil, err
	}
	bundle, err := s.jwtBundle()
	if err != nil {
		return nil, err
	}
	if r.Audience == "" {
		return nil, status.Error(codes.InvalidArgument, "audience: is empty")
	}
	svid, err := jwtsvid.ParseAndValidate(r.Svid, bundle, []string{r.Audience})
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	claims, err := structpb.NewStruct(svid.Claims)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, "the token has claims that are no JSON")
	}
	return &workload.ValidateJWTSVIDResponse{SpiffeId: svid.ID.String(), Claims: claims}, nil
}

func (s *Server) jwtBundle() (*jwtbundle.Bundle, error) {
	domain, err := spiffeid.TrustDomainFromString(s.options.Mesh)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	bundle := jwtbundle.New(domain)
	_, keys := s.options.Source.Bundle()
	for _, k := range keys {
		if err := bundle.AddJWTAuthority(k.ID, k.Key); err != nil {
			return nil, status.Error(codes.Internal, err.Error())
		}
	}
	return bundle, nil
}
