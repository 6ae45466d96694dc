package authority

import (
	"fmt"
	"strings"

	"github.com/bulkhead-mesh/bulkhead/overlay"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
)

// Renew issues new certificates to an enrolled host, which its verified certificate names, and to the
// agents it lists. Labels and addresses come from the registry. Agents that are not active, or are another host's,
// are left out.
func (a *Authority) Renew(host *identity.Certificate, r RenewRequest) (*Enrollment, error) {
	p := Principal{Name: "host/" + host.Name, From: r.From}
	var e *Enrollment
	j, err := a.checkRenewal(host, r)
	if err == nil {
		err = a.update(func(t *txn) (err error) {
			e, err = t.renew(p, host, j)
			return err
		})
	}
	if err != nil {
		a.refused(&a.members, p, "renew", p.Name, err)
		return nil, err
	}
	return e, nil
}

func (a *Authority) checkRenewal(host *identity.Certificate, r RenewRequest) (*joiner, error) {
	if err := a.checkHost(host); err != nil {
		return nil, err
	}
	agents := make([]AgentRequest, len(r.Agents))
	for i, g := range r.Agents {
		agents[i] = AgentRequest{Name: g.Name, CSR: g.CSR}
	}
	return a.checkJoiner(host.Name, r.HostCSR, agents)
}

// checkHost refuses what is not a host's certificate of this mesh.
func (a *Authority) checkHost(cert *identity.Certificate) error {
	if cert.Kind != identity.KindHost || cert.Mesh != a.mesh.Mesh {
		return &Error{Code: CodeDenied, Message: fmt.Sprintf("%s is no host of this mesh", cert.ID), Fix: "ask with the host's own certificate"}
	}
	return nil
}

// member is the row of the host that asks with a certificate.
func member(tx overlay.Tx, cert *identity.Certificate) (*hostRow, error) {
	host := new(hostRow)
	found, err := get(tx, bucketHosts, cert.Name, host)
	if err != nil {
		return nil, err
	}
	if !found {
		return nil, noHost(cert.Name)
	}
	if host.Revoked != nil || cert.Issued.Before(host.Floor) {
		return nil, &Error{Code: CodeRevoked, Field: "host", Message: fmt.Sprintf("host %q was revoked", host.Name),
			Fix: "join again under another name, with a new token"}
	}
	return host, nil
}

func (t *txn) renew(p Principal, cert *identity.Certificate, j *joiner) (*Enrollment, error) {
	host, err := member(t, cert)
	if err != nil {
		return nil, err
	}
	e := &Enrollment{Agents: []AgentChain{}}
	var left []string
	if e.HostChain, err = t.issueHost(host, j.key); err != nil {
		return nil, err
	}
	for _, g := range j.agents {
		row := new(agentRow)
		if _, err := get(t, bucketAgents, g.name, row); err != nil {
			return nil, err
		}
		if row.Host != host.Name || !row.active() { // another host may carry the name of a revoked agent
			left = append(left, g.name)
			continue
		}
		chain, err := t.issueAgent(row, g.key)
		if err != nil {
			return nil, err
		}
		e.Agents = append(e.Agents, AgentChain{Name: g.name, Chain: chain})
	}
	detail := fmt.Sprintf("%d agents", len(e.Agents))
	if len(left) > 0 {
		detail += ", refused: " + strings.Join(left, " ")
	}
	if err := t.record(p, "renew", p.Name, 0, resultDone, detail); err != nil {
		return nil, err
	}
	return e, t.complete(e)
}
