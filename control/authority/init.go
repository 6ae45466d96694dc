package authority

import (
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"net/netip"
	"time"

	"github.com/bulkhead-mesh/bulkhead/overlay"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
	"github.com/bulkhead-mesh/bulkhead/overlay/signed"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

const (
	meshFormat = 1
	// signerLife is that of the issuing authority: both end together, and the root key makes new ones.
	signerLife = 5 * 365 * 24 * time.Hour
	// emptyPolicy denies everything, on the default scale.
	emptyPolicy = "sensitivity: [public, internal, confidential, restricted]\n"
)

// DefaultRange4 is where overlay IPv4 addresses come from unless Init is told otherwise.
var DefaultRange4 = netip.MustParsePrefix("10.201.0.0/16")

// InitOptions describe a new mesh.
type InitOptions struct {
	Mesh   string
	Host   string       // the first host, for the audit record
	Range4 netip.Prefix // zero is DefaultRange4
	Now    time.Time
}

// Init founds a mesh in store: root and issuing authority, policy key, and policy version 1, which denies
// everything. It returns ErrExists, and changes nothing, if the store holds a mesh.
func Init(store overlay.Store, o InitOptions) (*Founding, error) {
	if o.Range4 == (netip.Prefix{}) {
		o.Range4 = DefaultRange4
	}
	if err := o.validate(); err != nil {
		return nil, err
	}
	jwt, err := newJWTRow()
	if err != nil {
		return nil, fmt.Errorf("found mesh: %w", err)
	}
	a, f, err := found(o, jwt)
	if err != nil {
		return nil, fmt.Errorf("found mesh: %w", err)
	}
	err = store.Update(func(tx overlay.Tx) error {
		if tx.Get(bucketMeta, keyMesh) != nil {
			return ErrExists
		}
		t := &txn{Tx: tx, a: a, now: o.Now}
		t.Version = 1
		policy := signed.Policy{Mesh: o.Mesh, Version: 1, Issued: o.Now, Author: "local/init", Document: emptyPolicy}
		if err := a.signVersion(tx, policy, "init", o.Now); err != nil {
			return err
		}
		f.Bundle = append([]byte(nil), tx.Get(bucketPolicies, number(1))...)
		if err := put(tx, bucketMeta, keyMesh, a.mesh); err != nil {
			return err
		}
		if err := put(tx, bucketMeta, keyJWT, jwt); err != nil {
			return err
		}
		who := Principal{Name: "local/init", Role: RoleAdmin, From: "host/" + o.Host}
		if err := t.record(who, "init", "mesh/"+o.Mesh, 1, resultDone, ""); err != nil {
			return err
		}
		return put(tx, bucketMeta, keyCounters, t.counters)
	})
	if err != nil {
		return nil, plain(err)
	}
	return f, nil
}

func (o InitOptions) validate() error {
	if err := segment.ParseMeshName(o.Mesh); err != nil {
		return &Error{Code: CodeInvalid, Field: "mesh", Message: err.Error(), Fix: "use a name like prod.example"}
	}
	if err := segment.ValidName(o.Host); err != nil {
		return invalidName("name", err)
	}
	if !o.Range4.IsValid() || !o.Range4.Addr().Is4() || o.Range4 != o.Range4.Masked() || o.Range4.Bits() < 8 || o.Range4.Bits() > 24 {
		return &Error{Code: CodeInvalid, Field: "range", Message: fmt.Sprintf("%v is no IPv4 network of 8 to 24 bits", o.Range4),
			Fix: "use one like " + DefaultRange4.String()}
	}
	return nil
}

// found makes the keys and certificates of a new mesh.
func found(o InitOptions, jwt jwtRow) (*Authority, *Founding, error) {
	root, err := identity.NewRoot(o.Mesh, o.Now)
	if err != nil {
		return nil, nil, err
	}
	issuing, err := root.NewIssuing(o.Now)
	if err != nil {
		return nil, nil, err
	}
	signer, err := identity.GenerateKey()
	if err != nil {
		return nil, nil, err
	}
	chain, err := root.Issue(identity.Request{
		ID:     identity.ID{Mesh: o.Mesh, Kind: identity.KindPolicy, Name: "policy"},
		Claims: identity.Claims{Issued: o.Now}, PublicKey: signer.Public(), Life: signerLife,
	}, o.Now)
	if err != nil {
		return nil, nil, err
	}
	issuingKey, err := identity.MarshalKey(issuing.Key())
	if err != nil {
		return nil, nil, err
	}
	signerKey, err := identity.MarshalKey(signer)
	if err != nil {
		return nil, nil, err
	}
	tokens, err := newJWTSigner(jwt)
	if err != nil {
		return nil, nil, err
	}
	a := &Authority{root: root.Certificate(), signer: signer, jwt: tokens, mesh: meshRow{
		Format: meshFormat, Mesh: o.Mesh, Range4: o.Range4, Root: root.Certificate().Raw, Created: o.Now,
		Issuing: signerRow{Chain: issuing.Chain(), Key: issuingKey},
		Policy:  signerRow{Chain: chain, Key: signerKey},
	}}
	return a, &Founding{Root: root.Certificate(), RootKey: root.Key()}, nil
}

// prefix6 is the mesh's ULA /48 (RFC 4193): its global ID is a hash of name and root instead of random,
// so that every host can tell it.
func prefix6(mesh string, root *x509.Certificate) netip.Prefix {
	fingerprint := identity.Fingerprint(root)
	sum := sha256.Sum256(append([]byte(mesh), fingerprint[:]...))
	addr := [16]byte{0: 0xfd}
	copy(addr[1:6], sum[:])
	return netip.PrefixFrom(netip.AddrFrom16(addr), 48)
}
