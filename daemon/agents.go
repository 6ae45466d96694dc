package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/bulkhead-mesh/bulkhead/control/api"
	"github.com/bulkhead-mesh/bulkhead/control/authority"
	"github.com/bulkhead-mesh/bulkhead/overlay"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

// approvalPoll is how often control is asked whether an operator has approved an agent.
const approvalPoll = 2 * time.Second

// roster declares agents of this host to control and gives them up.
type roster struct {
	*daemon
	mu   sync.Mutex    // one declaration at a time
	wake chan struct{} // there is something to tend

	faultsMu sync.Mutex
	faults   map[string]string // why control did not take configured agents
}

// declaration is an agent as someone declares it.
type declaration struct {
	AgentSpec
	source api.Source
}

// declare makes an agent of this host, or changes what it matches. It is certified at once if its labels are within
// the host's grant; otherwise it waits for an operator and reaches nothing. Declaring it again is no error.
func (r *roster) declare(ctx context.Context, d declaration) error {
	if err := d.validate(); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.fits(d); err != nil {
		return err
	}
	if held := r.credentials.get().agent(d.Name); held != nil && held.Chain != nil {
		if held.Match.Equal(d.Match) && held.Source == d.source {
			return nil
		}
		return r.change(func(c *Credentials) error {
			a := c.agent(d.Name)
			a.Match, a.Source = d.Match, d.source
			return nil
		})
	}
	return r.certify(ctx, d)
}

func (d *declaration) validate() error {
	if err := segment.ValidName(d.Name); err != nil {
		return &authority.Error{Code: authority.CodeInvalid, Field: "name", Message: err.Error()}
	}
	if err := segment.ValidLabels(d.Labels); err != nil {
		return &authority.Error{Code: authority.CodeInvalid, Field: "labels", Message: err.Error()}
	}
	if err := d.Match.Validate(); err != nil {
		return &authority.Error{Code: authority.CodeInvalid, Field: "match", Message: err.Error()}
	}
	return nil
}

// fits refuses a declaration that contradicts those that are there.
func (r *roster) fits(d declaration) error {
	for _, a := range r.credentials.get().Agents {
		// Two of the configuration file, which has been checked, may be about to trade places.
		trade := a.Source == api.SourceConfig && d.source == api.SourceConfig
		switch {
		case a.Name != d.Name && d.Match.SharedWith(a.Match) && !trade:
			return &authority.Error{Code: authority.CodeExists, Field: "match", Message: fmt.Sprintf("%s is agent %q already", d.Match, a.Name), Fix: "give this one another match, or remove the other"}
		case a.Name == d.Name && a.Source == api.SourceConfig && d.source != api.SourceConfig:
			return &authority.Error{Code: authority.CodeExists, Field: "name", Message: fmt.Sprintf("agent %q is declared in the configuration file", a.Name), Fix: "change it there, and reload"}
		case a.Name == d.Name && !maps.Equal(a.Labels, d.Labels):
			return &authority.Error{Code: authority.CodeExists, Field: "labels", Message: fmt.Sprintf("agent %q has other labels: %v", a.Name, a.Labels), Fix: "an operator changes them with `bulkhead agent relabel`; or remove it first"}
		}
	}
	return nil
}

// certify asks control for the agent's certificate, and keeps what it says.
func (r *roster) certify(ctx context.Context, d declaration) error {
	c := r.credentials.get()
	applicant, err := newApplicant(c.Mesh, c.Host, c.WireGuard, []AgentSpec{d.AgentSpec})
	if err != nil {
		return err
	}
	req := authority.DeclareRequest{Agents: applicant.agents, From: "local"}
	declared, err := askControl(r.daemon, func(a *authority.Authority, cert *identity.Certificate) (*authority.Declared, error) {
		return a.Declare(cert, req)
	}, func(client *api.Client) (*authority.Declared, error) { return client.Declare(ctx, req) })
	if err != nil {
		return ofOne(err)
	}
	if err := applicant.verifyAgents(r.mesh.Trust(), declared.Agents, time.Now()); err != nil {
		return err
	}
	pending := slices.Contains(declared.Pending, d.Name)
	if !pending && len(declared.Agents) == 0 {
		return fmt.Errorf("control neither certified agent %q nor keeps it for approval", d.Name)
	}
	if held := c.agent(d.Name); pending && held != nil && held.Match.Equal(d.Match) && held.Source == d.source {
		return nil
	}
	return r.change(func(c *Credentials) error {
		if c.agent(d.Name) == nil {
			c.Agents = append(c.Agents, AgentCredentials{Name: d.Name, Labels: d.Labels})
		}
		a := c.agent(d.Name)
		a.Match, a.Source = d.Match, d.source
		c.Withdrawn = slices.DeleteFunc(c.Withdrawn, func(name string) bool { return name == d.Name })
		return applicant.certify(c, &authority.Enrollment{Agents: declared.Agents})
	})
}

// withdraw gives an agent up: here at once, at control as soon as it is in reach.
func (r *roster) withdraw(ctx context.Context, name string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.credentials.get().agent(name) == nil {
		return &authority.Error{Code: authority.CodeNotFound, Field: "name", Message: fmt.Sprintf("this host has no agent %q", name), Fix: "see `bulkhead agent list --here`"}
	}
	err := r.change(func(c *Credentials) error {
		c.Agents = slices.DeleteFunc(c.Agents, func(a AgentCredentials) bool { return a.Name == name })
		c.Withdrawn = append(c.Withdrawn, name)
		return nil
	})
	if err != nil {
		return err
	}
	if err := r.reportWithdrawn(ctx); err != nil {
		r.log.Warn("tell control of withdrawn agents; trying again", "error", err)
		r.nudge()
	}
	return nil
}

