package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/bulkhead-mesh/bulkhead/control/api"
	"github.com/bulkhead-mesh/bulkhead/deploy/lab"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

// policy is what the demo enforces. What it does not allow is denied.
const policy = `
segments:
  - {name: planners, match: {function: plan,  sensitivity: internal}}
  - {name: auditors, match: {function: plan,  sensitivity: restricted}}
  - {name: catalogs, match: {function: store, sensitivity: internal}}
  - {name: vaults,   match: {function: store, sensitivity: restricted}}
rules:
  - {name: plan-by-catalog, from: planners, to: catalogs, allow: [tcp/80, tcp/5432]}
  - {name: audit-vaults,    from: auditors, to: vaults,   allow: [tcp/5432]}
  - {name: audit-catalogs,  from: auditors, to: catalogs, allow: [tcp/80], crosses: "auditors only read there"}
`

// withdrawn is the rule that the demo deletes.
const withdrawn = "audit-catalogs"

// allowed is what the policy means, said once more and otherwise, so that a policy which allows nothing is noticed.
var allowed = map[flow]bool{
	{"planner", "catalog", web}:      true,
	{"planner", "catalog", postgres}: true,
	{"auditor", "vault", postgres}:   true,
	{"auditor", "catalog", web}:      true,
}

// cast are the hosts in order; the first has the control role and no agent.
var cast = []lab.Spec{
	{},
	{Agent: "planner", Labels: segment.Labels{"function": "plan", "sensitivity": "internal"}},
	{Agent: "auditor", Labels: segment.Labels{"function": "plan", "sensitivity": "restricted"}},
	{Agent: "catalog", Labels: segment.Labels{"function": "store", "sensitivity": "internal"}},
	{Agent: "vault", Labels: segment.Labels{"function": "store", "sensitivity": "restricted"}},
}

// stage is the mesh with its agents and what they serve.
type stage struct {
	mesh    *lab.Mesh
	control *api.Client // of the control host, as its local operator
	agents  map[string]*agent
	order   []string // names of agents
	servers []*server
}

// agent is an agent and the host that it runs on.
type agent struct {
	node  *lab.Node
	addrs []netip.Addr // IPv4, then IPv6
}

// newStage makes the mesh and starts both servers on each agent's addresses.
func newStage(ctx context.Context, binary string) (_ *stage, err error) {
	s := &stage{agents: map[string]*agent{}}
	if s.mesh, err = lab.NewMesh(ctx, binary, cast...); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if s.control, err = api.Dial(api.DialOptions{Socket: s.mesh.Hosts[0].Socket()}); err != nil {
		return nil, err
	}
	for _, node := range s.mesh.Hosts {
		if node.Agent == "" {
			continue
		}
		status, err := node.Status(ctx)
		if err != nil {
			return nil, err
		}
		if len(status.Agents) != 1 {
			return nil, fmt.Errorf("%s says that it has %d agents, not 1", node.Name, len(status.Agents))
		}
		s.agents[node.Agent] = &agent{node: node, addrs: status.Agents[0].Addresses}
		s.order = append(s.order, node.Agent)
		serving, err := serve(node, status.Agents[0].Addresses)
		if err != nil {
			return nil, err
		}
		s.servers = append(s.servers, serving)
	}
	return s, nil
}

func (s *stage) close() error {
	var faults error
	for _, server := range s.servers {
		faults = errors.Join(faults, server.close())
	}
	if s.control != nil {
		s.control.Close()
	}
	return errors.Join(faults, s.mesh.Close())
}

// cast prints who is where.
func (b *board) cast(s *stage) error {
	rows := [][]string{{"HOST", "AGENT", "FUNCTION", "SENSITIVITY", "ADDRESSES"}}
	for _, node := range s.mesh.Hosts {
		row := []string{node.Name, "(control)", "", "", ""}
		if a := s.agents[node.Agent]; a != nil {
			row = []string{node.Name, node.Agent, node.Labels["function"], node.Labels["sensitivity"], fmt.Sprintf("%s, %s", a.addrs[0], a.addrs[1])}
		}
		rows = append(rows, row)
	}
	return b.table(rows)
}
