package authority

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"time"

	"github.com/bulkhead-mesh/bulkhead/overlay"
	"github.com/bulkhead-mesh/bulkhead/overlay/signed"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

// The buckets of the store. Keys are names, or numbers of 20 digits so that they sort.
const (
	bucketMeta      = "authority"
	bucketHosts     = "authority-hosts"
	bucketAgents    = "authority-agents"
	bucketOperators = "authority-operators"
	bucketTokens    = "authority-tokens"
	bucketPolicies  = "authority-policies" // signed bundles
	bucketVersions  = "authority-versions" // VersionInfo
	bucketAudit     = "authority-audit"    // lines of the audit file

	keyMesh     = "mesh"
	keyCounters = "counters"
	keyJWT      = "jwt"
)

// meshRow is written once, by Init.
type meshRow struct {
	Format  int // 1
	Mesh    string
	Range4  netip.Prefix
	Root    []byte // DER
	Created time.Time
	Issuing signerRow // signs host, agent and operator certificates
	Policy  signerRow // signs policy
}

// signerRow is a private key and the certificates that vouch for it.
type signerRow struct {
	Chain [][]byte // DER
	Key   []byte   // PEM
}

// jwtRow is the key that signs JWT-SVIDs.
type jwtRow struct {
	ID  string
	Key []byte // PKCS #8 DER, P-256
}

// counters only grow. They change in the transaction that uses them.
type counters struct {
	Version   uint64 // of the newest policy
	Address   uint64 // steps taken through the overlay range; beyond its size it has wrapped
	AuditSeq  uint64
	AuditHash string // of the newest line
}

// certified is what a row knows of its certificates.
type certified struct {
	Issued   time.Time // of the newest
	NotAfter time.Time
	Floor    time.Time  // issued no earlier: those before are void
	Revoked  *time.Time `json:",omitempty"`
}

type hostRow struct {
	certified
	Name      string
	Joined    time.Time
	Control   bool `json:",omitempty"`
	WireGuard signed.PublicKey
	Grant     segment.Labels `json:",omitempty"` // what its agents may claim without an operator's approval
	GrantAll  bool           `json:",omitempty"` // they may claim anything
}

// agentRow is an agent that is active, unless it says otherwise.
type agentRow struct {
	certified
	Name      string
	Host      string
	Labels    segment.Labels
	Addresses []netip.Addr
	Pending   bool       `json:",omitempty"` // no operator has approved it: it has no addresses and no certificate
	Withdrawn *time.Time `json:",omitempty"` // its host gave it up; its certificate may last for a while
}

// active reports whether the agent takes part.
func (r *agentRow) active() bool { return r.Revoked == nil && r.Withdrawn == nil && !r.Pending }

// holds reports whether the name is the agent's: it is active, or waits for approval.
func (r *agentRow) holds() bool { return r.Revoked == nil && r.Withdrawn == nil }

// valid reports whether a certificate of the agent may still be believed somewhere.
func (r *agentRow) valid(now time.Time) bool {
	return !r.Issued.Before(r.Floor) && now.Before(r.NotAfter.Add(maxSkew))
}

type operatorRow struct {
	certified
	Name string
	Role Role
}

type tokenRow struct {
	TokenInfo
	Hash []byte // SHA-256 of the secret
}

// number is a key that sorts as its value does.
func number(n uint64) string { return fmt.Sprintf("%020d", n) }

// get decodes the row at key into row and reports whether there is one.
func get(tx overlay.Tx, bucket, key string, row any) (bool, error) {
	b := tx.Get(bucket, key)
	if b == nil {
		return false, nil
	}
	if err := json.Unmarshal(b, row); err != nil {
		return false, fmt.Errorf("read %s/%s: %w", bucket, key, err)
	}
	return true, nil
}

func put(tx overlay.Tx, bucket, key string, row any) error {
	b, err := json.Marshal(row)
	if err != nil {
		return fmt.Errorf("write %s/%s: %w", bucket, key, err)
	}
	return tx.Put(bucket, key, b)
}

// each calls fn with every row of a bucket, in key order.
func each[T any](tx overlay.Tx, bucket string, fn func(*T) error) error {
	return tx.Each(bucket, func(key string, value []byte) error {
		row := new(T)
		if err := json.Unmarshal(value, row); err != nil {
			return fmt.Errorf("read %s/%s: %w", bucket, key, err)
		}
		return fn(row)
	})
}