// remove is withdraw for an operator of this host, who changes the configuration file himself.
func (r *roster) remove(ctx context.Context, name string) error {
	if a := r.credentials.get().agent(name); a != nil && a.Source == api.SourceConfig {
		return &authority.Error{Code: authority.CodeExists, Field: "name", Message: fmt.Sprintf("agent %q is declared in the configuration file", name), Fix: "remove it there, and reload"}
	}
	return r.withdraw(ctx, name)
}

// problem is why control did not take a configured agent.
func (r *roster) problem(name string) string {
	r.faultsMu.Lock()
	defer r.faultsMu.Unlock()
	return r.faults[name]
}

// reportWithdrawn tells control which agents are no more.
func (r *roster) reportWithdrawn(ctx context.Context) error {
	names := r.credentials.get().Withdrawn
	if len(names) == 0 {
		return nil
	}
	req := authority.WithdrawRequest{Agents: names, From: "local"}
	_, err := askControl(r.daemon, func(a *authority.Authority, cert *identity.Certificate) (struct{}, error) {
		return struct{}{}, a.Withdraw(cert, req)
	}, func(client *api.Client) (struct{}, error) { return struct{}{}, client.Withdraw(ctx, req) })
	if err != nil {
		return err
	}
	return r.credentials.change(func(c *Credentials) error {
		c.Withdrawn = slices.DeleteFunc(c.Withdrawn, func(name string) bool { return slices.Contains(names, name) })
		return nil
	})
}

// change stores other credentials; the watcher and the mesh follow.
func (r *roster) change(fn func(*Credentials) error) error {
	if err := r.credentials.change(fn); err != nil {
		return err
	}
	r.watch()
	return r.publishSelf()
}

func (r *roster) nudge() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// run keeps the agents as the configuration says, asks for approvals, and reports what was withdrawn, until ctx ends.
func (r *roster) run(ctx context.Context) error {
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = renewPause, renewPauseMx
	for {
		wait := idleWatch
		if err := r.tend(ctx); err != nil && ctx.Err() == nil {
			r.log.Warn("declare agents; trying again", "error", err)
			wait = pause.NextBackOff()
		} else {
			pause.Reset()
		}
		if r.waiting() {
			wait = min(wait, approvalPoll)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-r.wake:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// waiting reports whether an agent waits for an operator.
func (r *roster) waiting() bool {
	return slices.ContainsFunc(r.credentials.get().Agents, func(a AgentCredentials) bool { return a.Chain == nil })
}

// tend does what is left to do; one agent that control refuses does not keep the others waiting.
func (r *roster) tend(ctx context.Context) error {
	var faults []error
	if err := r.reportWithdrawn(ctx); err != nil {
		faults = append(faults, err)
	}
	configured := *r.configured.Load()
	for _, a := range r.credentials.get().Agents {
		isConfigured := slices.ContainsFunc(configured, func(c AgentConfig) bool { return c.Name == a.Name })
		switch {
		case a.Source == api.SourceRun && !r.runs.has(a.Name), a.Source == api.SourceConfig && !isConfigured:
			faults = append(faults, r.withdraw(ctx, a.Name))
		case a.Chain == nil && !isConfigured:
			faults = append(faults, r.declareAgain(ctx, declaration{AgentSpec{a.Name, a.Labels, a.Match}, a.Source}))
		}
	}
	refused := make(map[string]string)
	for _, a := range configured {
		if err := r.declare(ctx, declaration{AgentSpec{a.Name, a.Labels, a.Match}, api.SourceConfig}); err != nil {
			refused[a.Name] = err.Error()
			faults = append(faults, fmt.Errorf("agent %s: %w", a.Name, err))
		}
	}
	r.faultsMu.Lock()
	r.faults = refused
	r.faultsMu.Unlock()
	return errors.Join(faults...)
}

// declareAgain asks for an agent that waits for an operator. One that an operator has turned down is no more.
func (r *roster) declareAgain(ctx context.Context, d declaration) error {
	err := r.declare(ctx, d)
	if codeOf(err) != authority.CodeRevoked {
		return err
	}
	r.log.Warn("an operator has revoked an agent", "agent", d.Name)
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.change(func(c *Credentials) error {
		c.Agents = slices.DeleteFunc(c.Agents, func(a AgentCredentials) bool { return a.Name == d.Name })
		return nil
	})
}

// ofOne names the field as the one who declared a single agent knows it.
func ofOne(err error) error {
	const first = "agents[0]."
	if refusal, ok := errors.AsType[*authority.Error](err); ok {
		own := *refusal
		own.Field = strings.TrimPrefix(own.Field, first)
		return &own
	}
	if problem, ok := errors.AsType[*api.Problem](err); ok {
		own := *problem
		own.Field = strings.TrimPrefix(own.Field, first)
		return &own
	}
	return err
}

// codeOf is the code of the authority's refusal, here or over the API.
func codeOf(err error) authority.Code {
	if refusal, ok := errors.AsType[*authority.Error](err); ok {
		return refusal.Code
	}
	if problem, ok := errors.AsType[*api.Problem](err); ok {
		return problem.Code
	}
	return ""
}

// watch has the platform look for the processes of the agents that there are.
func (r *roster) watch() {
	matches := make(map[string]overlay.Match)
	for _, a := range r.credentials.get().Agents {
		if a.Chain != nil {
			matches[a.Name] = a.Match
		}
	}
	r.workloads.Set(matches)
}
