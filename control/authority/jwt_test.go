package authority_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-mesh/bulkhead/control/authority"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
)

// claims verifies a token by the keys of the current policy, as a receiver does.
func (w *world) claims(token string) jwt.Claims {
	w.t.Helper()
	parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, k := range w.Policy().JWTKeys {
		if k.ID != parsed.Headers[0].KeyID {
			continue
		}
		key, err := k.Public()
		if err != nil {
			w.t.Fatal(err)
		}
		var c jwt.Claims
		if err := parsed.Claims(key, &c); err != nil {
			w.t.Fatal(err)
		}
		return c
	}
	w.t.Fatalf("policy has no key %q", parsed.Headers[0].KeyID)
	return jwt.Claims{}
}

func TestJWTsSayWhoAnAgentIs(t *testing.T) {
	w := newWorld(t)
	e := w.join("h2", "a1")
	h2 := w.mustVerify(e.HostChain, identity.KindHost)
	token, err := w.SignJWT(h2, authority.JWTRequest{Agent: "a1", Audience: []string{"spiffe://lab.test/agent/vec1", "db"}})
	if err != nil {
		t.Fatal(err)
	}
	want := jwt.Claims{Subject: "spiffe://lab.test/agent/a1", Audience: jwt.Audience{"spiffe://lab.test/agent/vec1", "db"},
		IssuedAt: jwt.NewNumericDate(start), Expiry: jwt.NewNumericDate(start.Add(5 * time.Minute))}
	if diff := cmp.Diff(want, w.claims(token)); diff != "" {
		t.Error(diff)
	}
	w.reopen()
	again, err := w.SignJWT(h2, authority.JWTRequest{Agent: "a1", Audience: []string{"db"}})
	if err != nil {
		t.Fatal(err)
	}
	w.claims(again)
	if strings.Contains(fmt.Sprint(w.audited(100)), "JWT") {
		t.Error("tokens are in the audit record")
	}
}

func TestRefusedJWTs(t *testing.T) {
	w := newWorld(t)
	h2 := w.mustVerify(w.join("h2", "a1", "a2").HostChain, identity.KindHost)
	agent := w.mustVerify(w.join("h3", "a3").Agents[0].Chain, identity.KindAgent)
	w.withdraw(h2, "a2")
	ok := []string{"db"}
	for name, test := range map[string]struct {
		host     *identity.Certificate
		agent    string
		audience []string
		code     authority.Code
	}{
		"another host's": {h2, "a3", ok, authority.CodeDenied},
		"withdrawn":      {h2, "a2", ok, authority.CodeDenied},
		"nobody's":       {h2, "a9", ok, authority.CodeDenied},
		"no name":        {h2, "../../x", ok, authority.CodeDenied},
		"an agent asks":  {agent, "a3", ok, authority.CodeDenied},
		"no audience":    {h2, "a1", nil, authority.CodeInvalid},
		"empty audience": {h2, "a1", []string{""}, authority.CodeInvalid},
		"long audience":  {h2, "a1", []string{strings.Repeat("x", 256)}, authority.CodeInvalid},
		"control":        {h2, "a1", []string{"a\x1b[2J"}, authority.CodeInvalid},
		"many":           {h2, "a1", make([]string, 17), authority.CodeInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			w.now = w.now.Add(time.Minute)
			token, err := w.SignJWT(test.host, authority.JWTRequest{Agent: test.agent, Audience: test.audience})
			wantCode(t, err, test.code)
			if token != "" {
				t.Error("it came with a token")
			}
			if last := w.audited(1)[0]; !strings.Contains(last, "sign JWT") || !strings.HasSuffix(last, test.code) {
				t.Errorf("audited: %s", last)
			}
		})
	}
}
