package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"

	"github.com/bulkhead-mesh/bulkhead/control/authority"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

// Status asks what the host says about itself.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return get[Status](ctx, c, "/v1/status", nil)
}

// Hosts lists all hosts.
func (c *Client) Hosts(ctx context.Context) ([]Host, error) {
	return get[[]Host](ctx, c, "/v1/hosts", nil)
}

// Host returns one host.
func (c *Client) Host(ctx context.Context, name string) (Host, error) {
	return get[Host](ctx, c, named("hosts", name), nil)
}

// RevokeHost voids the certificates of a host and its agents.
func (c *Client) RevokeHost(ctx context.Context, name, reason string) (authority.Change, error) {
	return change[authority.Change](ctx, c, http.MethodPost, named("hosts", name)+"/revoke", 0, RevokeRequest{reason})
}

// Agents lists all agents.
func (c *Client) Agents(ctx context.Context) ([]Agent, error) {
	return get[[]Agent](ctx, c, "/v1/agents", nil)
}

// Agent returns one agent.
func (c *Client) Agent(ctx context.Context, name string) (Agent, error) {
	return get[Agent](ctx, c, named("agents", name), nil)
}

// RevokeAgent voids the certificates of an agent.
func (c *Client) RevokeAgent(ctx context.Context, name, reason string) (authority.Change, error) {
	return change[authority.Change](ctx, c, http.MethodPost, named("agents", name)+"/revoke", 0, RevokeRequest{reason})
}

// Relabel replaces the labels of an agent. Match is the policy version that must be current, 0 for any; so it is
// for all changes below.
func (c *Client) Relabel(ctx context.Context, name string, labels segment.Labels, match uint64) (authority.Change, error) {
	return change[authority.Change](ctx, c, http.MethodPut, named("agents", name)+"/labels", match, LabelsRequest{labels})
}

// Segments lists all segments and their agents.
func (c *Client) Segments(ctx context.Context) ([]SegmentView, error) {
	return get[[]SegmentView](ctx, c, "/v1/segments", nil)
}

// Segment returns one segment and its agents.
func (c *Client) Segment(ctx context.Context, name string) (SegmentView, error) {
	return get[SegmentView](ctx, c, named("segments", name), nil)
}

// CreateSegment adds a segment.
func (c *Client) CreateSegment(ctx context.Context, s segment.Segment, match uint64) (authority.Change, error) {
	return change[authority.Change](ctx, c, http.MethodPost, "/v1/segments", match, s)
}

// DeleteSegment removes a segment.
func (c *Client) DeleteSegment(ctx context.Context, name string, match uint64) (authority.Change, error) {
	return change[authority.Change](ctx, c, http.MethodDelete, named("segments", name), match, nil)
}

// Rules lists all rules.
func (c *Client) Rules(ctx context.Context) ([]segment.Rule, error) {
	return get[[]segment.Rule](ctx, c, "/v1/rules", nil)
}

// CreateRule adds a rule.
func (c *Client) CreateRule(ctx context.Context, r segment.Rule, match uint64) (authority.Change, error) {
	return change[authority.Change](ctx, c, http.MethodPost, "/v1/rules", match, r)
}

// DeleteRule removes a rule.
func (c *Client) DeleteRule(ctx context.Context, name string, match uint64) (authority.Change, error) {
	return change[authority.Change](ctx, c, http.MethodDelete, named("rules", name), match, nil)
}

// Policy returns the current policy.
func (c *Client) Policy(ctx context.Context) (PolicyDocument, error) {
	return get[PolicyDocument](ctx, c, "/v1/policy", nil)
}

// PolicyAt returns one policy version.
func (c *Client) PolicyAt(ctx context.Context, version uint64) (PolicyDocument, error) {
	return get[PolicyDocument](ctx, c, "/v1/policy/versions/"+strconv.FormatUint(version, 10), nil)
}

// PutPolicy replaces the policy.
func (c *Client) PutPolicy(ctx context.Context, document []byte, match uint64) (authority.Change, error) {
	var out authority.Change
	err := c.call(ctx, request{method: http.MethodPut, path: "/v1/policy", body: document, content: contentYAML,
		match: match, force: match == 0}, &out)
	return out, err
}

// CheckPolicy says what PutPolicy would do.
func (c *Client) CheckPolicy(ctx context.Context, document []byte) (Check, error) {
	var out Check
	err := c.call(ctx, request{method: http.MethodPost, path: "/v1/policy/check", body: document, content: contentYAML}, &out)
	return out, err
}

