package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strconv"
	"time"

	"github.com/bulkhead-mesh/bulkhead/control/api"
	"github.com/bulkhead-mesh/bulkhead/deploy/lab"
	"github.com/bulkhead-mesh/bulkhead/overlay"
	"github.com/bulkhead-mesh/bulkhead/platform/kv"
)

const (
	crowdAgents = 1000 // in all, the two that are measured among them
	crowdHosts  = 20   // that carry the other 998 and are away
	storeWait   = 5 * time.Second
)

// crowd is a mesh in which two real hosts, with one agent each, know a thousand agents; a third is control.
//
// The other agents are members in full, whose hosts just happen to be away: each host is enrolled by the mesh's own
// authority with a token of its own, over the API, and signs its record with its own key, as a daemon would. The
// records are put into the store of one of the two hosts while its daemon is stopped, and spread from there to the
// others in the product's own way: every daemon pulls, verifies and stores them by itself. With the hosts away,
// nothing but the two daemons has work to do during a measurement.
type crowd struct {
	mesh         *lab.Mesh
	left, right  *lab.Node
	rightAddress netip.Addr
	known        known
}

// known is what both measured hosts have said, by themselves and equally, that they know and enforce.
type known struct {
	Agents  int `json:"agents"`
	Rules   int `json:"rules"`
	Entries int `json:"setEntries"` // in all kernel sets of the worse host
}

func newCrowd(ctx context.Context, binary string, p *progress) (c *crowd, err error) {
	p.say("throughput: found a mesh of three hosts")
	mesh, err := lab.NewMesh(ctx, binary, lab.Spec{},
		lab.Spec{Agent: measured[0], Labels: crowdLabels(measured[0])}, lab.Spec{Agent: measured[1], Labels: crowdLabels(measured[1])})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, mesh.Close())
		}
	}()
	c = &crowd{mesh: mesh, left: mesh.Hosts[1], right: mesh.Hosts[2]}
	status, err := c.right.Status(ctx)
	if err != nil {
		return nil, err
	}
	if len(status.Agents) != 1 || len(status.Agents[0].Addresses) == 0 {
		return nil, fmt.Errorf("%s has %d agents, not one with an address", c.right.Name, len(status.Agents))
	}
	c.rightAddress = status.Agents[0].Addresses[0]
	if err := c.populate(ctx, p); err != nil {
		return nil, err
	}
	return c, c.enforce(ctx, p)
}

// populate enrols the other agents and makes the mesh know them.
func (c *crowd) populate(ctx context.Context, p *progress) error {
	control := dialNode(c.mesh.Hosts[0])
	defer control.Close()
	p.say("throughput: enrol %d more agents on %d hosts", crowdAgents-2, crowdHosts)
	var policy []byte
	var records [][]byte
	left := crowdAgents - 2
	for i := range crowdHosts {
		share := left / (crowdHosts - i)
		left -= share
		m, err := enrolMember(ctx, control, c.mesh.Hosts[0].Socket(), i, share)
		if err != nil {
			return fmt.Errorf("enrol host %d of the crowd: %w", i+1, err)
		}
		record, err := m.record()
		if err != nil {
			return err
		}
		if i == 0 {
			records = m.enrolled.Records // control's own, which the store has from the start
		}
		policy, records = m.enrolled.Policy, append(records, record)
	}
	stopping, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := c.left.Daemon.Stop(stopping); err != nil {
		return err
	}
	store, err := kv.Open(filepath.Join(c.left.StateDir(), "host.db"), storeWait)
	if err != nil {
		return err
	}
	if err := errors.Join(overlay.Seed(store, policy, records), store.Close()); err != nil {
		return err
	}
	return c.left.StartDaemon()
}

// enforce applies the rules and waits until both hosts say that they know all agents and enforce all rules.
func (c *crowd) enforce(ctx context.Context, p *progress) error {
	p.say("throughput: apply %d rules, wait until both hosts know %d agents and enforce them", crowdRules, crowdAgents)
	document, err := crowdPolicy().Marshal()
	if err != nil {
		return err
	}
	control := dialNode(c.mesh.Hosts[0])
	defer control.Close()
	change, err := control.PutPolicy(ctx, document, 0)
	if err != nil {
		return fmt.Errorf("apply policy: %w", err)
	}
	for _, node := range []*lab.Node{c.left, c.right} {
		var now known
		err := lab.Eventually(ctx, patience, func() (err error) {
			now, err = knownBy(ctx, node, change.Version)
			if err == nil && (now.Agents != crowdAgents || now.Rules != crowdRules) {
				err = fmt.Errorf("%s knows %d agents and %d rules", node.Name, now.Agents, now.Rules)
			}
			return err
		})
		if err != nil {
			return err
		}
		c.known = known{now.Agents, now.Rules, max(now.Entries, c.known.Entries)}
	}
	return nil
}

// knownBy asks a host over its own socket; an error if it does not enforce the policy version.
func knownBy(ctx context.Context, node *lab.Node, version uint64) (k known, err error) {
	client := dialNode(node)
	defer client.Close()
	status, err := client.Status(ctx)
	if err != nil {
		return k, err
	}
	if status.Phase != "ready" || status.PolicyVersion != version {
		return k, fmt.Errorf("%s is %s at policy version %d, not ready at %d", node.Name, status.Phase, status.PolicyVersion, version)
	}
	agents, err := client.Agents(ctx)
	if err != nil {
		return k, err
	}
	rules, err := client.Rules(ctx)
	if err != nil {
		return k, err
	}
	entries, err := setEntries(ctx, node)
	return known{len(agents), len(rules), entries}, err
}

// setEntries counts what the kernel sets of a host hold.
func setEntries(ctx context.Context, node *lab.Node) (int, error) {
	out, err := node.Host.Run(ctx, "ipset", "list", "-t")
	if err == nil {
		err = out.Err()
	}
	if err != nil {
		return 0, err
	}
	sum := 0
	for line := range bytes.Lines([]byte(out.Stdout)) {
		if text, ok := bytes.CutPrefix(line, []byte("Number of entries: ")); ok {
			n, err := strconv.Atoi(string(bytes.TrimSpace(text)))
			if err != nil {
				return 0, fmt.Errorf("count set entries: %w", err)
			}
			sum += n
		}
	}
	return sum, nil
}

// dialNode talks to a node as its local operator. Sockets with a path are the same in all network namespaces.
func dialNode(n *lab.Node) *api.Client {
	// A socket has nothing that could be wrong before the first call.
	client, _ := api.Dial(api.DialOptions{Socket: n.Socket()})
	return client
}
