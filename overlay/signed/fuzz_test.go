package signed_test

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/bulkhead-mesh/bulkhead/overlay/signed"
)

// What opens was signed by the host, and is that very text.
func FuzzOpenRecord(f *testing.F) {
	w := newWorld(f)
	raw, trust := w.signRecord(f, w.record()), w.Trust()
	f.Add(raw)
	f.Add(w.signPolicy(f, w.policy()))
	f.Add([]byte(`{"payloadType":"application/vnd.bulkhead.record+json","payload":"e30=","signatures":[{"keyid":"","sig":"AA=="}]}`))
	f.Fuzz(func(t *testing.T, other []byte) {
		v, err := signed.OpenRecord(other, trust, now)
		if err == nil && !bytes.Equal(other, raw) {
			t.Errorf("opens, and was not signed: %+v", v.Record)
		}
	})
}

// What opens was signed by the signer of policy, and is that very text.
func FuzzOpenPolicy(f *testing.F) {
	w := newWorld(f)
	raw, trust := w.signPolicy(f, w.policy()), w.Trust()
	f.Add(raw)
	f.Add(w.signRecord(f, w.record()))
	f.Add([]byte(`{"envelope":{"payloadType":"application/vnd.bulkhead.policy+json","payload":"e30=","signatures":[{"keyid":"","sig":"AA=="}]},"signer":[]}`))
	f.Fuzz(func(t *testing.T, other []byte) {
		v, err := signed.OpenPolicy(other, trust, now)
		if err == nil && !bytes.Equal(other, raw) {
			t.Errorf("opens, and was not signed: %+v", v.Policy)
		}
	})
}

// A member of the mesh signs what it likes: it still speaks only for itself, of agents that it was given, and in
// the one form. Chains differ from run to run, so inputs hold a word in their place.
func FuzzRecordPayload(f *testing.F) {
	w := newWorld(f)
	words := []string{string(marshal(f, w.host.Chain)), `"HOST"`, string(marshal(f, w.scout.Chain)), `"SCOUT"`}
	toWord := strings.NewReplacer(words...)
	slices.Reverse(words)
	toChain := strings.NewReplacer(words...)
	body := string(marshal(f, w.record()))
	f.Add(toWord.Replace(body))
	f.Add(strings.Replace(toWord.Replace(body), "192.0.2.1", "127.0.0.1", 1))
	f.Fuzz(func(t *testing.T, text string) {
		body := toChain.Replace(text)
		v, err := signed.OpenRecord(marshal(t, seal(t, recordType, body, w.host.Key)), w.Trust(), now)
		if err != nil {
			return
		}
		if again := marshal(t, v.Record); string(again) != body {
			t.Errorf("%s opens as %s", body, again)
		}
		if v.Mesh != mesh || v.Host != "h2" || v.Expires.After(v.HostCert.NotAfter) {
			t.Errorf("speaks for another: %+v", v.Record)
		}
		for _, c := range v.AgentCerts {
			if c.Name != "scout" || len(v.AgentCerts) > 1 {
				t.Errorf("has agents that it was not given: %+v", v.Record)
			}
		}
		for _, e := range v.Endpoints {
			if a := e.Addr(); a.IsLoopback() || a.IsMulticast() || a.IsUnspecified() || a.IsLinkLocalUnicast() || e.Port() == 0 {
				t.Errorf("points at %s", e)
			}
		}
	})
}

// A policy that opens is in the one form and valid, whatever its signer signs.
func FuzzPolicyPayload(f *testing.F) {
	w := newWorld(f)
	f.Add(string(marshal(f, w.policy())))
	f.Fuzz(func(t *testing.T, body string) {
		v, err := signed.OpenPolicy(marshal(t, bundle{seal(t, policyType, body, w.signer.Key), w.signer.Chain}), w.Trust(), now)
		if err != nil {
			return
		}
		if again := marshal(t, v.Policy); string(again) != body {
			t.Errorf("%s opens as %s", body, again)
		}
		for _, k := range v.JWTKeys {
			if _, err := k.Public(); err != nil || len(v.JWTKeys) > signed.MaxJWTKeys {
				t.Errorf("opens with JWT keys %v: %v", v.JWTKeys, err)
			}
		}
		if err := v.Parsed.Validate(); err != nil || v.Mesh != mesh || v.Version == 0 {
			t.Errorf("opens, and is not valid: %+v, %v", v.Policy, err)
		}
	})
}
