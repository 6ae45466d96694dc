package authority

import (
	"fmt"
	"maps"
	"strings"

	"github.com/bulkhead-mesh/bulkhead/overlay"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
)

// maxGone is how many agents a host may have given up whose certificates still last.
const maxGone = 1024

// Declare has more agents on an enrolled host, which its verified certificate names. An agent with labels within the
// host's grant is active and certified at once; another is pending until an operator approves it. Declaring an agent
// that the host has, with the same labels, certifies it again, or says that it is still pending.
func (a *Authority) Declare(host *identity.Certificate, r DeclareRequest) (*Declared, error) {
	p := Principal{Name: "host/" + host.Name, From: r.From}
	d, err := a.tryDeclare(p, host, r)
	if err != nil {
		a.refused(&a.members, p, "declare", p.Name, err)
		return nil, err
	}
	return d, nil
}

func (a *Authority) tryDeclare(p Principal, host *identity.Certificate, r DeclareRequest) (*Declared, error) {
	if err := a.checkHost(host); err != nil {
		return nil, err
	}
	agents, err := a.checkAgents(r.Agents)
	if err != nil {
		return nil, err
	}
	// Hosts ask again and again while they wait: that costs neither the lock that changes take, nor a line in the record.
	d, err := a.stillPending(host.Name, agents)
	if d != nil || err != nil {
		return d, err
	}
	err = a.update(func(t *txn) (err error) {
		d, err = t.declare(p, host, agents)
		return err
	})
	return d, err
}

