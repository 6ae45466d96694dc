package daemon

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/bulkhead-mesh/bulkhead/control/api"
	"github.com/bulkhead-mesh/bulkhead/overlay"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
	"github.com/bulkhead-mesh/bulkhead/overlay/signed"
	"github.com/bulkhead-mesh/bulkhead/platform/kv"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

const (
	hostFile    = "host.db"    // this host's keys, certificates, records and policy
	controlFile = "control.db" // the authority, on control hosts
	auditFile   = "audit.log"

	bucketSelf = "self"
	keySelf    = "credentials"

	openTimeout = 2 * time.Second
)

// ErrNoMesh is returned where a host's state is needed and there is none.
var ErrNoMesh = errors.New("this host is in no mesh yet")

// Credentials are what makes this machine a host of a mesh. They are stored as one value, so that a host
// has joined or has not.
type Credentials struct {
	Mesh      string             `json:"mesh"`
	Host      string             `json:"host"`
	Key       []byte             `json:"key"` // PKCS #8 PEM
	Chain     [][]byte           `json:"chain"`
	WireGuard [32]byte           `json:"wireguard"` // private key
	Roots     [][]byte           `json:"roots"`
	Prefixes  []netip.Prefix     `json:"prefixes"`
	Control   []string           `json:"control"` // host:port of control APIs
	Advertise []string           `json:"advertise,omitempty"`
	Agents    []AgentCredentials `json:"agents,omitempty"`
	Withdrawn []string           `json:"withdrawn,omitempty"` // agents given up of which control has not heard
}

// AgentCredentials are an agent of this host: how it was declared, its key, and its certificate.
type AgentCredentials struct {
	Name   string         `json:"name"`
	Labels segment.Labels `json:"labels"`
	Match  overlay.Match  `json:"match"`
	Source api.Source     `json:"source"`
	Key    []byte         `json:"key"`             // PKCS #8 PEM
	Chain  [][]byte       `json:"chain,omitempty"` // none while an operator has not approved it
}

// agent finds an agent of this host.
func (c *Credentials) agent(name string) *AgentCredentials {
	for i := range c.Agents {
		if c.Agents[i].Name == name {
			return &c.Agents[i]
		}
	}
	return nil
}

// roots are the parsed root certificates.
func (c *Credentials) roots() ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for _, der := range c.Roots {
		root, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("parse root certificate: %w", err)
		}
		out = append(out, root)
	}
	return out, nil
}

// tls is the host's certificate for QUIC and the control API.
func (c *Credentials) tls() (*tls.Certificate, error) {
	key, err := identity.ParseKey(c.Key)
	if err != nil {
		return nil, fmt.Errorf("parse host key: %w", err)
	}
	cert := identity.TLSCertificate(key, c.Chain)
	return &cert, nil
}

// self is what this host says about itself. Endpoints are where others may reach it.
func (c *Credentials) self(public [32]byte, endpoints []netip.AddrPort) (overlay.Self, error) {
	key, err := identity.ParseKey(c.Key)
	if err != nil {
		return overlay.Self{}, fmt.Errorf("parse host key: %w", err)
	}
	record := signed.Record{Certificate: c.Chain, WireGuard: public, Endpoints: endpoints}
	for _, a := range c.Agents {
		if a.Chain == nil {
			continue
		}
		record.Agents = append(record.Agents, signed.AgentEntry{Name: a.Name, Certificate: a.Chain})
	}
	return overlay.Self{Key: key, Record: record}, nil
}

func loadCredentials(store overlay.Store) (*Credentials, error) {
	var c Credentials
	err := store.View(func(tx overlay.Tx) error {
		raw := tx.Get(bucketSelf, keySelf)
		if raw == nil {
			return ErrNoMesh
		}
		return json.Unmarshal(raw, &c)
	})
	if err != nil {
		return nil, fmt.Errorf("load credentials: %w", err)
	}
	return &c, nil
}

func storeCredentials(store overlay.Store, c *Credentials) error {
	raw, err := json.Marshal(c)
	if err != nil {
		return fmt.Errorf("store credentials: %w", err)
	}
	if err := store.Update(func(tx overlay.Tx) error { return tx.Put(bucketSelf, keySelf, raw) }); err != nil {
		return fmt.Errorf("store credentials: %w", err)
	}
	return nil
}

// openHost opens the state of a host that has joined.
func openHost(dir string) (*kv.Store, error) {
	path := filepath.Join(dir, hostFile)
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: no %s (fix: run `bulkhead init` for a new mesh, or `bulkhead join TOKEN`)", ErrNoMesh, path)
	}
	store, err := kv.Open(path, openTimeout)
	if errors.Is(err, kv.ErrLocked) {
		return nil, fmt.Errorf("open %s: %w (fix: stop the daemon that uses this state directory)", path, err)
	}
	if errors.Is(err, kv.ErrCorrupt) {
		return nil, fmt.Errorf("open %s: %w (fix: restore the file from a backup; or remove it, revoke this host, and join again)", path, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return store, nil
}
