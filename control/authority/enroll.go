package authority

import (
	"crypto/ed25519"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/bulkhead-mesh/bulkhead/overlay"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
	"github.com/bulkhead-mesh/bulkhead/overlay/signed"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

const (
	// leafLife is how long host and agent certificates last: no longer than a host may run that cannot hear of its revocation.
	leafLife = 24 * time.Hour
	// maxSkew between a joiner's clock and ours: what verifiers of certificates tolerate.
	maxSkew = 2 * time.Minute
	// maxAgents of one host: what its record may carry.
	maxAgents = 64
)

// joiner is a checked request: the CSRs prove their keys and name what they shall certify.
type joiner struct {
	host      string
	key       ed25519.PublicKey
	wireguard signed.PublicKey // of a host that renews: zero, the registry has it
	agents    []joinerAgent
}

type joinerAgent struct {
	name   string
	labels segment.Labels
	key    ed25519.PublicKey
}

// Enroll lets a host join with a one-time token. A refused or failed enrolment changes nothing, so the
// token stays as good as it was.
func (a *Authority) Enroll(from string, r EnrollRequest) (*Enrollment, error) {
	p := Principal{Name: "token/" + r.TokenID, From: from}
	e, err := a.tryEnroll(p, r)
	if err != nil {
		p.Name = "token/" + worded(r.TokenID)
		a.refused(&a.strangers, p, "enroll", "host/"+worded(r.Host), err)
		return nil, err
	}
	return e, nil
}

// worded is what a stranger says, if it is a name: the audit record is no place for all else.
func worded(s string) string {
	if segment.ValidName(s) != nil {
		return "(not a name)"
	}
	return s
}

func (a *Authority) tryEnroll(p Principal, r EnrollRequest) (*Enrollment, error) {
	if err := a.checkClock(r.Time); err != nil {
		return nil, err
	}
	// Strangers cost us no more than this: neither a signature nor the lock that changes take.
	err := a.store.View(func(tx overlay.Tx) error {
		_, err := joinToken(tx, r.TokenID, r.Secret, a.now())
		return err
	})
	if err != nil {
		return nil, plain(err)
	}
	j, err := a.checkNewcomer(r.Host, r.HostCSR, r.WireGuard, r.Agents)
	if err != nil {
		return nil, err
	}
	var e *Enrollment
	err = a.update(func(t *txn) (err error) {
		token, err := t.spendToken(r.TokenID, r.Secret)
		if err != nil {
			return err
		}
		if err := checkGrant(j.agents, token.Grant); err != nil {
			return err
		}
		e, err = t.enroll(p, j, &hostRow{Control: token.Control, Grant: token.Grant})
		return err
	})
	return e, err
}

// EnrollLocal enrols the host that founds the mesh, as a control host. Only the local root may ask for it.
func (a *Authority) EnrollLocal(host string, hostCSR, wireguard []byte, agents []AgentRequest) (*Enrollment, error) {
	j, err := a.checkNewcomer(host, hostCSR, wireguard, agents)
	if err != nil {
		return nil, err
	}
	p := Principal{Name: "local/init", Role: RoleAdmin}
	var e *Enrollment
	err = a.update(func(t *txn) (err error) {
		e, err = t.enroll(p, j, &hostRow{Control: true, GrantAll: true})
		return err
	})
	if err != nil {
		return nil, err
	}
	return e, nil
}

func (a *Authority) checkClock(theirs time.Time) error {
	skew := a.now().Sub(theirs)
	if skew.Abs() <= maxSkew {
		return nil
	}
	direction := "behind"
	if skew < 0 {
		direction = "ahead"
	}
	return &Error{Code: CodeClockSkew, Field: "time",
		Message: fmt.Sprintf("this host's clock is %v %s that of control", skew.Abs().Round(time.Second), direction),
		Fix:     "set the clock (NTP), then join again with the same token"}
}

// checkNewcomer is checkJoiner for a host that has no WireGuard key in the registry yet.
func (a *Authority) checkNewcomer(host string, csr, wireguard []byte, requests []AgentRequest) (*joiner, error) {
	j, err := a.checkJoiner(host, csr, requests)
	if err != nil {
		return nil, err
	}
	if n := copy(j.wireguard[:], wireguard); n != len(wireguard) || n != len(j.wireguard) || j.wireguard == (signed.PublicKey{}) {
		return nil, &Error{Code: CodeInvalid, Field: "wireguard", Fix: "send the public key of the host's WireGuard key pair",
			Message: fmt.Sprintf("got %d bytes; a WireGuard public key has %d, not all zero", len(wireguard), len(j.wireguard))}
	}
	return j, nil
}

func (a *Authority) checkJoiner(host string, csr []byte, requests []AgentRequest) (*joiner, error) {
	if err := segment.ValidName(host); err != nil {
		return nil, invalidName("host", err)
	}
	j := &joiner{host: host}
	var err error
	if j.key, err = a.checkCSR("hostCsr", csr, identity.KindHost, host); err != nil {
		return nil, err
	}
	j.agents, err = a.checkAgents(requests)
	return j, err
}

func (a *Authority) checkAgents(requests []AgentRequest) ([]joinerAgent, error) {
	if len(requests) > maxAgents {
		return nil, tooManyAgents(len(requests))
	}
	var agents []joinerAgent
	seen := map[string]bool{}
	for i, r := range requests {
		field := fmt.Sprintf("agents[%d]", i)
		if err := segment.ValidName(r.Name); err != nil {
			return nil, invalidName(field+".name", err)
		}
		if seen[r.Name] {
			return nil, &Error{Code: CodeInvalid, Field: field + ".name", Message: fmt.Sprintf("agent %q is named twice", r.Name), Fix: "give each agent a name of its own"}
		}
		seen[r.Name] = true
		if err := a.checkLabels(field+".labels", r.Labels); err != nil {
			return nil, err
		}
		key, err := a.checkCSR(field+".csr", r.CSR, identity.KindAgent, r.Name)
		if err != nil {
			return nil, err
		}
		agents = append(agents, joinerAgent{name: r.Name, labels: r.Labels, key: key})
	}
	return agents, nil
}

func tooManyAgents(n int) error {
	return &Error{Code: CodeInvalid, Field: "agents", Message: fmt.Sprintf("%d agents on one host", n), Fix: fmt.Sprintf("declare at most %d", maxAgents)}
}

// checkCSR returns the key of a CSR that asks for exactly this identity.
func (a *Authority) checkCSR(field string, der []byte, kind identity.Kind, name string) (ed25519.PublicKey, error) {
	id, key, err := identity.ParseCSR(der)
	if err != nil {
		return nil, &Error{Code: CodeInvalid, Field: field, Message: err.Error(), Fix: "send a certificate request signed by its own key"}
	}
	if want := (identity.ID{Mesh: a.mesh.Mesh, Kind: kind, Name: name}); id != want {
		return nil, &Error{Code: CodeInvalid, Field: field, Message: fmt.Sprintf("the request is for %s", id), Fix: "ask for " + want.String()}
	}
	return key, nil
}

func invalidName(field string, err error) error {
	return &Error{Code: CodeInvalid, Field: field, Message: err.Error(), Fix: "use lower case letters, digits and inner hyphens, at most 63"}
}

// checkGrant refuses labels that the token does not grant.
func checkGrant(agents []joinerAgent, grant segment.Labels) error {
	for _, agent := range agents {
		if key, ok := outside(agent.labels, grant); ok {
			return &Error{Code: CodeLabelOutsideGrant, Field: "label",
				Message: fmt.Sprintf("the token does not grant %s=%s to agent %q", key, agent.labels[key], agent.name),
				Fix:     "use the labels that were granted, or get a token with `bulkhead token create --grant`"}
		}
	}
	return nil
}

// outside is the key of a label that is not granted: with exactly that value, each must be.
func outside(labels, grant segment.Labels) (key string, is bool) {
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		if granted, ok := grant[key]; !ok || granted != labels[key] {
			return key, true
		}
	}
	return "", false
}

