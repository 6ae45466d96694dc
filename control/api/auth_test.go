package api

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/bulkhead-mesh/bulkhead/control/authority"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

func TestRolesDecideWhatACallerMay(t *testing.T) {
	w := newWorld(t)
	plan := segment.Segment{Name: "planners"}
	if err := json.Unmarshal([]byte(`{"function": "plan"}`), &plan.Match); err != nil {
		t.Fatal(err)
	}
	viewer, operator, admin := w.operator("vic", authority.RoleViewer), w.operator("alice", authority.RoleOperator), w.operator("root", authority.RoleAdmin)
	w.join("h2", "plan1", segment.Labels{"function": "plan"})

	if _, err := viewer.Hosts(t.Context()); err != nil {
		t.Errorf("viewer reads: %v", err)
	}
	_, err := viewer.CreateSegment(t.Context(), plan, 0)
	wantCode(t, err, authority.CodeDenied)
	_, err = viewer.Tokens(t.Context())
	wantCode(t, err, authority.CodeDenied)
	if _, err := operator.CreateSegment(t.Context(), plan, 0); err != nil {
		t.Errorf("operator changes policy: %v", err)
	}
	_, err = operator.RevokeHost(t.Context(), "h2", "")
	wantCode(t, err, authority.CodeDenied)
	if _, err := admin.RevokeHost(t.Context(), "h2", "stolen"); err != nil {
		t.Errorf("admin revokes: %v", err)
	}
	entries, err := viewer.Audit(t.Context(), 100)
	if err != nil {
		t.Fatal(err)
	}
	var denied, done bool
	for _, e := range entries {
		denied = denied || e.Who == "operator/vic" && e.Result == authority.CodeDenied
		done = done || e.Who == "operator/root" && e.Target == "host/h2" && strings.HasPrefix(e.From, "127.0.0.1:")
	}
	if !denied || !done {
		t.Errorf("audit has denial %v and revocation %v: %+v", denied, done, entries)
	}
}

func TestStrangersMayOnlyEnrol(t *testing.T) {
	w := newWorld(t)
	client := rawClient(t, nil)
	for _, path := range []string{"/v1/status", "/v1/policy", "/openapi.json", "/nowhere"} {
		resp, err := client.Get("https://" + w.address + path)
		wantStatus(t, resp, err, http.StatusUnauthorized)
	}
	resp, err := client.Post("https://"+w.address+"/v1/enroll", "application/json", strings.NewReader("{}"))
	wantStatus(t, resp, err, http.StatusUnprocessableEntity)
	if problem := resp.Header.Get("Content-Type"); problem != "application/problem+json" {
		t.Errorf("content type = %q", problem)
	}
}

func TestForeignCertificatesAreRefused(t *testing.T) {
	ours, theirs := newWorld(t), newWorld(t)
	resp, err := rawClient(t, theirs.certificate()).Get("https://" + ours.address + "/v1/status")
	wantStatus(t, resp, err, http.StatusUnauthorized)
	// Nor may one be used to get at the open operation.
	resp, err = rawClient(t, theirs.certificate()).Post("https://"+ours.address+"/v1/enroll", "application/json", strings.NewReader("{}"))
	wantStatus(t, resp, err, http.StatusUnauthorized)
}

// A revocation counts for the next request, on a connection that is open already too.
func TestRevokedOperatorIsOutAtOnce(t *testing.T) {
	w := newWorld(t)
	alice := w.operator("alice", authority.RoleOperator)
	if _, err := alice.Hosts(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := w.authority.RevokeOperator(root, "alice", "left"); err != nil {
		t.Fatal(err)
	}
	_, err := alice.Hosts(t.Context())
	wantCode(t, err, CodeUnauthenticated)
}

func TestBearerTokens(t *testing.T) {
	w := newWorld(t)
	token := w.token(authority.TokenRequest{Role: authority.RoleViewer})
	client := w.dial(DialOptions{Credential: &Credential{Token: &token}}) // the token knows the address
	if _, err := client.Agents(t.Context()); err != nil {
		t.Errorf("read with a token: %v", err)
	}
	_, err := client.RevokeHost(t.Context(), "h1", "")
	wantCode(t, err, authority.CodeDenied)
	join := w.token(authority.TokenRequest{})
	_, err = w.dial(DialOptions{Credential: &Credential{Token: &join}}).Agents(t.Context())
	wantCode(t, err, CodeUnauthenticated)
	if err := w.authority.RevokeToken(root, token.ID); err != nil {
		t.Fatal(err)
	}
	_, err = client.Agents(t.Context())
	wantCode(t, err, CodeUnauthenticated)
}

func TestBrowsersAreRefused(t *testing.T) {
	w := newWorld(t)
	client := rawClient(t, w.certificate())
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+w.address+"/v1/status", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	wantStatus(t, resp, err, http.StatusOK)
	for _, header := range []string{"Origin", "Referer", "Sec-Fetch-Site"} {
		with := req.Clone(t.Context())
		with.Header.Set(header, "https://evil.example")
		resp, err := client.Do(with)
		wantStatus(t, resp, err, http.StatusForbidden)
	}
}

func TestControlHostsActAsAdmin(t *testing.T) {
	w := newWorld(t)
	control := w.dial(DialOptions{Server: w.address, Mesh: testMesh, Roots: w.authority.Roots(), Certificate: w.certificate})
	if _, err := control.CreateToken(t.Context(), TokenRequest{TTL: "10m", Control: true}); err != nil {
		t.Fatal(err)
	}
	entries, err := w.authority.Audit(1)
	if err != nil || len(entries) != 1 || entries[0].Who != "host/h1" {
		t.Errorf("audit = %+v, %v; want host/h1", entries, err)
	}
}