// Versions lists all policy versions, oldest first.
func (c *Client) Versions(ctx context.Context) ([]authority.VersionInfo, error) {
	return get[[]authority.VersionInfo](ctx, c, "/v1/policy/versions", nil)
}

// Rollback makes a new version with the content of an old one.
func (c *Client) Rollback(ctx context.Context, version uint64) (authority.Change, error) {
	return change[authority.Change](ctx, c, http.MethodPost, "/v1/policy/rollback", 0, RollbackRequest{version})
}

// Explain says whether one agent may open a port of another, and why.
func (c *Client) Explain(ctx context.Context, from, to, port string) (Explanation, error) {
	return get[Explanation](ctx, c, "/v1/policy/explain", url.Values{"from": {from}, "to": {to}, "port": {port}})
}

// Reach says whom an agent can get to, directly and through others.
func (c *Client) Reach(ctx context.Context, agent string) (Reach, error) {
	return get[Reach](ctx, c, "/v1/policy/reach", url.Values{"agent": {agent}})
}

// Rollout says which hosts enforce a policy version, 0 for the newest.
func (c *Client) Rollout(ctx context.Context, version uint64) (Rollout, error) {
	return get[Rollout](ctx, c, "/v1/policy/rollout", url.Values{"version": {strconv.FormatUint(version, 10)}})
}

// Tokens lists all tokens, without their secrets.
func (c *Client) Tokens(ctx context.Context) ([]authority.TokenInfo, error) {
	return get[[]authority.TokenInfo](ctx, c, "/v1/tokens", nil)
}

// CreateToken makes a join token or an API token.
func (c *Client) CreateToken(ctx context.Context, r TokenRequest) (authority.CreatedToken, error) {
	return change[authority.CreatedToken](ctx, c, http.MethodPost, "/v1/tokens", 0, r)
}

// RevokeToken makes a token worthless.
func (c *Client) RevokeToken(ctx context.Context, id string) error {
	return c.call(ctx, request{method: http.MethodDelete, path: named("tokens", id)}, nil)
}

// CreateOperator certifies an operator's key.
func (c *Client) CreateOperator(ctx context.Context, r OperatorRequest) (OperatorCertificate, error) {
	return change[OperatorCertificate](ctx, c, http.MethodPost, "/v1/operators", 0, r)
}

// Operators lists all operators.
func (c *Client) Operators(ctx context.Context) ([]authority.OperatorInfo, error) {
	return get[[]authority.OperatorInfo](ctx, c, "/v1/operators", nil)
}

// RevokeOperator voids the certificates of an operator.
func (c *Client) RevokeOperator(ctx context.Context, name, reason string) (authority.Change, error) {
	return change[authority.Change](ctx, c, http.MethodPost, named("operators", name)+"/revoke", 0, RevokeRequest{reason})
}

// Renew renews the certificates of the host whose certificate the client presents, and of its agents.
func (c *Client) Renew(ctx context.Context, r authority.RenewRequest) (*authority.Enrollment, error) {
	return change[*authority.Enrollment](ctx, c, http.MethodPost, "/v1/renew", 0, r)
}

// Audit returns the newest audit entries, oldest first.
func (c *Client) Audit(ctx context.Context, limit int) ([]authority.AuditEntry, error) {
	return get[[]authority.AuditEntry](ctx, c, "/v1/audit", url.Values{"limit": {strconv.Itoa(limit)}})
}

// Events calls fn with what happens from now on, until ctx or the stream ends, or fn returns an error. The first
// event says the host's phase.
func (c *Client) Events(ctx context.Context, fn func(Event) error) error {
	resp, err := c.send(ctx, request{method: http.MethodGet, path: "/v1/events"})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, maxEventLine)
	for lines.Scan() {
		data, ok := bytes.CutPrefix(lines.Bytes(), []byte("data: "))
		if !ok {
			continue
		}
		var e Event
		if err := json.Unmarshal(data, &e); err != nil {
			return fmt.Errorf("read event: %w", err)
		}
		if err := fn(e); err != nil {
			return err
		}
	}
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("%s is %w any more: the stream ended", c.where, ErrUnreachable)
}

func named(resource, name string) string { return "/v1/" + resource + "/" + url.PathEscape(name) }
