package authority

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/bulkhead-mesh/bulkhead/overlay"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
	"github.com/bulkhead-mesh/bulkhead/overlay/signed"
)

const (
	// jwtLife is how long a JWT-SVID is good for: whoever it is shown to could show it to others.
	jwtLife     = 5 * time.Minute
	maxAudience = 16  // names in one token
	maxAudName  = 255 // bytes of one
)

// jwtSigner signs JWT-SVIDs.
type jwtSigner struct {
	jose.Signer
	public signed.JWTKey
}

// newJWTRow makes a key. Its ID is its thumbprint (RFC 7638).
func newJWTRow() (jwtRow, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return jwtRow{}, fmt.Errorf("make JWT key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return jwtRow{}, fmt.Errorf("make JWT key: %w", err)
	}
	print, err := (&jose.JSONWebKey{Key: key.Public()}).Thumbprint(crypto.SHA256)
	if err != nil {
		return jwtRow{}, fmt.Errorf("make JWT key: %w", err)
	}
	return jwtRow{ID: base64.RawURLEncoding.EncodeToString(print), Key: der}, nil
}

func newJWTSigner(row jwtRow) (*jwtSigner, error) {
	parsed, err := x509.ParsePKCS8PrivateKey(row.Key)
	if err != nil {
		return nil, errors.New("it is no PKCS #8 key") // the cause could quote it
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errors.New("it is no ECDSA key")
	}
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: row.ID}}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return nil, fmt.Errorf("make JWT signer: %w", err)
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, fmt.Errorf("make JWT signer: %w", err)
	}
	return &jwtSigner{Signer: s, public: signed.JWTKey{ID: row.ID, Key: public}}, nil
}

// SignJWT returns a JWT-SVID of an active agent of an enrolled host, which its verified certificate names. Tokens are not
// in the audit record: there may be very many, and they are good for minutes.
func (a *Authority) SignJWT(host *identity.Certificate, r JWTRequest) (string, error) {
	p := Principal{Name: "host/" + host.Name, From: r.From}
	token, err := a.trySignJWT(host, r)
	if err != nil {
		a.refused(&a.members, p, "sign JWT", "agent/"+worded(r.Agent), err)
		return "", err
	}
	return token, nil
}

func (a *Authority) trySignJWT(host *identity.Certificate, r JWTRequest) (string, error) {
	if err := a.checkHost(host); err != nil {
		return "", err
	}
	if err := checkAudience(r.Audience); err != nil {
		return "", err
	}
	err := a.store.View(func(tx overlay.Tx) error {
		if _, err := member(tx, host); err != nil {
			return err
		}
		var row agentRow
		if _, err := get(tx, bucketAgents, r.Agent, &row); err != nil {
			return err
		}
		if row.Host != host.Name || !row.active() {
			return &Error{Code: CodeDenied, Field: "agent", Message: fmt.Sprintf("host %q has no active agent %q", host.Name, worded(r.Agent)), Fix: "declare it, and have it approved"}
		}
		return nil
	})
	if err != nil {
		return "", plain(err)
	}
	now := a.now()
	token, err := jwt.Signed(a.jwt).Claims(jwt.Claims{
		Subject:  identity.ID{Mesh: a.mesh.Mesh, Kind: identity.KindAgent, Name: r.Agent}.String(),
		Audience: r.Audience, IssuedAt: jwt.NewNumericDate(now), Expiry: jwt.NewNumericDate(now.Add(jwtLife)),
	}).Serialize()
	if err != nil {
		return "", fmt.Errorf("sign JWT of agent %s: %w", r.Agent, err)
	}
	return token, nil
}

func checkAudience(audience []string) error {
	refuse := func(message string) error {
		return &Error{Code: CodeInvalid, Field: "audience", Message: message, Fix: fmt.Sprintf("name 1 to %d receivers, like spiffe://lab.test/agent/vec1", maxAudience)}
	}
	if len(audience) == 0 || len(audience) > maxAudience {
		return refuse(fmt.Sprintf("%d names", len(audience)))
	}
	for _, name := range audience {
		if name == "" || len(name) > maxAudName || !utf8.ValidString(name) || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return refuse(fmt.Sprintf("a name is empty, has more than %d bytes, or does not print", maxAudName))
		}
	}
	return nil
}
