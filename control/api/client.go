package api

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/bulkhead-mesh/bulkhead/control/authority"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
)

// ErrUnreachable is returned when the daemon, or control, cannot be reached.
var ErrUnreachable = errors.New("not reachable")

const (
	dialTimeout  = 5 * time.Second
	callTimeout  = 30 * time.Second
	maxAnswer    = 64 << 20 // bytes
	defaultPort  = "7443"
	contentJSON  = "application/json"
	contentYAML  = "application/yaml"
	maxEventLine = 64 << 10

	enrollAttempts = 30
)

// DialOptions say where the API is: on a local socket, or on TCP with a credential.
type DialOptions struct {
	Socket     string           // path of the local socket
	Server     string           // host[:port] or https://host[:port]; empty with a token: the addresses in it
	Credential *Credential      // for Server
	Now        func() time.Time // nil is time.Now

	// Certificate and Roots are another form of Credential: that of a host, whose certificate changes as it renews.
	Certificate func() *tls.Certificate
	Mesh        string
	Roots       []*x509.Certificate
}

// Client calls the API. Its methods are safe for concurrent use; their errors are a *Problem, or wrap
// ErrUnreachable, ErrForeign or a *ClockError.
type Client struct {
	http  *http.Client
	base  string // scheme and authority of URLs
	where string // for error messages
	token string // bearer
}

// Dial makes a client. It connects at the first call.
func Dial(o DialOptions) (*Client, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Server == "" && o.Credential == nil && o.Certificate == nil {
		return dialSocket(o.Socket), nil
	}
	a := anchor{mesh: o.Mesh, roots: o.Roots}
	certificate, token := o.Certificate, ""
	if c := o.Credential; c != nil && c.Token != nil {
		a.mesh, a.fingerprint, token = c.Token.Mesh, c.Token.Root, c.Token.String()
		if o.Server == "" && len(c.Token.Addresses) > 0 {
			o.Server = c.Token.Addresses[0]
		}
	} else if c != nil {
		id, err := chainMesh(c.Chain)
		if err != nil {
			return nil, err
		}
		cert := identity.TLSCertificate(c.Key, c.Chain)
		a.mesh, a.roots, certificate = id, c.Roots, func() *tls.Certificate { return &cert }
	} else if certificate == nil {
		return nil, errors.New("--server needs --credential (fix: name a credential file, or set BULKHEAD_CREDENTIAL)")
	}
	address, err := serverAddress(o.Server)
	if err != nil {
		return nil, err
	}
	return dialTLS(address, a, certificate, token, o.Now), nil
}

func dialSocket(path string) *Client {
	dialer := &net.Dialer{Timeout: dialTimeout}
	return &Client{base: "http://local", where: "the daemon at " + path, http: &http.Client{
		CheckRedirect: noRedirect,
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", path)
		}},
	}}
}

func dialTLS(address string, a anchor, certificate func() *tls.Certificate, token string, now func() time.Time) *Client {
	return &Client{base: "https://" + address, where: "control at " + address, token: token, http: &http.Client{
		CheckRedirect: noRedirect,
		Transport: &http.Transport{
			DialContext:         (&net.Dialer{Timeout: dialTimeout}).DialContext,
			TLSClientConfig:     clientTLS(a, certificate, now),
			TLSHandshakeTimeout: dialTimeout,
			IdleConnTimeout:     idleTimeout / 2,
		},
	}}
}

// noRedirect keeps the credential from being sent anywhere else.
func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// IsLocal reports whether it asks this host's daemon on a socket.
func (c *Client) IsLocal() bool { return strings.HasPrefix(c.base, "http:") }

// Close ends idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// chainMesh is the mesh that the first certificate names.
func chainMesh(chain [][]byte) (string, error) {
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return "", fmt.Errorf("parse credential: %w", err)
	}
	if len(leaf.URIs) != 1 {
		return "", errors.New("the credential's certificate names no identity of a mesh")
	}
	id, err := identity.ParseID(leaf.URIs[0].String())
	if err != nil {
		return "", fmt.Errorf("parse credential: %w", err)
	}
	return id.Mesh, nil
}

// serverAddress turns what people write into host:port.
func serverAddress(server string) (string, error) {
	text := strings.TrimSuffix(strings.TrimPrefix(server, "https://"), "/")
	if text == "" || strings.ContainsAny(text, "/?#@") || strings.HasPrefix(server, "http://") {
		return "", fmt.Errorf("--server %q is no address of control (fix: write it like 192.0.2.1:7443)", server)
	}
	if _, _, err := net.SplitHostPort(text); err == nil {
		return text, nil
	}
	return net.JoinHostPort(strings.Trim(text, "[]"), defaultPort), nil
}

