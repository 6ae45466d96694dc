package daemon

import (
	"cmp"
	"context"
	"slices"

	"github.com/bulkhead-mesh/bulkhead/control/api"
	"github.com/bulkhead-mesh/bulkhead/overlay"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

// AddAgent declares an agent of this host.
func (l local) AddAgent(ctx context.Context, d api.AgentDeclaration) (api.LocalAgent, error) {
	spec := AgentSpec{Name: d.Name, Labels: d.Labels, Match: d.Match}
	if err := l.roster.declare(ctx, declaration{spec, api.SourceCLI}); err != nil {
		return api.LocalAgent{}, err
	}
	l.roster.nudge() // it may wait for an operator
	return l.localAgent(*l.credentials.get().agent(d.Name)), nil
}

// RemoveAgent gives an agent of this host up.
func (l local) RemoveAgent(ctx context.Context, name string) error {
	return l.roster.remove(ctx, name)
}

// LocalAgents are the agents of this host, sorted by name, and those of the configuration that control has not answered.
func (l local) LocalAgents() []api.LocalAgent {
	out := []api.LocalAgent{}
	c := l.credentials.get()
	for _, a := range c.Agents {
		out = append(out, l.localAgent(a))
	}
	for _, a := range *l.configured.Load() {
		if c.agent(a.Name) == nil {
			out = append(out, api.LocalAgent{
				Name: a.Name, State: api.AgentDeclared, Labels: a.Labels, Match: a.Match, Source: api.SourceConfig,
				Segments: []string{}, NotEnforced: []string{}, Problem: l.roster.problem(a.Name),
			})
		}
	}
	slices.SortFunc(out, func(a, b api.LocalAgent) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

func (l local) localAgent(a AgentCredentials) api.LocalAgent {
	out := api.LocalAgent{
		Name: a.Name, State: api.AgentPending, Labels: a.Labels, Match: a.Match, Source: a.Source,
		Segments: []string{}, NotEnforced: []string{}, Problem: l.workloads.Problems()[a.Name],
	}
	s := l.mesh.Snapshot()
	for _, b := range s.Plan.Bindings.Agents {
		if b.Agent == a.Name {
			out.Processes = b.Host || len(b.Cgroups)+len(b.UIDs) > 0
			out.NotEnforced = append(out.NotEnforced, l.binder.Limits(overlay.BindingConfig{Agents: []overlay.Binding{b}})...)
		}
	}
	for _, agent := range s.Plan.Local {
		if agent.Name == a.Name {
			out.Labels, out.Addresses = agent.Labels, agent.Addresses
			out.Segments = append(out.Segments, segmentsOf(s, agent)...)
		}
	}
	if out.Labels == nil {
		out.Labels = segment.Labels{}
	}
	if a.Chain != nil {
		out.State = api.AgentActive
		if !out.Processes {
			out.State = api.AgentWaiting
		}
	}
	return out
}

func segmentsOf(s *overlay.Snapshot, a segment.Agent) []string {
	if s.Policy == nil {
		return nil
	}
	return s.Policy.Parsed.SegmentsOf(a)
}