// stillPending is the answer if all of the agents wait for approval; nil if not.
func (a *Authority) stillPending(host string, agents []joinerAgent) (*Declared, error) {
	d := &Declared{Agents: []AgentChain{}, Pending: []string{}}
	err := a.store.View(func(tx overlay.Tx) error {
		for _, g := range agents {
			var row agentRow
			if _, err := get(tx, bucketAgents, g.name, &row); err != nil {
				return err
			}
			if !row.Pending || row.Host != host || !maps.Equal(row.Labels, g.labels) {
				d = nil
				return nil
			}
			d.Pending = append(d.Pending, g.name)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read agents: %w", err)
	}
	return d, nil
}

func (t *txn) declare(p Principal, cert *identity.Certificate, agents []joinerAgent) (*Declared, error) {
	host, err := member(t, cert)
	if err != nil {
		return nil, err
	}
	if err := t.makeRoom(host.Name, agents); err != nil {
		return nil, err
	}
	d := &Declared{Agents: []AgentChain{}, Pending: []string{}}
	for _, g := range agents {
		row, err := t.declared(host, g)
		if err != nil {
			return nil, err
		}
		state := "active"
		if row.Pending {
			state = "pending"
			d.Pending = append(d.Pending, g.name)
			err = put(t, bucketAgents, g.name, row)
		} else {
			var chain [][]byte
			chain, err = t.issueAgent(row, g.key)
			d.Agents = append(d.Agents, AgentChain{Name: g.name, Chain: chain})
		}
		if err != nil {
			return nil, err
		}
		if err := t.record(p, "declare", "agent/"+g.name, 0, resultDone, fmt.Sprintf("%s: %v", state, row.Labels)); err != nil {
			return nil, err
		}
	}
	return d, t.revokeVoided(p)
}

// declared is the row of an agent that its host declares, anew or again.
func (t *txn) declared(host *hostRow, g joinerAgent) (*agentRow, error) {
	row := new(agentRow)
	found, err := get(t, bucketAgents, g.name, row)
	if err != nil {
		return nil, err
	}
	ours := found && row.Host == host.Name
	same := ours && maps.Equal(row.Labels, g.labels)
	_, beyond := outside(g.labels, host.Grant)
	beyond = beyond && !host.GrantAll
	switch {
	case ours && row.Revoked != nil:
		return nil, &Error{Code: CodeRevoked, Field: "agent", Message: fmt.Sprintf("agent %q was revoked", g.name),
			Fix: "an operator may let it come back with `bulkhead agent approve`; or choose another name"}
	case ours && row.holds() && !same:
		return nil, otherLabels(row)
	case ours && row.holds():
		return row, nil
	case same && !beyond && row.valid(t.now): // it comes back as it went
		row.Withdrawn = nil
		return row, nil
	}
	if row, err = t.claim(g, host.Name); err != nil {
		return nil, err
	}
	if row.Pending = beyond; !beyond {
		row.Addresses, err = t.nextAddresses()
	}
	return row, err
}

func otherLabels(row *agentRow) error {
	fix := "an operator changes them with `bulkhead agent relabel`"
	if row.Pending {
		fix = "remove the agent on its host, then declare it with these"
	}
	return &Error{Code: CodeExists, Field: "labels", Message: fmt.Sprintf("agent %q has other labels: %v", row.Name, row.Labels), Fix: fix}
}

// claim makes the row of an agent whose name nobody holds. What certificates there were of that name are void.
func (t *txn) claim(g joinerAgent, host string) (*agentRow, error) {
	row := new(agentRow)
	found, err := get(t, bucketAgents, g.name, row)
	if err != nil {
		return nil, err
	}
	if found && row.holds() {
		return nil, nameTaken("agent", g.name)
	}
	if row.Withdrawn != nil && row.valid(t.now) {
		row.void(t.now)
		t.voided = append(t.voided, identity.Revocation{ID: "agent/" + g.name, Before: row.Floor, Reason: reasonDeclared})
	}
	// A store restored from a backup does not know of all that hosts hold for void.
	for _, r := range t.a.Policy().Revocations {
		if r.ID == "agent/"+g.name && row.Floor.Before(r.Before) {
			row.Floor = r.Before
		}
	}
	return &agentRow{Name: g.name, Host: host, Labels: g.labels, certified: certified{Floor: row.Floor}}, nil
}

// revokeVoided has the mesh know what this change voided, if anything.
func (t *txn) revokeVoided(p Principal) error {
	if len(t.voided) == 0 {
		return nil
	}
	var names []string
	for _, r := range t.voided {
		names = append(names, r.ID)
	}
	summary := reasonDeclared + ": " + strings.Join(names, " ")
	if err := t.revoke(p, summary, t.voided...); err != nil {
		return err
	}
	return t.record(p, "revoke", names[0], t.Version, resultDone, summary)
}

// makeRoom refuses more agents than a host may have, and forgets those of all hosts that were given up long ago.
func (t *txn) makeRoom(host string, agents []joinerAgent) error {
	carried := map[string]bool{}
	for _, g := range agents {
		carried[g.name] = true
	}
	gone := 0
	var forgotten []string
	err := each(t, bucketAgents, func(r *agentRow) error {
		switch {
		case r.Withdrawn != nil && t.now.Sub(*r.Withdrawn) > leafLife+pruneMargin:
			forgotten = append(forgotten, r.Name)
		case r.Host == host && r.Withdrawn != nil:
			gone++
		case r.Host == host && r.holds():
			carried[r.Name] = true
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, name := range forgotten {
		if _, err := t.Delete(bucketAgents, name); err != nil {
			return err
		}
	}
	switch {
	case len(carried) > maxAgents:
		return tooManyAgents(len(carried))
	case gone > maxGone:
		return &Error{Code: CodeExhausted, Field: "agents", Message: fmt.Sprintf("this host gave up %d agents since yesterday", gone), Fix: "declare agents under names that it had before"}
	}
	return nil
}

// Withdraw gives agents of an enrolled host up: it gets no more certificates for them, and their names are free. Names
// that are not the host's, or not any more, are passed over; what an operator revoked stays revoked.
func (a *Authority) Withdraw(host *identity.Certificate, r WithdrawRequest) error {
	p := Principal{Name: "host/" + host.Name, From: r.From}
	err := a.tryWithdraw(p, host, r)
	if err != nil {
		a.refused(&a.members, p, "withdraw", p.Name, err)
	}
	return err
}

func (a *Authority) tryWithdraw(p Principal, cert *identity.Certificate, r WithdrawRequest) error {
	if err := a.checkHost(cert); err != nil {
		return err
	}
	if len(r.Agents) > maxGone {
		return &Error{Code: CodeInvalid, Field: "agents", Message: fmt.Sprintf("%d names", len(r.Agents)), Fix: fmt.Sprintf("send at most %d at a time", maxGone)}
	}
	return a.update(func(t *txn) error {
		if _, err := member(t, cert); err != nil {
			return err
		}
		for _, name := range r.Agents {
			if err := t.withdraw(p, cert.Name, name); err != nil {
				return err
			}
		}
		return nil
	})
}

func (t *txn) withdraw(p Principal, host, name string) error {
	row := new(agentRow)
	found, err := get(t, bucketAgents, name, row)
	if err != nil || !found || row.Host != host || !row.holds() {
		return err
	}
	if row.Floor.IsZero() && row.NotAfter.IsZero() { // no certificate of it was ever made
		_, err = t.Delete(bucketAgents, name)
	} else {
		row.Pending, row.Withdrawn = false, &t.now
		err = put(t, bucketAgents, name, row)
	}
	if err != nil {
		return err
	}
	return t.record(p, "withdraw", "agent/"+name, 0, resultDone, "")
}

// Approve lets a pending agent take part, or a revoked one again: its host gets a certificate when it asks next. What is
// not as r says is refused, so that nothing else is approved than what was looked at. ifMatch is the policy version
// that was read, 0 for any.
func (a *Authority) Approve(p Principal, name string, r ApproveRequest, ifMatch uint64) (AgentInfo, error) {
	var row *agentRow
	_, err := unchanged(a.change(p, RoleOperator, "approve", "agent/"+name, func(t *txn) (detail string, err error) {
		if ifMatch != 0 && ifMatch != t.Version {
			return "", conflict(t.Version)
		}
		if row, err = t.agent(name); err != nil {
			return "", err
		}
		if row.Withdrawn != nil {
			return "", noAgent(name)
		}
		if err := r.matches(row); err != nil {
			return "", err
		}
		if row.active() {
			return "", errUnchanged
		}
		if err := t.mayCarry(row); err != nil {
			return "", err
		}
		row.Pending, row.Revoked = false, nil
		if row.Addresses, err = t.nextAddresses(); err != nil {
			return "", err
		}
		return fmt.Sprintf("on %s: %v", row.Host, row.Labels), put(t, bucketAgents, name, row)
	}))
	if err != nil {
		return AgentInfo{}, err
	}
	return row.info(), nil
}

// matches refuses an agent that is not what was looked at.
func (r ApproveRequest) matches(row *agentRow) error {
	if r.Host != "" && r.Host != row.Host {
		return &Error{Code: CodeInvalid, Field: "host", Message: fmt.Sprintf("agent %q is on host %q", row.Name, row.Host), Fix: "look at it again, and approve that"}
	}
	if r.Labels != nil && !maps.Equal(r.Labels, row.Labels) {
		return &Error{Code: CodeInvalid, Field: "labels", Message: fmt.Sprintf("agent %q has labels %v", row.Name, row.Labels), Fix: "look at it again, and approve these"}
	}
	return nil
}

// mayCarry refuses to bring back what a host has no room for, or no right to.
func (t *txn) mayCarry(row *agentRow) error {
	host, err := t.host(row.Host)
	if err != nil {
		return err
	}
	if host.Revoked != nil {
		return &Error{Code: CodeRevoked, Field: "host", Message: fmt.Sprintf("host %q was revoked", host.Name), Fix: "declare the agent on another host"}
	}
	if row.Pending { // it counts already
		return nil
	}
	return t.makeRoom(row.Host, []joinerAgent{{name: row.Name}})
}
