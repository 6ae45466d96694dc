package authority_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-mesh/bulkhead/control/authority"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

var sample = authority.Token{Mesh: mesh, Addresses: []string{"192.0.2.1:7443", "[2001:db8::1]:7443"},
	Root: [32]byte{1, 2, 3}, ID: "0123456789abcdef", Secret: bytes.Repeat([]byte{0x5a}, 32)}

func TestTokenRoundTrip(t *testing.T) {
	got, err := authority.ParseToken(sample.String())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(sample, got); diff != "" {
		t.Error(diff)
	}
}

func TestChangedTokensAreTampered(t *testing.T) {
	good := sample.String()
	random := rand.New(rand.NewPCG(1, 2))
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_. \n="
	for range 10_000 {
		at, c := random.IntN(len(good)), alphabet[random.IntN(len(alphabet))]
		var bad string
		switch random.IntN(3) {
		case 0:
			bad = good[:at] + string(c) + good[at+1:]
		case 1:
			bad = good[:at] + good[at+1:]
		case 2:
			bad = good[:at] + string(c) + good[at:]
		}
		if _, err := authority.ParseToken(bad); bad != good && !errors.Is(err, authority.ErrTampered) {
			t.Fatalf("%q: %v", bad, err)
		}
	}
}

// What parses is exactly what would be written: no two strings are one token.
func FuzzParseToken(f *testing.F) {
	f.Add(sample.String())
	f.Add(authority.Token{Mesh: "m", ID: "00ff00ff00ff00ff", Secret: make([]byte, 32)}.String())
	f.Add("bh1.")
	f.Add("bh1.AAAA")
	f.Fuzz(func(t *testing.T, s string) {
		token, err := authority.ParseToken(s)
		if err != nil {
			if !errors.Is(err, authority.ErrTampered) {
				t.Fatalf("%v is not ErrTampered", err)
			}
			return
		}
		if again := token.String(); again != s {
			t.Fatalf("%q is written as %q", s, again)
		}
	})
}

func TestSecretsAreNeitherStoredNorLogged(t *testing.T) {
	w := newWorld(t)
	token := w.token(authority.TokenRequest{})
	forms := []string{string(token.Secret), hex.EncodeToString(token.Secret)}
	for key, value := range w.dump() {
		for _, secret := range forms {
			if strings.Contains(value, secret) {
				t.Errorf("the secret is in %s", key)
			}
		}
	}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("made", "token", token)
	if got := log.String(); !strings.Contains(got, token.ID) || strings.Contains(got, "Secret") {
		t.Errorf("logged %s", got)
	}
}

func TestTokenRequests(t *testing.T) {
	w := newWorld(t)
	for name, r := range map[string]authority.TokenRequest{
		"too many uses":     {Uses: 1 << 20},
		"negative uses":     {Uses: -1},
		"too long":          {TTL: 400 * 24 * time.Hour},
		"negative life":     {TTL: -time.Hour},
		"unknown level":     {Grant: segment.Labels{"sensitivity": "cosmic"}},
		"no label":          {Grant: segment.Labels{"": "x"}},
		"unknown role":      {Role: "root"},
		"API with a grant":  {Role: authority.RoleViewer, Grant: grant},
		"API with uses":     {Role: authority.RoleViewer, Uses: 2},
		"API that controls": {Role: authority.RoleViewer, Control: true},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := w.CreateToken(admin, r)
			wantCode(t, err, authority.CodeInvalid)
		})
	}
	if tokens, err := w.Tokens(); err != nil || len(tokens) != 0 {
		t.Errorf("refused requests left %v, %v", tokens, err)
	}
	created, err := w.CreateToken(operator, authority.TokenRequest{Grant: grant})
	if err != nil || !created.Expires.Equal(w.now.Add(time.Hour)) {
		t.Errorf("%+v, %v", created.Expires, err)
	}
	token, err := authority.ParseToken(created.Token)
	if err != nil || token.Root != identity.Fingerprint(w.founding.Root) || token.Mesh != mesh || token.ID != created.ID {
		t.Errorf("token for %s, %v", token.Mesh, err)
	}
	if diff := cmp.Diff(w.options().ControlAddrs(), token.Addresses); diff != "" {
		t.Error(diff)
	}
	tokens, err := w.Tokens()
	want := []authority.TokenInfo{{ID: created.ID, Created: w.now, Author: operator.Name, Expires: created.Expires, Uses: 1, Grant: grant}}
	if diff := cmp.Diff(want, tokens); diff != "" || err != nil {
		t.Error(diff, err)
	}
	wantCode(t, w.RevokeToken(admin, "ffffffffffffffff"), authority.CodeNotFound)
}

func TestDeadTokensAreForgotten(t *testing.T) {
	w := newWorld(t)
	w.token(authority.TokenRequest{TTL: time.Minute})
	w.now = w.now.Add(6 * 24 * time.Hour)
	w.token(authority.TokenRequest{})
	if tokens, err := w.Tokens(); err != nil || len(tokens) != 2 {
		t.Errorf("%v, %v", tokens, err)
	}
	w.now = w.now.Add(2 * 24 * time.Hour)
	w.token(authority.TokenRequest{})
	if tokens, err := w.Tokens(); err != nil || len(tokens) != 2 {
		t.Errorf("%v, %v", tokens, err)
	}
}

func TestBearer(t *testing.T) {
	w := newWorld(t)
	token := w.token(authority.TokenRequest{Role: authority.RoleOperator, TTL: time.Hour})
	p, err := w.Bearer(token.String())
	if want := (authority.Principal{Name: "token/" + token.ID, Role: authority.RoleOperator}); err != nil || p != want {
		t.Errorf("got %+v, %v", p, err)
	}
	foreign := token
	foreign.Mesh = "other.test"
	_, err = w.Bearer(foreign.String())
	wantCode(t, err, authority.CodeTokenTampered)
	forged := token
	forged.Secret = make([]byte, 32)
	_, err = w.Bearer(forged.String())
	wantCode(t, err, authority.CodeTokenUnknown)
	_, err = w.Bearer(w.token(authority.TokenRequest{}).String())
	wantCode(t, err, authority.CodeDenied)
	_, err = w.Bearer("hunter2")
	wantCode(t, err, authority.CodeTokenTampered)
	w.now = w.now.Add(time.Hour)
	_, err = w.Bearer(token.String())
	wantCode(t, err, authority.CodeTokenExpired)
	token = w.token(authority.TokenRequest{Role: authority.RoleOperator})
	if err := w.RevokeToken(admin, token.ID); err != nil {
		t.Fatal(err)
	}
	_, err = w.Bearer(token.String())
	wantCode(t, err, authority.CodeTokenUnknown)
	if got, want := w.audited(1)[0], fmt.Sprintf("token/%s  authenticate  %s", token.ID, authority.CodeTokenUnknown); got != want {
		t.Errorf("audited %q, want %q", got, want)
	}
}
