package daemon

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/bulkhead-mesh/bulkhead/control/api"
	"github.com/bulkhead-mesh/bulkhead/control/authority"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
	"github.com/bulkhead-mesh/bulkhead/overlay/signed"
	"github.com/bulkhead-mesh/bulkhead/overlay/tunnel"
	"github.com/bulkhead-mesh/bulkhead/platform"
)

// applicant is a host with new keys that asks for certificates. The keys never leave the machine.
type applicant struct {
	mesh, host string
	key        identity.Key
	hostCSR    []byte
	wireguard  [32]byte // private
	public     [32]byte // of wireguard
	specs      []AgentSpec
	agents     []authority.AgentRequest
	agentKeys  map[string]identity.Key
}

// newApplicant asks for a host whose WireGuard private key is given.
func newApplicant(mesh, host string, wireguard [32]byte, agents []AgentSpec) (*applicant, error) {
	a := &applicant{mesh: mesh, host: host, wireguard: wireguard, specs: agents, agentKeys: make(map[string]identity.Key)}
	var err error
	if a.key, a.hostCSR, err = newKey(identity.ID{Mesh: mesh, Kind: identity.KindHost, Name: host}); err != nil {
		return nil, err
	}
	if a.public, err = tunnel.PublicKey(wireguard); err != nil {
		return nil, err
	}
	for _, spec := range agents {
		key, csr, err := newKey(identity.ID{Mesh: mesh, Kind: identity.KindAgent, Name: spec.Name})
		if err != nil {
			return nil, err
		}
		a.agentKeys[spec.Name] = key
		a.agents = append(a.agents, authority.AgentRequest{Name: spec.Name, Labels: spec.Labels, CSR: csr})
	}
	return a, nil
}

// application asks for a host that is in no mesh yet.
func application(mesh, host string, agents []AgentSpec) (*applicant, error) {
	wireguard, err := tunnel.GenerateKey()
	if err != nil {
		return nil, err
	}
	return newApplicant(mesh, host, wireguard, agents)
}

// renewal asks anew, with new keys, for what c has. The WireGuard key stays, so that tunnels go on.
func renewal(c *Credentials) (*applicant, error) {
	var specs []AgentSpec
	for _, a := range c.Agents {
		if a.Chain != nil {
			specs = append(specs, AgentSpec{Name: a.Name})
		}
	}
	return newApplicant(c.Mesh, c.Host, c.WireGuard, specs)
}

func newKey(id identity.ID) (identity.Key, []byte, error) {
	key, err := identity.GenerateKey()
	if err != nil {
		return nil, nil, err
	}
	csr, err := identity.NewCSR(key, id)
	return key, csr, err
}

// credentials are what the applicant has once it is enrolled.
func (a *applicant) credentials(e *authority.Enrollment, advertise, control []string) (*Credentials, error) {
	keyPEM, err := identity.MarshalKey(a.key)
	if err != nil {
		return nil, err
	}
	c := &Credentials{
		Mesh: e.Mesh, Host: a.host, Key: keyPEM, Chain: e.HostChain, WireGuard: a.wireguard,
		Roots: e.Roots, Prefixes: e.Prefixes, Control: control, Advertise: advertise,
	}
	for _, spec := range a.specs {
		c.Agents = append(c.Agents, AgentCredentials{Name: spec.Name, Labels: spec.Labels, Match: spec.Match, Source: api.SourceJoin})
	}
	return c, a.certify(c, e)
}

// renew gives c the new keys and certificates of what was asked for. An agent that control left out is to be declared
// again: control may have been restored from a backup that is older than the agent.
func (a *applicant) renew(c *Credentials, e *authority.Enrollment) (err error) {
	if c.Key, err = identity.MarshalKey(a.key); err != nil {
		return err
	}
	c.Chain, c.Roots, c.Prefixes = e.HostChain, e.Roots, e.Prefixes
	for i, held := range c.Agents {
		_, asked := a.agentKeys[held.Name]
		if asked && !slices.ContainsFunc(e.Agents, func(g authority.AgentChain) bool { return g.Name == held.Name }) {
			c.Agents[i].Key, c.Agents[i].Chain = nil, nil
		}
	}
	return a.certify(c, e)
}

// certify gives the agents of c that were certified their keys and certificates.
func (a *applicant) certify(c *Credentials, e *authority.Enrollment) error {
	for _, certified := range e.Agents {
		agent := c.agent(certified.Name)
		if agent == nil {
			continue // removed while control was asked
		}
		keyPEM, err := identity.MarshalKey(a.agentKeys[certified.Name])
		if err != nil {
			return err
		}
		agent.Key, agent.Chain = keyPEM, certified.Chain
	}
	return nil
}

// verify checks all that control handed out against the root that the applicant was told to trust.
func (a *applicant) verify(e *authority.Enrollment, root [32]byte, now time.Time) error {
	if e.Mesh != a.mesh {
		return fmt.Errorf("control enrolled this host in mesh %q, not %q", e.Mesh, a.mesh)
	}
	trust := &identity.Trust{Mesh: a.mesh}
	for _, der := range e.Roots {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("root certificate from control: %w", err)
		}
		if identity.Fingerprint(cert) == root {
			trust.Roots = append(trust.Roots, cert)
		}
	}
	if len(trust.Roots) != 1 || len(e.Roots) != 1 {
		return errors.New("control did not send exactly the root certificate that the token names")
	}
	host, err := trust.Verify(e.HostChain, identity.KindHost, now)
	if err != nil {
		return fmt.Errorf("host certificate from control: %w", err)
	}
	if host.Name != a.host || !host.PublicKey.Equal(a.key.Public()) {
		return fmt.Errorf("control certified %q with another key or name than asked for", host.Name)
	}
	if host.WireGuard != a.public {
		return fmt.Errorf("control certified %q with another WireGuard key than this host has", host.Name)
	}
	if err := a.verifyAgents(trust, e.Agents, now); err != nil {
		return err
	}
	if _, err := signed.OpenPolicy(e.Policy, trust, now); err != nil {
		return fmt.Errorf("policy from control: %w", err)
	}
	return nil
}

// verifyAgents checks that control certified agents that were asked for, with their keys.
func (a *applicant) verifyAgents(trust *identity.Trust, agents []authority.AgentChain, now time.Time) error {
	for _, agent := range agents {
		cert, err := trust.Verify(agent.Chain, identity.KindAgent, now)
		if err != nil {
			return fmt.Errorf("certificate of agent %s from control: %w", agent.Name, err)
		}
		if key, ok := a.agentKeys[agent.Name]; !ok || cert.Name != agent.Name || cert.Host != a.host || !cert.PublicKey.Equal(key.Public()) {
			return fmt.Errorf("control certified agent %q, which was not asked for", agent.Name)
		}
	}
	return nil
}

// advertised are the endpoints that others are told: those configured, or given when the host joined, or this
// machine's own addresses.
func advertised(cfg Config, given []string) ([]netip.AddrPort, error) {
	if len(cfg.Advertise) > 0 {
		given = cfg.Advertise
	}
	if len(given) > 0 {
		return endpoints(given, cfg.Listen)
	}
	addrs, err := platform.UnderlayAddrs(cfg.Interface)
	if err != nil {
		return nil, err
	}
	var out []netip.AddrPort
	for _, a := range addrs[:min(len(addrs), maxEndpoints)] {
		out = append(out, netip.AddrPortFrom(a, cfg.Listen))
	}
	return out, nil
}

const maxEndpoints = 8 // a record holds no more
