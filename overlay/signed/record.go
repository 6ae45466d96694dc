package signed

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"time"

	"github.com/secure-systems-lab/go-securesystemslib/dsse"

	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

const (
	// MaxRecord is the longest signed record, bytes.
	MaxRecord    = 256 << 10
	maxAgents    = 64
	maxEndpoints = 8
)

// Record is what a host says about itself.
type Record struct {
	Mesh        string           `json:"mesh"`
	Host        string           `json:"host"`
	Sequence    uint64           `json:"sequence"` // of two records of a host the higher counts; at least 1
	Issued      time.Time        `json:"issued"`
	Expires     time.Time        `json:"expires"`     // not after the certificate
	Certificate [][]byte         `json:"certificate"` // chain of the host, DER
	WireGuard   PublicKey        `json:"wireguard"`   // as in the certificate
	Agents      []AgentEntry     `json:"agents"`
	Endpoints   []netip.AddrPort `json:"endpoints"` // where it may be reached, best first
}

// AgentEntry is an agent that a host carries.
type AgentEntry struct {
	Name        string   `json:"name"`
	Certificate [][]byte `json:"certificate"` // chain, DER
}

// VerifiedRecord is a record that was believed when it was opened. It is read only.
type VerifiedRecord struct {
	Record
	HostCert   *identity.Certificate
	AgentCerts []*identity.Certificate // of those of Agents whose certificate is believed
	Raw        []byte
	Digest     [32]byte // SHA-256 of the signed payload
}

// SignRecord signs r with the host's key.
func SignRecord(r Record, key identity.Key) ([]byte, error) {
	r.Issued, r.Expires = r.Issued.UTC(), r.Expires.UTC()
	if r.Agents == nil {
		r.Agents = []AgentEntry{}
	}
	if r.Endpoints == nil {
		r.Endpoints = []netip.AddrPort{}
	}
	body, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("sign record of %s: %w", r.Host, err)
	}
	e, err := seal(typeRecord, body, key)
	if err != nil {
		return nil, fmt.Errorf("sign record of %s: %w", r.Host, err)
	}
	raw, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("sign record of %s: %w", r.Host, err)
	}
	if len(raw) > MaxRecord {
		return nil, fmt.Errorf("sign record of %s: %d bytes, more than %d", r.Host, len(raw), MaxRecord)
	}
	return raw, nil
}

// OpenRecord believes a record if its host's certificate is believed, its signature is that host's, and all in
// it is well-formed. An agent whose own certificate is revoked or has expired is left out of AgentCerts, and does
// not take the other agents of its host with it. The result refers to raw, which must not change.
func OpenRecord(raw []byte, trust *identity.Trust, now time.Time) (*VerifiedRecord, error) {
	v, err := openRecord(raw, trust, now)
	if err != nil {
		return nil, fmt.Errorf("open record: %w", err)
	}
	return v, nil
}

func openRecord(raw []byte, trust *identity.Trust, now time.Time) (*VerifiedRecord, error) {
	if len(raw) > MaxRecord {
		return nil, fmt.Errorf("%w: %d bytes", ErrMalformed, len(raw))
	}
	var e dsse.Envelope
	if err := decode(raw, &e); err != nil {
		return nil, err
	}
	body, err := payload(&e, typeRecord)
	if err != nil {
		return nil, err
	}
	v := &VerifiedRecord{Raw: raw, Digest: sha256.Sum256(body)}
	if err := decode(body, &v.Record); err != nil {
		return nil, err
	}
	if v.HostCert, err = trust.Verify(v.Certificate, identity.KindHost, now); err != nil {
		return nil, err
	}
	if err := check(&e, v.HostCert.PublicKey); err != nil {
		return nil, fmt.Errorf("of %s: %w", v.HostCert.ID, err)
	}
	if err := v.judge(trust, now); err != nil {
		return nil, fmt.Errorf("of %s: %w", v.HostCert.ID, err)
	}
	return v, nil
}

