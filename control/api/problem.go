package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"syscall"

	"github.com/danielgtaylor/huma/v2"

	"github.com/bulkhead-mesh/bulkhead/control/authority"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

// The codes of Problem that are the API's own, beside those of package authority. Append only: programs branch
// on them.
const (
	CodeUnauthenticated = "unauthenticated"
	CodeNoControl       = "no-control"
	CodeNoPolicy        = "no-policy"
	CodeRateLimited     = "rate-limited"
	CodeTooLarge        = "too-large"
	CodeBrowser         = "browser-refused"
	CodeIfMatch         = "if-match-required"
	CodeUnreachable     = "unreachable"
	CodeStorageFull     = "storage-full"
	CodeInternal        = "internal"
)

// Problem is an RFC 9457 problem: why a request was refused. It is the error of client methods, too.
type Problem struct {
	Type     string               `json:"type,omitempty" doc:"about:blank; code says what kind of problem it is"`
	Title    string               `json:"title"`
	Status   int                  `json:"status" doc:"HTTP status"`
	Detail   string               `json:"detail" doc:"what is wrong, for people"`
	Code     string               `json:"code" doc:"what is wrong, for programs"`
	Field    string               `json:"field,omitempty" doc:"the part of the request at fault"`
	Fix      string               `json:"fix,omitempty" doc:"what to do about it"`
	Problems []segment.Problem    `json:"problems,omitempty" doc:"of a refused policy"`
	Tests    []segment.TestResult `json:"tests,omitempty" doc:"of a policy whose tests fail"`
	retry    int                  // seconds to wait; 0: no hint
}

// Error is the field, the detail and the fix, and each problem of a policy on a line of its own.
func (p *Problem) Error() string {
	var b strings.Builder
	if p.Field != "" && !strings.HasPrefix(p.Detail, p.Field) {
		b.WriteString(p.Field + ": ")
	}
	b.WriteString(p.Detail)
	if p.Fix != "" {
		b.WriteString(" (fix: " + p.Fix + ")")
	}
	for _, problem := range p.Problems {
		if strings.Contains(p.Detail, problem.Message) {
			continue
		}
		b.WriteString("\n  " + problem.String())
	}
	for _, t := range p.Tests {
		if !t.Pass {
			fmt.Fprintf(&b, "\n  test %s -> %s %s: expected %s, got %s", t.Test.From, t.Test.To, t.Test.Port, t.Test.Expect, t.Got)
			if t.Detail != "" {
				b.WriteString(": " + t.Detail)
			}
		}
	}
	return b.String()
}

// GetStatus is the HTTP status; huma asks for it.
func (p *Problem) GetStatus() int { return p.Status }

// ContentType makes answers application/problem+json; huma asks for it.
func (p *Problem) ContentType(string) string { return "application/problem+json" }

// GetHeaders tells rate-limited clients when to come again; huma asks for it.
func (p *Problem) GetHeaders() http.Header {
	if p.retry == 0 {
		return nil
	}
	return http.Header{"Retry-After": {fmt.Sprint(p.retry)}}
}

func newProblem(status int, code, detail, fix string) *Problem {
	return &Problem{Title: http.StatusText(status), Status: status, Code: code, Detail: detail, Fix: fix}
}

// write answers a request outside of huma's handlers.
func (p *Problem) write(w http.ResponseWriter) {
	for key, values := range p.GetHeaders() {
		w.Header()[key] = values
	}
	w.Header().Set("Content-Type", p.ContentType(""))
	w.WriteHeader(p.Status)
	// The client may be gone; there is no one to tell.
	_ = json.NewEncoder(w).Encode(p)
}

var statusOf = map[string]int{
	authority.CodeDenied:            http.StatusForbidden,
	authority.CodeInvalid:           http.StatusUnprocessableEntity,
	authority.CodeNotFound:          http.StatusNotFound,
	authority.CodeExists:            http.StatusConflict,
	authority.CodeNameTaken:         http.StatusConflict,
	authority.CodeRevoked:           http.StatusForbidden,
	authority.CodeVersionConflict:   http.StatusPreconditionFailed,
	authority.CodePolicyRefused:     http.StatusUnprocessableEntity,
	authority.CodeTestsFailed:       http.StatusUnprocessableEntity,
	authority.CodeTokenUnknown:      http.StatusUnauthorized,
	authority.CodeTokenExpired:      http.StatusUnauthorized,
	authority.CodeTokenUsed:         http.StatusUnauthorized,
	authority.CodeTokenTampered:     http.StatusUnauthorized,
	authority.CodeLabelOutsideGrant: http.StatusForbidden,
	authority.CodeClockSkew:         http.StatusUnprocessableEntity,
	authority.CodeExhausted:         http.StatusConflict,
}

// problemOf turns a refusal into a problem. Any other error is ours: it is logged, and the client learns no more
// than that.
func (s *Server) problemOf(ctx context.Context, err error) *Problem {
	if p := new(Problem); errors.As(err, &p) {
		return p
	}
	if refusal := new(authority.Error); errors.As(err, &refusal) {
		status, ok := statusOf[refusal.Code]
		if !ok {
			status = http.StatusUnprocessableEntity
		}
		p := newProblem(status, refusal.Code, refusal.Message, refusal.Fix)
		p.Field, p.Problems, p.Tests = refusal.Field, refusal.Problems, refusal.Tests
		return p
	}
	if errors.Is(err, ErrUnreachable) { // what this host asks control for, for whom asks here
		return newProblem(http.StatusBadGateway, CodeUnreachable, err.Error(), "")
	}
	s.log.ErrorContext(ctx, "request failed", "who", callerOf(ctx).Name, "error", err)
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return newProblem(http.StatusInsufficientStorage, CodeStorageFull, "no space left on the disk of control: nothing was changed",
			"free some in the state directory of the control host, then repeat")
	}
	return newProblem(http.StatusInternalServerError, CodeInternal, "the daemon could not do that",
		"see its log, and that of control's daemon; full disks and broken state are named there")
}

// newHumaError makes the errors that huma itself finds, in parameters and bodies, problems like all others.
func newHumaError(status int, message string, errs ...error) huma.StatusError {
	p := newProblem(status, authority.CodeInvalid, message, "")
	switch status {
	case http.StatusRequestEntityTooLarge:
		p.Code = CodeTooLarge
	case http.StatusInternalServerError:
		p.Code, errs = CodeInternal, nil
	}
	for i, err := range errs {
		detail := new(huma.ErrorDetail)
		if errors.As(err, &detail) {
			if i == 0 {
				p.Field = detail.Location
				p.Detail = detail.Message
			} else {
				p.Detail += "; " + detail.Location + ": " + detail.Message
			}
		} else if err != nil {
			p.Detail += ": " + err.Error()
		}
	}
	return p
}

// huma has one constructor of errors for the whole program.
func init() { huma.NewError = newHumaError }