// request is one call.
type request struct {
	method  string
	path    string
	query   url.Values
	body    []byte
	content string // type of body
	match   uint64 // If-Match; 0: none
	force   bool   // If-Match: *
}

// call sends r and decodes the answer into out, unless that is nil.
func (c *Client) call(ctx context.Context, r request, out any) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := c.send(ctx, r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(out); err != nil {
		return fmt.Errorf("read the answer of %s: %w", c.where, err)
	}
	return nil
}

// send returns a good answer, whose body the caller closes, or an error.
func (c *Client) send(ctx context.Context, r request) (*http.Response, error) {
	target := c.base + r.path
	if len(r.query) > 0 {
		target += "?" + r.query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, r.method, target, bytes.NewReader(r.body))
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
	}
	if r.content != "" {
		req.Header.Set("Content-Type", r.content)
	}
	switch {
	case r.force:
		req.Header.Set("If-Match", "*")
	case r.match != 0:
		req.Header.Set("If-Match", etag(r.match))
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.failure(err)
	}
	if resp.StatusCode < 300 {
		return resp, nil
	}
	defer resp.Body.Close()
	p := new(Problem)
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(p); err != nil || p.Code == "" {
		return nil, fmt.Errorf("%s answered %s, which is no answer of this API", c.where, resp.Status)
	}
	return nil, p
}

// failure says why there was no answer.
func (c *Client) failure(err error) error {
	if clock, ok := errors.AsType[*ClockError](err); ok {
		return clock
	}
	if errors.Is(err, ErrForeign) {
		return fmt.Errorf("the server at %s is %w", strings.TrimPrefix(c.base, "https://"), inner(err))
	}
	if errors.Is(err, context.Canceled) {
		return fmt.Errorf("call %s: %w", c.where, context.Canceled)
	}
	fix := "is it running, and may you read its socket? See `systemctl status bulkhead`"
	switch {
	case errors.Is(err, fs.ErrPermission):
		fix = "ask as root"
	case strings.HasPrefix(c.base, "https"):
		fix = "check the address, the network and the firewall on the way"
	}
	return fmt.Errorf("%s is %w: %w (fix: %s)", c.where, ErrUnreachable, inner(err), fix)
}

// inner drops the URL that package http puts before a cause.
func inner(err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		return u.Err
	}
	return err
}

func get[T any](ctx context.Context, c *Client, path string, query url.Values) (T, error) {
	var out T
	err := c.call(ctx, request{method: http.MethodGet, path: path, query: query}, &out)
	return out, err
}

// change sends in as JSON and decodes the answer.
func change[T any](ctx context.Context, c *Client, method, path string, match uint64, in any) (T, error) {
	var out T
	r := request{method: method, path: path, match: match}
	if in != nil {
		body, err := json.Marshal(in)
		if err != nil {
			return out, fmt.Errorf("make request: %w", err)
		}
		r.body, r.content = body, contentJSON
	}
	err := c.call(ctx, r, &out)
	return out, err
}

// Enroll joins a mesh: it finds control by the token's addresses, verifies it by the token's fingerprint before
// anything is sent, and fills in the token's part of the request and the local time.
func Enroll(ctx context.Context, token authority.Token, r authority.EnrollRequest) (*Enrolled, error) {
	return enroll(ctx, token, r, time.Now)
}

func enroll(ctx context.Context, token authority.Token, r authority.EnrollRequest, now func() time.Time) (*Enrolled, error) {
	if len(token.Addresses) == 0 {
		return nil, errors.New("the token names no address of control (fix: create it on a control host that advertises one)")
	}
	a := anchor{mesh: token.Mesh, fingerprint: token.Root}
	r.TokenID, r.Secret = token.ID, token.Secret
	var failed []error
	for _, address := range token.Addresses {
		e, err := enrollAt(ctx, dialTLS(address, a, nil, "", now), r, now)
		if err == nil {
			return e, nil
		}
		failed = append(failed, err)
		if !errors.Is(err, ErrUnreachable) {
			break
		}
	}
	return nil, errors.Join(failed...)
}

// enrollAt asks one control host, again for a while if that has too much to do.
func enrollAt(ctx context.Context, c *Client, r authority.EnrollRequest, now func() time.Time) (*Enrolled, error) {
	defer c.Close()
	for attempt := 1; ; attempt++ {
		r.Time = now()
		e, err := change[*Enrolled](ctx, c, http.MethodPost, enrollPath, 0, r)
		if p, ok := errors.AsType[*Problem](err); !ok || p.Code != CodeRateLimited || attempt == enrollAttempts {
			return e, err
		}
		pause := time.NewTimer(time.Second)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return nil, c.failure(ctx.Err())
		}
	}
}
