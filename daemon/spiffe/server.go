// Package spiffe serves the SPIFFE Workload API to the agents of a host: each gets its own X.509-SVID and JWT-SVIDs, and
// what it needs to verify those of others (SPIFFE Workload API, https://spiffe.io/docs/latest/spiffe-specs/).
package spiffe

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

const (
	maxConns    = 32 // of one agent
	maxStreams  = 16 // of one connection
	maxMessage  = 64 << 10
	maxHeaders  = 8 << 10
	helloTime   = 5 * time.Second // for the first bytes of a connection
	maxIdleTime = time.Minute
)

// SVID is an agent's identity document and its key.
type SVID struct {
	ID    string   // spiffe://...
	Chain [][]byte // DER, leaf first, without the root
	Key   crypto.Signer
}

// JWTKey verifies JWT-SVIDs.
type JWTKey struct {
	ID  string
	Key crypto.PublicKey
}

// Source is where identities come from.
type Source interface {
	SVID(agent string) (SVID, error)
	Bundle() (roots [][]byte, keys []JWTKey)
	Changed() <-chan struct{} // closed when an answer of the two, or of Attest, may have changed since this call
	SignJWT(ctx context.Context, agent string, audience []string) (string, error)
}

// Options say whom to serve.
type Options struct {
	Mesh     string       // the trust domain
	Listener net.Listener // of a Unix socket; Run closes it
	Source   Source
	// Attest says which agent the process on the other end is now; empty for none. It is asked for every answer.
	Attest func(*net.UnixConn) (agent string, err error)
	Logger *slog.Logger
}

// Server serves the API.
type Server struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	options Options
	domain  string // spiffe://mesh
	conns   quota
	signing sync.Map // *rate.Limiter by agent
}

// New makes a server. It starts nothing.
func New(o Options) *Server {
	return &Server{options: o, domain: "spiffe://" + o.Mesh, conns: quota{each: maxConns}}
}

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	server := grpc.NewServer(
		grpc.Creds(peerCredentials{s}), grpc.MaxConcurrentStreams(maxStreams), grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxHeaderListSize(maxHeaders), grpc.ConnectionTimeout(helloTime), grpc.WaitForHandlers(true),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: maxIdleTime}),
		grpc.UnaryInterceptor(requireHeader), grpc.StreamInterceptor(requireStreamHeader),
	)
	workload.RegisterSpiffeWorkloadAPIServer(server, s)
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(unixListener{s.options.Listener}) }()
	select {
	case err := <-ended:
		server.Stop()
		return fmt.Errorf("serve SPIFFE Workload API: %w", err)
	case <-ctx.Done():
		server.Stop()
		if err := <-ended; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			return fmt.Errorf("serve SPIFFE Workload API: %w", err)
		}
		return nil
	}
}

// requireHeader keeps out what speaks HTTP by accident, as a browser that was sent here (Workload Endpoint, section 3).
func requireHeader(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if err := checkHeader(ctx); err != nil {
		return nil, err
	}
	return next(ctx, req)
}

func requireStreamHeader(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if err := checkHeader(stream.Context()); err != nil {
		return err
	}
	return next(srv, stream)
}

func checkHeader(ctx context.Context) error {
	md, _ := metadata.FromIncomingContext(ctx)
	if v := md.Get("workload.spiffe.io"); len(v) != 1 || v[0] != "true" {
		return status.Error(codes.InvalidArgument, "security header missing from request")
	}
	return nil
}

// attest is the agent that asks.
func (s *Server) attest(ctx context.Context) (string, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return "", status.Error(codes.Internal, "no peer")
	}
	conn, ok := p.AuthInfo.(connInfo)
	if !ok {
		return "", status.Error(codes.Internal, errNoUnix.Error())
	}
	agent, err := s.options.Attest(conn.UnixConn)
	if err != nil {
		s.options.Logger.Debug("attest a process", "error", err) // it may have ended meanwhile
		return "", status.Error(codes.PermissionDenied, "no identity issued: this process cannot be told")
	}
	if agent == "" {
		return "", status.Error(codes.PermissionDenied, "no identity issued: this process is no agent's")
	}
	return agent, nil
}

// svid is an agent's own.
func (s *Server) svid(agent string) (SVID, error) {
	svid, err := s.options.Source.SVID(agent)
	if err != nil {
		return SVID{}, status.Error(codes.PermissionDenied, "no identity issued: "+err.Error())
	}
	return svid, nil
}
