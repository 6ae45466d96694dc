package api

import (
	"context"
	"encoding/hex"
	"net/http"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/bulkhead-mesh/bulkhead/control/authority"
	"github.com/bulkhead-mesh/bulkhead/overlay/signed"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

// MatchInput is the policy version that a change was made from.
type MatchInput struct {
	IfMatch string `header:"If-Match" maxLength:"32" example:"\"7\"" doc:"the ETag of the policy that was read; a newer one makes the change fail with 412. * or none: any"`
}

// version is the expected version, 0 for any.
func (m MatchInput) version() (uint64, error) {
	if m.IfMatch == "" || m.IfMatch == "*" {
		return 0, nil
	}
	text := strings.Trim(strings.TrimPrefix(m.IfMatch, "W/"), `"`)
	v, err := strconv.ParseUint(text, 10, 64)
	if err != nil || v == 0 {
		p := newProblem(http.StatusUnprocessableEntity, authority.CodeInvalid, "is not the ETag of a policy", `send what GET /v1/policy gave, like "7"`)
		p.Field = "If-Match"
		return 0, p
	}
	return v, nil
}

func etag(version uint64) string { return strconv.Quote(strconv.FormatUint(version, 10)) }

type documentInput struct {
	RawBody []byte `contentType:"application/yaml" doc:"the policy document; JSON is YAML"`
}

type policyOutput struct {
	ETag string `header:"ETag"`
	Body PolicyDocument
}

func (s *Server) registerPolicy() {
	register(s, operation("getPolicy", http.MethodGet, "/v1/policy", "The policy", read),
		func(context.Context, *struct{}) (*policyOutput, error) {
			p, err := s.policy()
			if err != nil {
				return nil, err
			}
			return &policyOutput{ETag: etag(p.Version), Body: policyDocument(p)}, nil
		})
	put := operation("putPolicy", http.MethodPut, "/v1/policy", "Replace the policy", operate)
	put.Errors = append(put.Errors, http.StatusPreconditionFailed, http.StatusPreconditionRequired)
	register(s, put, func(ctx context.Context, in *struct {
		MatchInput
		documentInput
	}) (*answer[authority.Change], error) {
		if in.IfMatch == "" {
			return nil, newProblem(http.StatusPreconditionRequired, CodeIfMatch, "replacing the policy needs If-Match",
				"send the ETag of the policy that you changed, or * to replace any")
		}
		match, err := in.version()
		if err != nil {
			return nil, err
		}
		c, err := s.options.Authority.PutPolicy(callerOf(ctx).Principal, match, string(in.RawBody))
		return &answer[authority.Change]{c}, err
	})
	register(s, operation("checkPolicy", http.MethodPost, "/v1/policy/check", "What replacing the policy would do",
		ask),
		func(ctx context.Context, in *struct{ documentInput }) (*answer[Check], error) {
			if err := s.parsing.Acquire(ctx, 1); err != nil {
				return nil, err
			}
			defer s.parsing.Release(1)
			check, err := s.check(string(in.RawBody))
			return &answer[Check]{check}, err
		})
	register(s, operation("listVersions", http.MethodGet, "/v1/policy/versions", "All policy versions, oldest first",
		ask),
		func(context.Context, *struct{}) (*answer[[]authority.VersionInfo], error) {
			versions, err := s.options.Authority.Versions()
			return &answer[[]authority.VersionInfo]{versions}, err
		})
	register(s, operation("getVersion", http.MethodGet, "/v1/policy/versions/{version}", "One policy version",
		ask),
		func(_ context.Context, in *struct {
			Version uint64 `path:"version"`
		}) (*policyOutput, error) {
			p, err := s.options.Authority.PolicyAt(in.Version)
			if err != nil {
				return nil, err
			}
			return &policyOutput{ETag: etag(p.Version), Body: policyDocument(p)}, nil
		})
	register(s, operation("rollbackPolicy", http.MethodPost, "/v1/policy/rollback", "Make a new version with the content of an old one", operate),
		func(ctx context.Context, in *struct{ Body RollbackRequest }) (*answer[authority.Change], error) {
			c, err := s.options.Authority.Rollback(callerOf(ctx).Principal, in.Body.Version)
			return &answer[authority.Change]{c}, err
		})
}

func policyDocument(p *signed.VerifiedPolicy) PolicyDocument {
	d := PolicyDocument{Version: p.Version, Digest: hex.EncodeToString(p.Digest[:]), Issued: p.Issued, Author: p.Author,
		Document: p.Document, Policy: p.Parsed, Revoked: []Revocation{}}
	for _, r := range p.Revocations {
		d.Revoked = append(d.Revoked, Revocation{ID: r.ID, Before: r.Before, Reason: r.Reason})
	}
	return d
}

// check asks the authority what it would say, and adds the reach of the agents whose reach would change.
func (s *Server) check(document string) (Check, error) {
	result, err := s.options.Authority.Check(document)
	if err != nil {
		return Check{}, err
	}
	check := Check{CheckResult: result, Reach: []AgentReach{}}
	if result.Policy == nil {
		return check, nil
	}
	agents, err := s.policyAgents()
	if err != nil {
		return Check{}, err
	}
	seen := map[string]bool{}
	for _, list := range [][]segment.Change{result.Difference.Gained, result.Difference.Lost} {
		for _, c := range list {
			if seen[c.From] || len(check.Reach) == maxCheckReach {
				continue
			}
			seen[c.From] = true
			reached, err := result.Policy.Reach(c.From, agents, s.now())
			if err != nil {
				return Check{}, err
			}
			check.Reach = append(check.Reach, AgentReach{Agent: c.From, Reached: reached})
		}
	}
	return check, nil
}

// maxCheckReach bounds the work of a check: each agent costs a search through the mesh.
const maxCheckReach = 32

var _ huma.StatusError = (*Problem)(nil)