// judge checks what a host says once it is known to be the host that says it.
func (v *VerifiedRecord) judge(trust *identity.Trust, now time.Time) error {
	if v.Mesh != v.HostCert.Mesh || v.Host != v.HostCert.Name {
		return fmt.Errorf("%w: it is about %.64q of %.64q", identity.ErrForeign, v.Host, v.Mesh)
	}
	if now.After(v.Expires.Add(identity.Skew)) {
		return fmt.Errorf("%w: record ended %s, now is %s", identity.ErrExpired, v.Expires.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	if v.Expires.After(v.HostCert.NotAfter) || v.Expires.Before(v.Issued) {
		return fmt.Errorf("%w: expires %s", ErrMalformed, v.Expires.Format(time.RFC3339))
	}
	// The upper half is kept free, so that there is always a higher one.
	if v.Sequence == 0 || v.Sequence > math.MaxInt64 {
		return fmt.Errorf("%w: sequence %d", ErrMalformed, v.Sequence)
	}
	// Without this a host could name the key of another, and no one could tell whose packets are whose.
	if v.WireGuard != PublicKey(v.HostCert.WireGuard) {
		return fmt.Errorf("%w: the WireGuard key is not the one that the host's certificate names", ErrMalformed)
	}
	if err := checkEndpoints(v.Endpoints); err != nil {
		return err
	}
	return v.judgeAgents(trust, now)
}

func (v *VerifiedRecord) judgeAgents(trust *identity.Trust, now time.Time) error {
	if len(v.Agents) > maxAgents {
		return fmt.Errorf("%w: %d agents, more than %d", ErrMalformed, len(v.Agents), maxAgents)
	}
	names, addresses := map[string]bool{}, map[netip.Addr]bool{}
	for _, a := range v.Agents {
		if segment.ValidName(a.Name) != nil || names[a.Name] {
			return fmt.Errorf("%w: agent %.64q is there twice, or has no valid name", ErrMalformed, a.Name)
		}
		names[a.Name] = true
		cert, err := trust.Verify(a.Certificate, identity.KindAgent, now)
		if errors.Is(err, identity.ErrRevoked) || errors.Is(err, identity.ErrExpired) {
			continue
		}
		if err != nil {
			return fmt.Errorf("agent %s: %w", a.Name, err)
		}
		if cert.Name != a.Name || cert.Host != v.Host {
			return fmt.Errorf("%w: agent %s with the certificate of %s on host %s", identity.ErrForeign, a.Name, cert.Name, cert.Host)
		}
		for _, addr := range cert.Addresses {
			if addresses[addr] {
				return fmt.Errorf("%w: two agents have %s", ErrMalformed, addr)
			}
			addresses[addr] = true
		}
		v.AgentCerts = append(v.AgentCerts, cert)
	}
	return nil
}

// checkEndpoints keeps a host from pointing others at themselves, or at a whole network.
func checkEndpoints(endpoints []netip.AddrPort) error {
	if len(endpoints) > maxEndpoints {
		return fmt.Errorf("%w: %d endpoints, more than %d", ErrMalformed, len(endpoints), maxEndpoints)
	}
	for _, e := range endpoints {
		if a := e.Addr(); e.Port() == 0 || a.Is4In6() || a.Zone() != "" || !a.IsGlobalUnicast() {
			return fmt.Errorf("%w: endpoint %s", ErrMalformed, e)
		}
	}
	return nil
}

// Recheck is the record as trust sees it, whose revocations may be others than when the record was opened: without
// the agents that they void. The error says that they void the host. Time is not checked again.
func (v *VerifiedRecord) Recheck(trust *identity.Trust) (*VerifiedRecord, error) {
	if err := trust.CheckRevoked(v.HostCert); err != nil {
		return nil, err
	}
	kept := *v
	kept.AgentCerts = nil
	for _, cert := range v.AgentCerts {
		if trust.CheckRevoked(cert) == nil {
			kept.AgentCerts = append(kept.AgentCerts, cert)
		}
	}
	return &kept, nil
}