// enroll registers a host and its agents and issues their first certificates.
func (t *txn) enroll(p Principal, j *joiner, host *hostRow) (*Enrollment, error) {
	if t.Get(bucketHosts, j.host) != nil {
		return nil, nameTaken("host", j.host)
	}
	if err := t.checkWireGuard(j.wireguard); err != nil {
		return nil, err
	}
	host.Name, host.Joined, host.WireGuard = j.host, t.now, j.wireguard
	chain, err := t.issueHost(host, j.key)
	if err != nil {
		return nil, err
	}
	e := &Enrollment{HostChain: chain, Agents: []AgentChain{}}
	for _, g := range j.agents {
		row, err := t.register(g, j.host)
		if err != nil {
			return nil, err
		}
		chain, err := t.issueAgent(row, g.key)
		if err != nil {
			return nil, err
		}
		e.Agents = append(e.Agents, AgentChain{Name: g.name, Chain: chain})
	}
	detail := fmt.Sprintf("%d agents", len(j.agents))
	if host.Control {
		detail += ", control"
	}
	if err := t.record(p, "enroll", "host/"+j.host, 0, resultDone, detail); err != nil {
		return nil, err
	}
	if err := t.revokeVoided(p); err != nil {
		return nil, err
	}
	return e, t.complete(e)
}

