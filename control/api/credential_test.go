package api

import (
	"bytes"
	"testing"

	"github.com/bulkhead-mesh/bulkhead/control/authority"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
)

func operatorFile(t *testing.T) []byte {
	t.Helper()
	w := newWorld(t)
	key, err := identity.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	chain, err := w.authority.IssueOperator(root, "alice", authority.RoleViewer, key.Public(), 3600e9)
	if err != nil {
		t.Fatal(err)
	}
	data, err := (&Credential{Key: key, Chain: chain, Roots: w.authority.Roots()}).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestCredentialErrors(t *testing.T) {
	whole := operatorFile(t)
	for name, data := range map[string][]byte{
		"empty":      nil,
		"text":       []byte("hello"),
		"no key":     whole[:bytes.Index(whole, []byte("-----BEGIN PRIVATE"))],
		"no chain":   whole[bytes.Index(whole, []byte("-----BEGIN PRIVATE")):],
		"torn":       whole[:len(whole)-40],
		"other":      []byte("-----BEGIN RSA KEY-----\nAAAA\n-----END RSA KEY-----\n"),
		"trailing":   append(bytes.Clone(whole), "secret"...),
		"very large": bytes.Repeat([]byte("a"), maxCredential+1),
	} {
		if c, err := ParseCredential(data); err == nil {
			t.Errorf("%s: parsed as %v", name, c)
		}
	}
}

// What is parsed is written and parsed to the same again; so nothing in a file is silently left out.
func FuzzParseCredential(f *testing.F) {
	f.Add([]byte("bh1.AAAA"))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))
	key, err := identity.GenerateKey()
	if err != nil {
		f.Fatal(err)
	}
	pem, err := identity.MarshalKey(key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(pem)
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := ParseCredential(data)
		if err != nil || c.Token != nil {
			return
		}
		once, err := c.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseCredential(once)
		if err != nil {
			t.Fatalf("parse what Marshal wrote: %v", err)
		}
		twice, err := again.Marshal()
		if err != nil || !bytes.Equal(once, twice) {
			t.Errorf("Marshal differs after a round trip: %v", err)
		}
	})
}

func TestCredentialRoundTrip(t *testing.T) {
	whole := operatorFile(t)
	c, err := ParseCredential(whole)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := c.Marshal(); err != nil || !bytes.Equal(again, whole) {
		t.Errorf("round trip differs: %v", err)
	}
}

// An accepted If-Match names one version, and is what ETag writes for it, or a weak or bare form of that.
func FuzzIfMatch(f *testing.F) {
	for _, seed := range []string{"", "*", `"7"`, `W/"7"`, "7", `"0"`, `"18446744073709551616"`, `""`, `"7`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		v, err := MatchInput{text}.version()
		if err != nil {
			return
		}
		if v == 0 {
			if text != "" && text != "*" {
				t.Errorf("%q means any version", text)
			}
			return
		}
		if again, err := (MatchInput{etag(v)}).version(); err != nil || again != v {
			t.Errorf("%q is %d, whose ETag is %d, %v", text, v, again, err)
		}
	})
}

func TestServerAddress(t *testing.T) {
	for _, test := range []struct{ in, want string }{
		{"192.0.2.1", "192.0.2.1:7443"},
		{"https://control.example:444/", "control.example:444"},
		{"[2001:db8::1]", "[2001:db8::1]:7443"},
		{"2001:db8::1", "[2001:db8::1]:7443"},
		{"[2001:db8::1]:99", "[2001:db8::1]:99"},
		{"http://192.0.2.1", ""},
		{"https://evil@192.0.2.1", ""},
		{"192.0.2.1/path", ""},
		{"", ""},
	} {
		got, err := serverAddress(test.in)
		if got != test.want || (err == nil) != (test.want != "") {
			t.Errorf("serverAddress(%q) = %q, %v; want %q", test.in, got, err, test.want)
		}
	}
}
