package spiffe

import (
	"bytes"
	"context"
	"crypto/x509"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// FetchX509SVID sends the agent's SVID and the mesh's bundle, and again whenever one of them changes.
func (s *Server) FetchX509SVID(_ *workload.X509SVIDRequest, stream workload.SpiffeWorkloadAPI_FetchX509SVIDServer) error {
	return push(s, stream, func(agent string) (*workload.X509SVIDResponse, error) {
		svid, err := s.svid(agent)
		if err != nil {
			return nil, err
		}
		key, err := x509.MarshalPKCS8PrivateKey(svid.Key)
		if err != nil {
			return nil, status.Error(codes.Internal, "encode key")
		}
		roots, _ := s.options.Source.Bundle()
		return &workload.X509SVIDResponse{Svids: []*workload.X509SVID{{
			SpiffeId: svid.ID, X509Svid: bytes.Join(svid.Chain, nil), X509SvidKey: key, Bundle: bytes.Join(roots, nil),
		}}}, nil
	})
}

// FetchX509Bundles sends the certificates that X.509-SVIDs are verified by.
func (s *Server) FetchX509Bundles(_ *workload.X509BundlesRequest, stream workload.SpiffeWorkloadAPI_FetchX509BundlesServer) error {
	return push(s, stream, func(string) (*workload.X509BundlesResponse, error) {
		roots, _ := s.options.Source.Bundle()
		return &workload.X509BundlesResponse{Bundles: map[string][]byte{s.domain: bytes.Join(roots, nil)}}, nil
	})
}

// push sends what make gives the asking agent, and again when it gives something else, until the stream ends, make refuses,
// or the process is no longer that agent's.
func push[T proto.Message](s *Server, stream interface {
	Send(T) error
	Context() context.Context
}, make func(agent string) (T, error)) error {
	asker := ""
	var sent T
	for {
		changed := s.options.Source.Changed()
		agent, err := s.attest(stream.Context())
		if err != nil {
			return err
		}
		first := asker == ""
		if !first && agent != asker {
			return status.Error(codes.PermissionDenied, "this process is another agent's now")
		}
		next, err := make(agent)
		if err != nil {
			return err
		}
		if first || !proto.Equal(sent, next) {
			if err := stream.Send(next); err != nil {
				return err
			}
			asker, sent = agent, next
		}
		select {
		case <-stream.Context().Done():
			return stream.Context().Err()
		case <-changed:
		}
	}
}