// checkWireGuard refuses the key of another host: whose name it has would be whose packets it gets. Nobody needs the
// key of a revoked host.
func (t *txn) checkWireGuard(key signed.PublicKey) error {
	return each(t, bucketHosts, func(r *hostRow) error {
		if r.WireGuard != key || r.Revoked != nil {
			return nil
		}
		return &Error{Code: CodeExists, Field: "wireguard", Message: fmt.Sprintf("host %q has this WireGuard key already", r.Name),
			Fix: "make a new key for this host: no two hosts share one"}
	})
}

// register makes the row of a new agent, active.
func (t *txn) register(g joinerAgent, host string) (*agentRow, error) {
	row, err := t.claim(g, host)
	if err != nil {
		return nil, err
	}
	row.Addresses, err = t.nextAddresses()
	return row, err
}

func nameTaken(what, name string) error {
	return &Error{Code: CodeNameTaken, Field: what, Message: fmt.Sprintf("there is %s %q already", article(what), name), Fix: "choose another name"}
}

func article(noun string) string {
	if noun == "agent" {
		return "an " + noun
	}
	return "a " + noun
}

// issueHost issues a certificate for a host and stores its row.
func (t *txn) issueHost(row *hostRow, key ed25519.PublicKey) ([][]byte, error) {
	row.issue(t.now, leafLife)
	chain, err := t.a.issuing.Issue(identity.Request{
		ID:     identity.ID{Mesh: t.a.mesh.Mesh, Kind: identity.KindHost, Name: row.Name},
		Claims: identity.Claims{Issued: row.Issued, Control: row.Control, WireGuard: row.WireGuard}, PublicKey: key, Life: row.NotAfter.Sub(t.now),
	}, t.now)
	if err != nil {
		return nil, fmt.Errorf("issue certificate of host %s: %w", row.Name, err)
	}
	return chain, put(t, bucketHosts, row.Name, row)
}

// issueAgent issues a certificate for an agent, with the labels and addresses of its row, and stores the row.
func (t *txn) issueAgent(row *agentRow, key ed25519.PublicKey) ([][]byte, error) {
	row.issue(t.now, leafLife)
	chain, err := t.a.issuing.Issue(identity.Request{
		ID:     identity.ID{Mesh: t.a.mesh.Mesh, Kind: identity.KindAgent, Name: row.Name},
		Claims: identity.Claims{Issued: row.Issued, Host: row.Host, Labels: row.Labels}, Addresses: row.Addresses,
		PublicKey: key, Life: row.NotAfter.Sub(t.now),
	}, t.now)
	if err != nil {
		return nil, fmt.Errorf("issue certificate of agent %s: %w", row.Name, err)
	}
	return chain, put(t, bucketAgents, row.Name, row)
}

// complete adds what every host of the mesh gets.
func (t *txn) complete(e *Enrollment) (err error) {
	e.Mesh, e.Roots, e.Policy, e.Prefixes = t.a.mesh.Mesh, [][]byte{t.a.mesh.Root}, t.a.Policy().Raw, t.a.Prefixes()
	e.ControlHosts, err = t.controlHosts()
	return err
}
