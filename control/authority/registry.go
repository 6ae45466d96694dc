package authority

import (
	"fmt"
	"slices"
	"time"

	"github.com/bulkhead-mesh/bulkhead/overlay"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

// list maps every row of a bucket, in key order.
func list[Row, Info any](a *Authority, bucket string, info func(overlay.Tx, *Row) (Info, error)) ([]Info, error) {
	all := []Info{}
	err := a.store.View(func(tx overlay.Tx) error {
		return each(tx, bucket, func(r *Row) error {
			i, err := info(tx, r)
			all = append(all, i)
			return err
		})
	})
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", bucket, err)
	}
	return all, nil
}

// Hosts lists every host that ever joined, by name.
func (a *Authority) Hosts() ([]HostInfo, error) {
	var carried map[string][]string
	return list(a, bucketHosts, func(tx overlay.Tx, r *hostRow) (HostInfo, error) {
		if carried == nil {
			carried = map[string][]string{}
			err := each(tx, bucketAgents, func(g *agentRow) error {
				if g.active() {
					carried[g.Host] = append(carried[g.Host], g.Name)
				}
				return nil
			})
			if err != nil {
				return HostInfo{}, err
			}
		}
		return HostInfo{Name: r.Name, Agents: slices.Concat([]string{}, carried[r.Name]), Joined: r.Joined,
			Expires: r.NotAfter, Control: r.Control, Revoked: r.Revoked}, nil
	})
}

// Agents lists every agent, by name: those that wait for approval too, and revoked ones until another takes the name.
func (a *Authority) Agents() ([]AgentInfo, error) {
	all := []AgentInfo{}
	err := a.store.View(func(tx overlay.Tx) error {
		return each(tx, bucketAgents, func(r *agentRow) error {
			if r.Withdrawn == nil {
				all = append(all, r.info())
			}
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("list agents: %w", err)
	}
	return all, nil
}

func (r *agentRow) info() AgentInfo {
	return AgentInfo{Agent: r.agent(), Pending: r.Pending, Expires: r.NotAfter, Revoked: r.Revoked}
}

// PolicyAgents lists the agents that policy is about: the active ones, by name.
func (a *Authority) PolicyAgents() (all []segment.Agent, err error) {
	err = a.store.View(func(tx overlay.Tx) error {
		all, err = policyAgents(tx)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list agents: %w", err)
	}
	return all, nil
}

func policyAgents(tx overlay.Tx) ([]segment.Agent, error) {
	var all []segment.Agent
	err := each(tx, bucketAgents, func(r *agentRow) error {
		if r.active() {
			all = append(all, r.agent())
		}
		return nil
	})
	return all, err
}

func (r *agentRow) agent() segment.Agent {
	return segment.Agent{Name: r.Name, Host: r.Host, Labels: r.Labels, Addresses: r.Addresses}
}

func (t *txn) host(name string) (*hostRow, error) {
	row := new(hostRow)
	found, err := get(t, bucketHosts, name, row)
	if err == nil && !found {
		err = noHost(name)
	}
	return row, err
}

func noHost(name string) error {
	return &Error{Code: CodeNotFound, Field: "host", Message: fmt.Sprintf("no host %q", name), Fix: "see `bulkhead host list`"}
}

func (t *txn) agent(name string) (*agentRow, error) {
	row := new(agentRow)
	found, err := get(t, bucketAgents, name, row)
	if err == nil && !found {
		err = noAgent(name)
	}
	return row, err
}

func noAgent(name string) error {
	return &Error{Code: CodeNotFound, Field: "agent", Message: fmt.Sprintf("no agent %q", name), Fix: "see `bulkhead agent list`"}
}

// controlHosts are the names of the control hosts that are not revoked.
func (t *txn) controlHosts() ([]string, error) {
	names := []string{}
	err := each(t, bucketHosts, func(r *hostRow) error {
		if r.Control && r.Revoked == nil {
			names = append(names, r.Name)
		}
		return nil
	})
	return names, err
}

// issue sets when the next certificate counts from and ends. It is whole seconds, as certificates carry
// them, and never before the floor, so that it survives the revocation that set the floor.
func (c *certified) issue(now time.Time, life time.Duration) {
	c.Issued = now.UTC().Truncate(time.Second)
	if c.Issued.Before(c.Floor) {
		c.Issued = c.Floor
	}
	c.NotAfter = c.Issued.Add(life)
}

// void raises the floor over every certificate issued until now, also those issued in this very second, or
// while our clock ran ahead. The floor is the time for the revocation.
func (c *certified) void(now time.Time) {
	if c.Issued.After(now) {
		now = c.Issued
	}
	c.Floor = now.UTC().Truncate(time.Second).Add(time.Second)
}

// revoke voids what was issued, and marks that nothing more will be.
func (c *certified) revoke(now time.Time) {
	c.void(now)
	c.Revoked = &now
}
