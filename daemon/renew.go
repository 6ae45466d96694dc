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
	if own == nil || len(own.AgentCerts) < len(d.credentials.get().Agents) {
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
	enrollment, err := d.askRenewal(ctx, c, authority.RenewRequest{HostCSR: applicant.hostCSR, Agents: applicant.agents})
	if err != nil {
		return err
	}
	if err := applicant.verify(enrollment, identity.Fingerprint(roots[0]), time.Now()); err != nil {
		return err
	}
	renewed, err := applicant.credentials(enrollment, c.Advertise, c.Control)
	if err != nil {
		return err
	}
	if err := d.credentials.replace(renewed); err != nil {
		return err
	}
	self, err := d.self()
	if err != nil {
		return err
	}
	if err := d.mesh.SetSelf(self); err != nil {
		return fmt.Errorf("publish renewed record: %w", err)
	}
	d.log.Info("certificates renewed", "agents", len(renewed.Agents))
	return nil
}

// askRenewal asks the authority here, or the control hosts in turn.
func (d *daemon) askRenewal(ctx context.Context, c *Credentials, req authority.RenewRequest) (*authority.Enrollment, error) {
	if d.authority != nil {
		cert, err := d.mesh.Trust().Verify(c.Chain, identity.KindHost, time.Now())
		if err != nil {
			return nil, err
		}
		req.From = "local"
		return d.authority.Renew(cert, req)
	}
	var faults []error
	for _, addr := range c.Control {
		client, err := d.controlClient(addr)
		if err != nil {
			return nil, err
		}
		enrollment, err := client.Renew(ctx, req)
		if err == nil {
			return enrollment, nil
		}
		faults = append(faults, fmt.Errorf("control %s: %w", addr, err))
		if problem := (*api.Problem)(nil); errors.As(err, &problem) {
			break // an answer, not a failure to reach one
		}
	}
	return nil, errors.Join(faults...)
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
