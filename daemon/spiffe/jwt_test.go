package spiffe

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func jwtSource(t *testing.T, addr workloadapi.ClientOption) *workloadapi.JWTSource {
	t.Helper()
	source, err := workloadapi.NewJWTSource(soon(t), workloadapi.WithClientOptions(addr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := source.Close(); err != nil {
			t.Error(err)
		}
	})
	return source
}

// An agent's token is verified by another agent: by its own bundle, and by the API.
func TestTokensAreVerifiedElsewhere(t *testing.T) {
	i := newIssuer(t, "plan1", "vec1")
	planAddr, _ := serveTo(t, i, "plan1")
	vecAddr, _ := serveTo(t, i, "vec1")
	plan1, vec1 := jwtSource(t, planAddr), jwtSource(t, vecAddr)
	svid, err := plan1.FetchJWTSVID(soon(t), jwtsvid.Params{Audience: "vec1", ExtraAudiences: []string{"db"}, Subject: spiffeID("plan1")})
	if err != nil {
		t.Fatal(err)
	}
	for _, audience := range []string{"vec1", "db"} {
		if got, err := jwtsvid.ParseAndValidate(svid.Marshal(), vec1, []string{audience}); err != nil || got.ID != spiffeID("plan1") {
			t.Errorf("got %v, %v", got, err)
		}
		if got, err := workloadapi.ValidateJWTSVID(soon(t), svid.Marshal(), audience, vecAddr); err != nil || got.ID != spiffeID("plan1") || got.Claims["sub"] != agentID("plan1") {
			t.Errorf("got %v, %v", got, err)
		}
	}
}

func TestTokensThatAreNotValid(t *testing.T) {
	i := newIssuer(t, "plan1")
	addr, _ := serveTo(t, i, "plan1")
	c := newClient(t, addr)
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	good := jwt.Claims{Subject: agentID("plan1"), Audience: []string{"vec1"}, Expiry: jwt.NewNumericDate(time.Now().Add(time.Minute))}
	make := func(key *ecdsa.PrivateKey, id string, change func(*jwt.Claims)) string {
		claims := good
		change(&claims)
		token, err := sign(key, id, claims)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	same := func(*jwt.Claims) {}
	valid := make(i.jwt["k1"], "k1", same)
	if _, err := c.ValidateJWTSVID(soon(t), valid, "vec1"); err != nil {
		t.Fatal(err)
	}
	for name, token := range map[string]string{
		"of another key": make(other, "k1", same), "of a key that is not known": make(i.jwt["k1"], "k2", same),
		"for another":     make(i.jwt["k1"], "k1", func(c *jwt.Claims) { c.Audience = []string{"db"} }),
		"expired":         make(i.jwt["k1"], "k1", func(c *jwt.Claims) { c.Expiry = jwt.NewNumericDate(time.Now().Add(-10 * time.Minute)) }),
		"for ever":        make(i.jwt["k1"], "k1", func(c *jwt.Claims) { c.Expiry = nil }),
		"of another mesh": make(i.jwt["k1"], "k1", func(c *jwt.Claims) { c.Subject = "spiffe://other.example/agent/plan1" }),
		"of nobody":       make(i.jwt["k1"], "k1", func(c *jwt.Claims) { c.Subject = "" }),
		"cut":             valid[:len(valid)-4], "empty": "", "unsigned": valid[:strings.LastIndex(valid, ".")+1],
		"too long": strings.Repeat("x", maxMessage+1),
	} {
		if got, err := c.ValidateJWTSVID(soon(t), token, "vec1"); err == nil {
			t.Errorf("a token %s is valid: %v", name, got)
		}
	}
	if _, err := c.ValidateJWTSVID(soon(t), valid, ""); status.Code(err) != codes.InvalidArgument {
		t.Errorf("no audience: %v", err)
	}
}

func TestTokensThatAreNotGiven(t *testing.T) {
	i := newIssuer(t, "plan1", "vec1")
	addr, b := serveTo(t, i, "plan1")
	c := newClient(t, addr)
	for want, params := range map[codes.Code]jwtsvid.Params{
		codes.PermissionDenied: {Audience: "vec1", Subject: spiffeID("vec1")},
		codes.InvalidArgument:  {Audience: strings.Repeat("x", maxAudience+1)},
	} {
		if _, err := c.FetchJWTSVID(soon(t), params); status.Code(err) != want {
			t.Errorf("%v: got %v", want, err)
		}
	}
	if _, err := c.FetchJWTSVID(soon(t), jwtsvid.Params{}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("no audience: %v", err)
	}
	i.change(func() { i.down = errors.New("secret detail") })
	if _, err := c.FetchJWTSVID(soon(t), jwtsvid.Params{Audience: "vec1"}); status.Code(err) != codes.Unavailable || strings.Contains(err.Error(), "secret") {
		t.Errorf("control is away: %v", err)
	}
	i.change(func() { i.down = nil })
	var err error
	for n := 0; err == nil && n < 100*signBurst; n++ {
		_, err = c.FetchJWTSVID(soon(t), jwtsvid.Params{Audience: "vec1"})
	}
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("tokens without end: %v", err)
	}
	b.become(i, "vec1", nil)
	if _, err := c.FetchJWTSVID(soon(t), jwtsvid.Params{Audience: "plan1"}); err != nil {
		t.Errorf("another agent: %v", err)
	}
}

// A new key is pushed; tokens of the old one stay valid for as long as it is in the bundle.
func TestNewKeyIsPushed(t *testing.T) {
	i := newIssuer(t, "plan1")
	addr, _ := serveTo(t, i, "plan1")
	source := jwtSource(t, addr)
	old, err := source.FetchJWTSVID(soon(t), jwtsvid.Params{Audience: "vec1"})
	if err != nil {
		t.Fatal(err)
	}
	i.renewJWT(t, "k2")
	await(t, source, 2)
	svid, err := source.FetchJWTSVID(soon(t), jwtsvid.Params{Audience: "vec1"})
	if err != nil {
		t.Fatal(err)
	}
	for _, token := range []string{old.Marshal(), svid.Marshal()} {
		if _, err := jwtsvid.ParseAndValidate(token, source, []string{"vec1"}); err != nil {
			t.Error(err)
		}
	}
	i.change(func() { delete(i.jwt, "k1") })
	await(t, source, 1)
	if _, err := jwtsvid.ParseAndValidate(old.Marshal(), source, []string{"vec1"}); err == nil {
		t.Error("a token of a key that was given up is valid")
	}
}

// await waits until the source has so many keys.
func await(t *testing.T, source *workloadapi.JWTSource, keys int) {
	t.Helper()
	ctx := soon(t)
	for {
		updated := source.Updated()
		bundle, err := source.GetJWTBundleForTrustDomain(spiffeid.RequireTrustDomainFromString(mesh))
		if err != nil {
			t.Fatal(err)
		}
		if len(bundle.JWTAuthorities()) == keys {
			return
		}
		select {
		case <-updated:
		case <-ctx.Done():
			t.Fatalf("it has %d keys, not %d", len(bundle.JWTAuthorities()), keys)
		}
	}
}

// A mesh whose policy has no key yet has an empty bundle, no error.
func TestNoKeysYet(t *testing.T) {
	i := newIssuer(t, "plan1")
	i.change(func() { clear(i.jwt) })
	addr, _ := serveTo(t, i, "plan1")
	await(t, jwtSource(t, addr), 0)
}
