// Package spiffe serves the SPIFFE Workload API to the agents of a host: each gets its own X.509-SVID and JWT-SVIDs, and
// what it needs to verify those of others (SPIFFE Workload API, https://spiffe.io/docs/latest/spiffe-specs/).
package spiffe

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

const (
	maxConns   = 512
	maxStreams = 16 // of one connection
	maxMessage = 64 << 10
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
	Changed() <-chan struct{} // closed when an answer of the two may have changed since this call
	SignJWT(ctx context.Context, agent string, audience []string) (string, error)
}

// Options say whom to serve.
type Options struct {
	Mesh     string // the trust domain
	Listener net.Listener
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
}

// New makes a server. It starts nothing.
func New(o Options) *Server { return &Server{options: o, domain: "spiffe://" + o.Mesh} }

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	server := grpc.NewServer(
		grpc.Creds(peerCredentials{}), grpc.MaxConcurrentStreams(maxStreams), grpc.MaxRecvMsgSize(maxMessage),
		grpc.UnaryInterceptor(requireHeader), grpc.StreamInterceptor(requireStreamHeader),
	)
	workload.RegisterSpiffeWorkloadAPIServer(server, s)
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(&bounded{s.options.Listener, make(chan struct{}, maxConns)}) }()
	select {
	case err := <-ended:
		return fmt.Errorf("serve SPIFFE: %w", err)
	case <-ctx.Done():
		server.Stop()
		return serveEnd(<-ended)
	}
}

func serveEnd(err error) error {
	if err == nil || errors.Is(err, grpc.ErrServerStopped) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
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
		return "", status.Error(codes.Internal, "no Unix socket")
	}
	agent, err := s.options.Attest(conn.UnixConn)
	if err != nil {
		s.options.Logger.Warn("attest a process", "error", err)
		return "", status.Error(codes.PermissionDenied, "this process cannot be told")
	}
	if agent == "" {
		return "", status.Error(codes.PermissionDenied, "no identity issued: this process is no agent's")
	}
	return agent, nil
}

// svid is the asking agent's own.
func (s *Server) svid(ctx context.Context) (SVID, error) {
	agent, err := s.attest(ctx)
	if err != nil {
		return SVID{}, err
	}
	svid, err := s.options.Source.SVID(agent)
	if err != nil {
		return SVID{}, status.Error(codes.PermissionDenied, "no identity issued: "+err.Error())
	}
	return svid, nil
}

func marshalKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, status.Error(codes.Internal, "encode key")
	}
	return der, nil
}

// connInfo carries a connection to those who ask whose it is.
type connInfo struct{ *net.UnixConn }

// AuthType names the scheme, as grpc wants.
func (connInfo) AuthType() string { return "unix" }

// peerCredentials take every connection: the kernel says who is on the other end.
type peerCredentials struct{}

func (peerCredentials) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	unix, ok := conn.(*slotConn)
	if !ok {
		return nil, nil, errors.New("no Unix socket")
	}
	return conn, connInfo{unix.UnixConn}, nil
}

func (peerCredentials) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("not a client")
}

func (peerCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "unix"}
}
func (c peerCredentials) Clone() credentials.TransportCredentials { return c }
func (peerCredentials) OverrideServerName(string) error           { return nil }
