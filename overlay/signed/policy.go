package signed

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/secure-systems-lab/go-securesystemslib/dsse"

	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

const (
	// MaxPolicy is the longest signed policy, bytes.
	MaxPolicy = 8 << 20
	maxQuotes = 64 // twice those of the longest form: payload and certificates are base64
	// maxJump bounds how far a version may run ahead: a host that took the highest number would take no other.
	maxJump = 1 << 32
)

// Policy is one version of a mesh's policy.
type Policy struct {
	Mesh        string                `json:"mesh"`
	Version     uint64                `json:"version"` // only grows; the first is 1
	Parent      Digest                `json:"parent"`  // of the version before; zero for the first
	Issued      time.Time             `json:"issued"`
	Author      string                `json:"author"`
	Document    string                `json:"document"` // YAML of segment.Policy
	Revocations []identity.Revocation `json:"revocations"`
	JWTKeys     []JWTKey              `json:"jwtKeys,omitempty"` // at most MaxJWTKeys
}

// bundle is a signed policy with the certificate of its signer.
type bundle struct {
	Envelope dsse.Envelope `json:"envelope"`
	Signer   [][]byte      `json:"signer"` // chain, DER
}

// VerifiedPolicy is a policy that was believed when it was opened. It is read only.
type VerifiedPolicy struct {
	Policy
	Parsed *segment.Policy
	Raw    []byte
	Digest [32]byte // SHA-256 of the signed payload
}

// SignPolicy signs p with the key of a policy signer, whose chain the result carries.
func SignPolicy(p Policy, key identity.Key, signerChain [][]byte) ([]byte, error) {
	raw, err := signPolicy(p, key, signerChain)
	if err != nil {
		return nil, fmt.Errorf("sign policy %d: %w", p.Version, err)
	}
	return raw, nil
}

func signPolicy(p Policy, key identity.Key, signerChain [][]byte) ([]byte, error) {
	if !utf8.ValidString(p.Document) {
		return nil, errors.New("the document is not UTF-8")
	}
	p.Issued = p.Issued.UTC()
	p.Revocations = append([]identity.Revocation{}, p.Revocations...) // the caller's stay as they are
	for i := range p.Revocations {
		p.Revocations[i].Before = p.Revocations[i].Before.UTC()
	}
	body, err := json.Marshal(p)
	if err != nil {
		return nil, err
	}
	e, err := seal(typePolicy, body, key)
	if err != nil {
		return nil, err
	}
	raw, err := json.Marshal(bundle{Envelope: *e, Signer: signerChain})
	if err != nil {
		return nil, err
	}
	if len(raw) > MaxPolicy {
		return nil, fmt.Errorf("%d bytes, more than %d", len(raw), MaxPolicy)
	}
	return raw, nil
}

// OpenPolicy believes a policy if its signer's certificate is believed, the signature is the signer's, and the
// document is a valid policy. The result refers to raw, which must not change.
func OpenPolicy(raw []byte, trust *identity.Trust, now time.Time) (*VerifiedPolicy, error) {
	v, err := openPolicy(raw, trust, now)
	if err != nil {
		return nil, fmt.Errorf("open policy: %w", err)
	}
	return v, nil
}

func openPolicy(raw []byte, trust *identity.Trust, now time.Time) (*VerifiedPolicy, error) {
	if len(raw) > MaxPolicy {
		return nil, fmt.Errorf("%w: %d bytes", ErrMalformed, len(raw))
	}
	// A list of empty strings would take fifty times its length in memory before anything can be checked.
	if quotes := bytes.Count(raw, []byte{'"'}); quotes > maxQuotes {
		return nil, fmt.Errorf("%w: %d quotation marks", ErrMalformed, quotes)
	}
	var b bundle
	if err := decode(raw, &b); err != nil {
		return nil, err
	}
	cert, err := trust.Verify(b.Signer, identity.KindPolicy, now)
	if err != nil {
		return nil, err
	}
	if len(b.Signer) != len(cert.Chain) {
		return nil, fmt.Errorf("%w: needless certificates", ErrMalformed)
	}
	body, err := payload(&b.Envelope, typePolicy)
	if err != nil {
		return nil, err
	}
	if err := check(&b.Envelope, cert.PublicKey); err != nil {
		return nil, err
	}
	v := &VerifiedPolicy{Raw: raw, Digest: sha256.Sum256(body)}
	if err := decode(body, &v.Policy); err != nil {
		return nil, err
	}
	if err := v.judge(cert); err != nil {
		return nil, fmt.Errorf("version %d: %w", v.Version, err)
	}
	return v, nil
}

// judge checks what a policy says once it is known that its signer says it.
func (v *VerifiedPolicy) judge(signer *identity.Certificate) (err error) {
	if v.Mesh != signer.Mesh {
		return fmt.Errorf("%w: it is of %.64q", identity.ErrForeign, v.Mesh)
	}
	if v.Version == 0 {
		return fmt.Errorf("%w: versions begin with 1", ErrMalformed)
	}
	for _, r := range v.Revocations {
		if !revocable(r.ID) || r.Before.IsZero() {
			return fmt.Errorf("%w: revocation of %.80q", ErrMalformed, r.ID)
		}
	}
	if err := checkJWTKeys(v.JWTKeys); err != nil {
		return err
	}
	if v.Parsed, err = segment.Parse([]byte(v.Document)); err != nil {
		return fmt.Errorf("%w: document: %w", ErrMalformed, err)
	}
	return nil
}

// revocable says whether id names an identity that can be revoked. Signers of policy cannot: their own
// word would have to say so.
func revocable(id string) bool {
	kind, name, _ := strings.Cut(id, "/")
	return slices.Contains([]identity.Kind{identity.KindHost, identity.KindAgent, identity.KindOperator}, identity.Kind(kind)) &&
		segment.ValidName(name) == nil
}

// Succeeds returns nil if p may replace current: ErrOlder if it is not newer, ErrFork for other content of the
// same version, for a next version that was not made from current, and for one that is too far ahead.
func (p *VerifiedPolicy) Succeeds(current *VerifiedPolicy) error {
	switch {
	case p.Version < current.Version, p.Digest == current.Digest:
		return fmt.Errorf("policy version %d where %d is held: %w", p.Version, current.Version, ErrOlder)
	case p.Version == current.Version:
		return fmt.Errorf("another policy version %d: %w", p.Version, ErrFork)
	case p.Version == current.Version+1 && p.Parent != current.Digest:
		return fmt.Errorf("policy version %d was not made from the version %d that is held: %w", p.Version, current.Version, ErrFork)
	case p.Version-current.Version > maxJump:
		return fmt.Errorf("policy version %d is too far from %d: %w", p.Version, current.Version, ErrFork)
	default:
		return nil
	}
}
