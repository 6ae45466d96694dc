package daemon

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/bulkhead-mesh/bulkhead/control/api"
	"github.com/bulkhead-mesh/bulkhead/control/authority"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
)

const (
	renewPause   = 2 * time.Second // between two attempts, growing
	renewPauseMx = 10 * time.Minute
)

// renew renews certificates at two thirds of their life, and at once when one of an agent here became void
// (a relabelled agent gets its new labels so).
func (d *daemon) renew(ctx context.Context) error {
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = renewPause, renewPauseMx
	for {
		changed := d.mesh.Changed()
		wait := time.Until(d.renewalDue(time.Now()))
		if wait <= 0 {
			if err := d.renewOnce(ctx); err != nil {
				if ctx.Err() != nil {
					return nil
				}
				d.log.Warn("renew certificates", "error", err)
				d.renewalError.Store(&err)
				wait = pause.NextBackOff()
			} else {
				d.renewalError.Store(nil)
				pause.Reset()
				wait = renewPause
			}
			changed = nil // not again before the pause is over
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-changed:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// renewalDue is when the first certificate here is due; the zero time if one is void already.
func (d *daemon) renewalDue(now time.Time) time.Time {
	own := d.mesh.Snapshot().Records[d.credentials.get().Host]
	if own == nil || len(own.AgentCerts) < len(own.Agents) {
		return time.Time{}
	}
	due := own.HostCert.RenewAt()
	for _, c := range own.AgentCerts {
		if at := c.RenewAt(); at.Before(due) {
			due = at
		}
	}
	return due
}

// renewOnce gets new keys certified, stores them, and tells the mesh.
func (d *daemon) renewOnce(ctx context.Context) error {
	c := d.credentials.get()
	roots, err := c.roots()
	if err != nil {
		return err
	}
	applicant, err := renewal(c)
	if err != nil {
		return err
	}
	enrollment, err := d.askRenewal(ctx, authority.RenewRequest{HostCSR: applicant.hostCSR, Agents: applicant.agents})
	if err != nil {
		return err
	}
	if err := applicant.verify(enrollment, identity.Fingerprint(roots[0]), time.Now()); err != nil {
		return err
	}
	if err := d.credentials.change(func(c *Credentials) error { return applicant.renew(c, enrollment) }); err != nil {
		return err
	}
	if err := d.publishSelf(); err != nil {
		return err
	}
	d.roster.nudge()
	d.log.Info("certificates renewed", "agents", len(enrollment.Agents))
	return nil
}

// askRenewal asks the authority here, or a control host.
func (d *daemon) askRenewal(ctx context.Context, req authority.RenewRequest) (*authority.Enrollment, error) {
	return askControl(d, func(a *authority.Authority, cert *identity.Certificate) (*authority.Enrollment, error) {
		req.From = "local"
		return a.Renew(cert, req)
	}, func(client *api.Client) (*authority.Enrollment, error) { return client.Renew(ctx, req) })
}

// askControl asks the authority here, which is told who asks, or the control hosts in turn.
func askControl[T any](d *daemon, here func(*authority.Authority, *identity.Certificate) (T, error), there func(*api.Client) (T, error)) (answer T, err error) {
	c := d.credentials.get()
	if d.authority != nil {
		cert, err := d.mesh.Trust().Verify(c.Chain, identity.KindHost, time.Now())
		if err != nil {
			return answer, err
		}
		return here(d.authority, cert)
	}
	var faults []error
	for _, addr := range c.Control {
		client, err := d.controlClient(addr)
		if err != nil {
			return answer, err
		}
		answer, err := there(client)
		if err == nil {
			return answer, nil
		}
		faults = append(faults, fmt.Errorf("control %s: %w", addr, err))
		if problem := (*api.Problem)(nil); errors.As(err, &problem) {
			break // an answer, not a failure to reach one
		}
	}
	return answer, errors.Join(faults...)
}

// publish hands every policy version of the authority here to the mesh.
func (d *daemon) publish(ctx context.Context) error {
	if d.authority == nil {
		return nil
	}
	for {
		changed := d.mesh.Changed()
		wait := time.Hour
		err := d.publishOnce()
		if err != nil && ctx.Err() == nil {
			d.log.Error("publish policy", "version", d.authority.Policy().Version, "error", err)
			wait = time.Second
		}
		d.publishError.Store(&err)
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-d.newPolicy:
		case <-changed:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// publishOnce gives the mesh the authority's policy, or the authority the mesh's, if that is what it has lost.
func (d *daemon) publishOnce() error {
	held, own := d.mesh.Snapshot().Policy, d.authority.Policy()
	if held != nil && held.Digest == own.Digest {
		return nil
	}
	if held != nil && held.Version >= own.Version {
		if err := d.authority.Recover(held); err != nil {
			return err
		}
	}
	return d.mesh.SubmitPolicy(d.authority.Policy().Raw)
}
