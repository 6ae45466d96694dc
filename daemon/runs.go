package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os/user"
	"slices"
	"strconv"
	"sync"

	"github.com/bulkhead-mesh/bulkhead/control/api"
	"github.com/bulkhead-mesh/bulkhead/control/authority"
	"github.com/bulkhead-mesh/bulkhead/overlay"
	"github.com/bulkhead-mesh/bulkhead/platform/scope"
)

// runs are the processes that `bulkhead run` put into cgroups of agents.
type runs struct {
	life   context.Context // the daemon's, which outlives a request
	mu     sync.Mutex
	active map[string]int // by agent
}

func newRuns(life context.Context) *runs { return &runs{life: life, active: make(map[string]int)} }

func (r *runs) add(agent string, n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.active[agent] += n; r.active[agent] <= 0 {
		delete(r.active, agent)
	}
}

func (r *runs) has(agent string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.active[agent] > 0
}

// Run makes the asking process part of an agent, which is declared for as long as that lasts if it is not there and the
// request has labels. It returns when the asker is gone and, with it, all that it started.
func (l local) Run(ctx context.Context, asker api.Asker, r api.RunRequest, entered func(api.RunScope) error) error {
	if err := l.mayRun(asker, r.Agent); err != nil {
		return err
	}
	l.runs.add(r.Agent, 1)
	defer func() {
		l.runs.add(r.Agent, -1)
		l.roster.nudge() // an agent that was declared for this run goes
	}()
	held := l.credentials.get().agent(r.Agent)
	if held != nil && len(r.Labels) > 0 && !maps.Equal(held.Labels, r.Labels) {
		return &authority.Error{Code: authority.CodeExists, Field: "labels", Message: fmt.Sprintf("agent %q has other labels: %v", r.Agent, held.Labels), Fix: "leave --label out, or name another agent"}
	}
	if held == nil {
		if problem := l.roster.problem(r.Agent); problem != "" {
			return &authority.Error{Code: authority.CodeInvalid, Field: "agent", Message: fmt.Sprintf("agent %q of the configuration was not taken: %s", r.Agent, problem), Fix: "change it there, and reload"}
		}
		if len(r.Labels) == 0 {
			return &authority.Error{Code: authority.CodeNotFound, Field: "agent", Message: fmt.Sprintf("this host has no agent %q", r.Agent), Fix: "declare it with `bulkhead agent add`, or give --label"}
		}
		spec := AgentSpec{Name: r.Agent, Labels: r.Labels, Match: overlay.Match{Run: true}}
		if err := l.roster.declare(ctx, declaration{spec, api.SourceRun}); err != nil {
			return err
		}
	}
	if l.credentials.get().agent(r.Agent).Chain == nil {
		return &authority.Error{Code: authority.CodeDenied, Field: "agent", Message: fmt.Sprintf("agent %q waits for approval: its labels are outside this host's grant", r.Agent), Fix: "an operator lets it in with `bulkhead agent approve " + r.Agent + "`"}
	}
	s, err := scope.Enter(ctx, scope.Options{Root: l.cgroupRoot, Verify: asker.Verify}, r.Agent, asker.PID)
	if err != nil {
		return &authority.Error{Code: authority.CodeInvalid, Message: err.Error(), Fix: "see `bulkhead agent list --here`; where there is no cgroup v2, give the agent a user of its own"}
	}
	err = l.follows(ctx, r.Agent)
	if err == nil {
		err = entered(api.RunScope{Agent: r.Agent, Addresses: l.addressesOf(r.Agent)})
	}
	if err == nil {
		<-ctx.Done()
	}
	// What it left behind stays the agent's. A daemon that starts later removes the cgroups that are empty then.
	if waited := s.Wait(l.runs.life); waited != nil {
		return errors.Join(err, waited)
	}
	return errors.Join(err, s.Remove())
}

// mayRun lets root run every agent, and others those that the configuration gives them. A process that is an agent
// already stays that.
func (l local) mayRun(asker api.Asker, agent string) error {
	if !l.isFree(asker.Agent) {
		return &authority.Error{Code: authority.CodeDenied, Field: "agent", Message: fmt.Sprintf("what asks is agent %q itself, and can become no other", asker.Agent),
			Fix: "call `bulkhead run` from a process that is no agent"}
	}
	if asker.UID == 0 {
		return nil
	}
	for _, a := range *l.configured.Load() {
		if a.Name == agent && slices.ContainsFunc(a.Run, func(name string) bool { return isUser(name, asker.UID) }) {
			return nil
		}
	}
	return &authority.Error{Code: authority.CodeDenied, Field: "agent", Message: fmt.Sprintf("user %s may not run agent %q", nameOf(asker.UID), agent),
		Fix: "name the user in `run:` of that agent in the configuration, and reload"}
}

// isFree reports whether a process of this agent may become another's: it is none, or all that no other claims.
func (d *daemon) isFree(agent string) bool {
	return agent == "" || agent == d.mesh.Snapshot().Plan.Bindings.HostAgent()
}

func isUser(name string, uid int) bool {
	if name == strconv.Itoa(uid) {
		return true
	}
	u, err := user.Lookup(name)
	return err == nil && u.Uid == strconv.Itoa(uid)
}

func nameOf(uid int) string {
	id := strconv.Itoa(uid)
	if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return id
}

// follows waits until the kernel knows the processes that run as the agent.
func (l local) follows(ctx context.Context, agent string) error {
	for {
		changed := l.mesh.Changed()
		for _, b := range l.mesh.Snapshot().Plan.Bindings.Agents {
			if b.Agent == agent && len(b.Cgroups) > 0 {
				return l.mesh.Ping()
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

func (l local) addressesOf(agent string) []netip.Addr {
	for _, a := range l.mesh.Snapshot().Plan.Local {
		if a.Name == agent {
			return a.Addresses
		}
	}
	return nil
}
