package daemon

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/bulkhead-mesh/bulkhead/control/api"
	"github.com/bulkhead-mesh/bulkhead/control/authority"
	"github.com/bulkhead-mesh/bulkhead/overlay"
	"github.com/bulkhead-mesh/bulkhead/platform/kv"
)

// JoinOptions describe a host that joins a mesh.
type JoinOptions struct {
	Config    Config
	Token     string
	Name      string
	Advertise []string
	Agents    []AgentSpec
}

// Joined says what Join made.
type Joined struct {
	Mesh     string   `json:"mesh"`
	Host     string   `json:"host"`
	Agents   []string `json:"agents"`
	StateDir string   `json:"stateDir"`
}

// Join enrols this machine with the control host that the token names, after that has proven to be of the
// token's mesh. It leaves the state of a host, or none.
func Join(ctx context.Context, o JoinOptions) (*Joined, error) {
	token, err := authority.ParseToken(o.Token)
	if err != nil {
		return nil, err
	}
	if err := checkNames(token.Mesh, o.Name, o.Advertise, o.Agents, o.Config.Listen); err != nil {
		return nil, err
	}
	err = newState(o.Config.StateDir, func(dir string) error { return enrol(ctx, dir, token, o) })
	if err != nil {
		return nil, fmt.Errorf("join mesh %s: %w", token.Mesh, err)
	}
	joined := &Joined{Mesh: token.Mesh, Host: o.Name, StateDir: o.Config.StateDir, Agents: []string{}}
	for _, a := range o.Agents {
		joined.Agents = append(joined.Agents, a.Name)
	}
	return joined, nil
}

// enrol fills an empty directory with the state of a host that the control host accepted.
func enrol(ctx context.Context, dir string, token authority.Token, o JoinOptions) (err error) {
	// Before the token is used up, so that a disk that cannot hold the answer costs nothing.
	store, err := kv.Open(filepath.Join(dir, hostFile), openTimeout)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	applicant, err := application(token.Mesh, o.Name, o.Agents)
	if err != nil {
		return err
	}
	answer, err := api.Enroll(ctx, token, authority.EnrollRequest{
		TokenID: token.ID, Secret: token.Secret, Host: o.Name, HostCSR: applicant.hostCSR, WireGuard: applicant.public[:],
		Time: time.Now(), Agents: applicant.agents,
	})
	if err != nil {
		return err
	}
	if err := applicant.verify(&answer.Enrollment, token.Root, time.Now()); err != nil {
		return err
	}
	credentials, err := applicant.credentials(&answer.Enrollment, o.Advertise, token.Addresses)
	if err != nil {
		return err
	}
	if err := overlay.Seed(store, answer.Policy, answer.Records); err != nil {
		return err
	}
	return storeCredentials(store, credentials)
}
