package daemon

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"time"

	"github.com/bulkhead-mesh/bulkhead/control/api"
	"github.com/bulkhead-mesh/bulkhead/control/authority"
	"github.com/bulkhead-mesh/bulkhead/overlay"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
	"github.com/bulkhead-mesh/bulkhead/platform"
	"github.com/bulkhead-mesh/bulkhead/platform/kv"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

const (
	rootKeyFile  = "root-ca.key" // may be moved away: nothing that runs needs it
	rootCertFile = "root-ca.pem"
	operatorFile = "operator.pem" // admin credential of the local user
	operatorLife = 365 * 24 * time.Hour
)

// InitOptions describe a new mesh and its first host.
type InitOptions struct {
	Config    Config
	Mesh      string   // trust domain, like acme.example
	Name      string   // of this host
	Advertise []string // addresses at which others reach it, with or without port; empty: its own
	Agents    []AgentSpec
}

// AgentSpec is an agent to enrol.
type AgentSpec struct {
	Name   string
	Labels segment.Labels
	Match  overlay.Match
}

// Founded says what Init made.
type Founded struct {
	Mesh     string `json:"mesh"`
	Host     string `json:"host"`
	StateDir string `json:"stateDir"`
	RootKey  string `json:"rootKey"`  // path of a file that may be moved to a safe place
	Operator string `json:"operator"` // path of the local user's admin credential
}

// Init makes a mesh with this machine as its first host, which has the control role. It makes all of it or
// nothing, and refuses where there is a host already.
func Init(_ context.Context, o InitOptions) (*Founded, error) {
	if err := checkNames(o.Mesh, o.Name, o.Advertise, o.Agents, o.Config.Listen); err != nil {
		return nil, err
	}
	err := newState(o.Config.StateDir, func(dir string) error { return found(dir, o) })
	if err != nil {
		return nil, fmt.Errorf("init mesh %s: %w", o.Mesh, err)
	}
	return &Founded{
		Mesh: o.Mesh, Host: o.Name, StateDir: o.Config.StateDir,
		RootKey:  filepath.Join(o.Config.StateDir, rootKeyFile),
		Operator: filepath.Join(o.Config.StateDir, operatorFile),
	}, nil
}

// found fills an empty directory with the state of a mesh's first host.
func found(dir string, o InitOptions) (err error) {
	store, err := kv.Open(filepath.Join(dir, controlFile), openTimeout)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	founding, err := authority.Init(store, authority.InitOptions{Mesh: o.Mesh, Host: o.Name, Now: time.Now()})
	if err != nil {
		return err
	}
	keyPEM, err := identity.MarshalKey(founding.RootKey)
	if err != nil {
		return err
	}
	if err := platform.WriteFile(filepath.Join(dir, rootKeyFile), keyPEM, 0o600); err != nil {
		return err
	}
	if err := platform.WriteFile(filepath.Join(dir, rootCertFile), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: founding.Root.Raw}), 0o600); err != nil {
		return err
	}
	auth, err := authority.Open(store, authority.Options{AuditPath: filepath.Join(dir, auditFile), Now: time.Now, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, auth.Close()) }()
	if err := writeOperator(auth, filepath.Join(dir, operatorFile), founding.Root); err != nil {
		return err
	}
	applicant, err := application(o.Mesh, o.Name, o.Agents)
	if err != nil {
		return err
	}
	enrollment, err := auth.EnrollLocal(o.Name, applicant.hostCSR, applicant.public[:], applicant.agents)
	if err != nil {
		return err
	}
	credentials, err := applicant.credentials(enrollment, o.Advertise, controlAddrs(o.Config, o.Advertise))
	if err != nil {
		return err
	}
	host, err := kv.Open(filepath.Join(dir, hostFile), openTimeout)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, host.Close()) }()
	if err := overlay.Seed(host, founding.Bundle, nil); err != nil {
		return err
	}
	return storeCredentials(host, credentials)
}

func writeOperator(auth *authority.Authority, path string, root *x509.Certificate) error {
	key, err := identity.GenerateKey()
	if err != nil {
		return err
	}
	local := authority.Principal{Name: "local/init", Role: authority.RoleAdmin, From: "init"}
	chain, err := auth.IssueOperator(local, "local", authority.RoleAdmin, key.Public(), operatorLife)
	if err != nil {
		return err
	}
	credential := api.Credential{Key: key, Chain: chain, Roots: []*x509.Certificate{root}}
	file, err := credential.Marshal()
	if err != nil {
		return err
	}
	return platform.WriteFile(path, file, 0o600)
}

// controlAddrs are the host:port at which others reach the control API that cfg makes this host serve.
func controlAddrs(cfg Config, advertise []string) []string {
	host, port, err := net.SplitHostPort(cfg.ControlListen)
	if err != nil {
		return nil // Validate has refused it
	}
	if ip := net.ParseIP(host); host != "" && !ip.IsUnspecified() {
		return []string{cfg.ControlListen}
	}
	eps, err := advertised(cfg, advertise)
	if err != nil {
		return nil
	}
	var out []string
	for _, ep := range eps {
		out = append(out, net.JoinHostPort(ep.Addr().String(), port))
	}
	return out
}

// checkNames refuses what the authority would refuse, before anything is made.
func checkNames(mesh, host string, advertise []string, agents []AgentSpec, port uint16) error {
	if mesh != "" {
		if err := segment.ParseMeshName(mesh); err != nil {
			return fmt.Errorf("--mesh: %w", err)
		}
	}
	if err := segment.ValidName(host); err != nil {
		return fmt.Errorf("--name: %w", err)
	}
	if _, err := endpoints(advertise, port); err != nil {
		return err
	}
	if len(agents) > 1 {
		return errors.New("--agent: one agent per host, for now: it is bound to the whole host")
	}
	for _, a := range agents {
		if err := segment.ValidName(a.Name); err != nil {
			return fmt.Errorf("--agent: %w", err)
		}
		if err := segment.ValidLabels(a.Labels); err != nil {
			return fmt.Errorf("--label: %w", err)
		}
	}
	return nil
}
