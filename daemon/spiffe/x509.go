package spiffe

import (
	"bytes"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/protobuf/proto"
)

// FetchX509SVID sends the agent's SVID and the mesh's bundle, and again whenever one of them changes.
func (s *Server) FetchX509SVID(_ *workload.X509SVIDRequest, stream workload.SpiffeWorkloadAPI_FetchX509SVIDServer) error {
	return push(s, stream, func() (*workload.X509SVIDResponse, error) {
		svid, err := s.svid(stream.Context())
		if err != nil {
			return nil, err
		}
		key, err := marshalKey(svid.Key)
		if err != nil {
			return nil, err
		}
		roots, _ := s.options.Source.Bundle()
		return &workload.X509SVIDResponse{Svids: []*workload.X509SVID{{
			SpiffeId: svid.ID, X509Svid: bytes.Join(svid.Chain, nil), X509SvidKey: key, Bundle: bytes.Join(roots, nil),
		}}}, nil
	})
}

// FetchX509Bundles sends the certificates that X.509-SVIDs are verified by.
func (s *Server) FetchX509Bundles(_ *workload.X509BundlesRequest, stream workload.SpiffeWorkloadAPI_FetchX509BundlesServer) error {
	return push(s, stream, func() (*workload.X509BundlesResponse, error) {
		if _, err := s.attest(stream.Context()); err != nil {
			return nil, err
		}
		roots, _ := s.options.Source.Bundle()
		return &workload.X509BundlesResponse{Bundles: map[string][]byte{s.domain: bytes.Join(roots, nil)}}, nil
	})
}

// push sends what make gives, and again when it gives something else, until the stream ends or make refuses.
func push[T proto.Message](s *Server, stream interface {
	Send(T) error
	grpcStream
}, make func() (T, error)) error {
	var sent T
	first := true
	for {
		changed := s.options.Source.Changed()
		next, err := make()
		if err != nil {
			return err
		}
		if first || !proto.Equal(sent, next) {
			if err := stream.Send(next); err != nil {
				return err
			}
			sent, first = next, false
		}
		select {
		case <-stream.Context().Done():
			return stream.Context().Err()
		case <-changed:
		}
	}
}
