package identity_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
)

func TestKeyRoundTrip(t *testing.T) {
	key := newKey(t)
	text, err := identity.MarshalKey(key)
	if err != nil {
		t.Fatal(err)
	}
	again, err := identity.ParseKey(text)
	if err != nil || !bytes.Equal(again, key) {
		t.Errorf("got another key, error %v", err)
	}
}

func TestParseKeyRefusesWithoutQuoting(t *testing.T) {
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(p256)
	if err != nil {
		t.Fatal(err)
	}
	const secret = "c2VjcmV0"
	for name, text := range map[string][]byte{
		"nothing":     nil,
		"no PEM":      []byte(secret),
		"other block": []byte("-----BEGIN CERTIFICATE-----\n" + secret + "\n-----END CERTIFICATE-----\n"),
		"no PKCS #8":  []byte("-----BEGIN PRIVATE KEY-----\n" + secret + "\n-----END PRIVATE KEY-----\n"),
		"P-256":       pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}),
	} {
		_, err := identity.ParseKey(text)
		if err == nil {
			t.Errorf("%s was taken", name)
		} else if strings.Contains(err.Error(), secret) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: the error quotes the key: %v", name, err)
		}
	}
}

func TestKeyDoesNotShowItself(t *testing.T) {
	key := newKey(t)
	var shown bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%b", "%o"} {
		fmt.Fprintf(&shown, verb+"\n", key)
		fmt.Fprintf(&shown, verb+"\n", struct{ K identity.Key }{key})
	}
	for _, h := range []slog.Handler{slog.NewTextHandler(&shown, nil), slog.NewJSONHandler(&shown, nil)} {
		slog.New(h).Info("key", "key", key, "in", struct{ K identity.Key }{key})
	}
	if text, err := json.Marshal(struct{ K identity.Key }{key}); err == nil {
		t.Errorf("a key has a JSON form: %s", text)
	}
	seed := ed25519.PrivateKey(key).Seed()
	for _, form := range []string{
		string(seed), hex.EncodeToString(seed[:8]), strings.ToUpper(hex.EncodeToString(seed[:8])),
		strings.Trim(fmt.Sprint(seed[:6]), "[]"), strings.Trim(fmt.Sprintf("%b", seed[:6]), "[]"),
	} {
		if strings.Contains(shown.String(), form) {
			t.Errorf("the key shows itself:\n%s", shown.String())
		}
	}
}
