package api

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/bulkhead-mesh/bulkhead/control/authority"
)

// maxLine bounds the one line that answers a run, bytes.
const maxLine = 64 << 10

// Declare has more agents on the host whose certificate the client presents, or certifies those again.
func (c *Client) Declare(ctx context.Context, r authority.DeclareRequest) (*authority.Declared, error) {
	return change[*authority.Declared](ctx, c, http.MethodPost, "/v1/declare", 0, r)
}

// Withdraw gives agents up, of the host whose certificate the client presents.
func (c *Client) Withdraw(ctx context.Context, r authority.WithdrawRequest) error {
	return c.post(ctx, "/v1/withdraw", r)
}

// SignJWT returns a JWT-SVID for an agent of the host whose certificate the client presents.
func (c *Client) SignJWT(ctx context.Context, r authority.JWTRequest) (string, error) {
	signed, err := change[SignedJWT](ctx, c, http.MethodPost, "/v1/jwt", 0, r)
	return signed.Token, err
}

// ApproveAgent lets a pending agent take part. Match is the policy version that must be current, 0 for any.
func (c *Client) ApproveAgent(ctx context.Context, name string, r authority.ApproveRequest, match uint64) (Agent, error) {
	return change[Agent](ctx, c, http.MethodPost, named("agents", name)+"/approve", match, r)
}

// AddLocalAgent declares an agent of the host whose socket the client has.
func (c *Client) AddLocalAgent(ctx context.Context, d AgentDeclaration) (LocalAgent, error) {
	return change[LocalAgent](ctx, c, http.MethodPost, "/v1/local/agents", 0, d)
}

// RemoveLocalAgent gives an agent of that host up.
func (c *Client) RemoveLocalAgent(ctx context.Context, name string) error {
	return c.call(ctx, request{method: http.MethodDelete, path: named("local/agents", name)}, nil)
}

// LocalAgents lists the agents of that host.
func (c *Client) LocalAgents(ctx context.Context) ([]LocalAgent, error) {
	return get[[]LocalAgent](ctx, c, "/v1/local/agents", nil)
}

// Whois says who is behind an overlay address, with or without a port.
func (c *Client) Whois(ctx context.Context, addr string) (Whois, error) {
	return get[Whois](ctx, c, "/v1/whois", url.Values{"addr": {addr}})
}

// Run makes the calling process, and all that it starts, an agent's; the client is one of the agents' socket. The caller
// closes running when its command has ended.
func (c *Client) Run(ctx context.Context, r RunRequest) (scope RunScope, running io.Closer, err error) {
	body, err := json.Marshal(r)
	if err != nil {
		return RunScope{}, nil, fmt.Errorf("make request: %w", err)
	}
	resp, err := c.send(ctx, request{method: http.MethodPost, path: "/v1/run", body: body, content: contentJSON})
	if err != nil {
		return RunScope{}, nil, err
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxLine)).Decode(&scope); err != nil {
		_ = resp.Body.Close() // the error is the other one
		return RunScope{}, nil, fmt.Errorf("read the answer of %s: %w", c.where, err)
	}
	return scope, resp.Body, nil
}

// post sends in, and expects no answer.
func (c *Client) post(ctx context.Context, path string, in any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("make request: %w", err)
	}
	return c.call(ctx, request{method: http.MethodPost, path: path, body: body, content: contentJSON}, nil)
}
