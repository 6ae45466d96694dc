package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/bulkhead-mesh/bulkhead/control/api"
	"github.com/bulkhead-mesh/bulkhead/overlay"
	"github.com/bulkhead-mesh/bulkhead/platform"
)

const (
	recheckInterval = 30 * time.Second // for connections whose certificate ended, and addresses that changed
	idleWatch       = time.Hour
)

// supervise keeps the phase true, tells systemd about it, and takes new configurations.
func (d *daemon) supervise(ctx context.Context) error {
	watchdog := platform.WatchdogInterval()
	if watchdog == 0 {
		watchdog = idleWatch
	}
	beat := time.NewTicker(watchdog)
	defer beat.Stop()
	recheck := time.NewTicker(recheckInterval)
	defer recheck.Stop()
	seen := d.mesh.Snapshot()
	for {
		changed, now := d.mesh.Changed(), d.mesh.Snapshot()
		d.report(seen, now)
		d.judge(now)
		seen = now
		select {
		case <-ctx.Done():
			d.lifecycle.enter(Draining, "")
			d.notify("STOPPING=1")
			return nil
		case <-changed:
		case <-beat.C:
			// A loop that hangs must not look alive.
			if err := d.mesh.Ping(); err == nil {
				d.notify("WATCHDOG=1")
			}
		case <-recheck.C:
			d.link.Recheck()
			d.refreshSelf()
		case <-d.options.Reload:
			d.reloadConfig()
		}
	}
}

// judge sets the phase by what a snapshot says.
func (d *daemon) judge(s *overlay.Snapshot) {
	problems := slices.Clone(s.Problems)
	if s.Records[d.credentials.get().Host] == nil {
		problems = append(problems, "this host's certificate is expired or revoked: its agents reach nothing")
	}
	if err := d.renewalError.Load(); err != nil {
		problems = append(problems, "certificates are not renewed: "+(*err).Error())
	}
	if err := d.publishError.Load(); err != nil && *err != nil {
		problems = append(problems, "the policy of control is not published: "+(*err).Error())
	}
	phase := Ready
	switch {
	case len(problems) > 0:
		phase = Degraded
	case s.Policy == nil:
		phase, problems = Degraded, []string{"no policy yet: nothing is allowed"}
	case s.Enforced != s.Policy.Version:
		return // on the way
	}
	if !d.lifecycle.enter(phase, strings.Join(problems, "; ")) {
		return
	}
	if phase == Ready {
		d.log.Info("ready", "policy", s.Enforced, "agents", len(s.Plan.Addresses)/2)
	} else {
		d.log.Warn("degraded", "reason", strings.Join(problems, "; "))
	}
	d.events.emit(api.Event{Kind: api.EventPhase, Host: d.credentials.get().Host, Message: "this host is " + string(phase)})
	d.notify(fmt.Sprintf("READY=1\nSTATUS=%s, policy version %d", phase, s.Enforced))
}

func (d *daemon) notify(state string) {
	if err := platform.Notify(state); err != nil {
		d.log.Warn("notify systemd", "error", err)
	}
}

// refreshSelf tells the mesh when this host's addresses have changed.
func (d *daemon) refreshSelf() {
	self, err := d.self()
	if err != nil {
		d.log.Warn("list addresses", "error", err)
		return
	}
	own := d.mesh.Snapshot().Records[d.credentials.get().Host]
	if own == nil || slices.Equal(own.Endpoints, self.Record.Endpoints) {
		return
	}
	if err := d.mesh.SetSelf(self); err != nil {
		d.log.Warn("publish addresses", "error", err)
	}
}

// publishSelf tells the mesh what this host says about itself now, and waits until the kernel follows.
func (d *daemon) publishSelf() error {
	self, err := d.self()
	if err != nil {
		return err
	}
	if err := d.mesh.SetSelf(self); err != nil {
		return fmt.Errorf("publish own record: %w", err)
	}
	return d.mesh.Ping() // taken after what came before it was enforced
}

// reloadConfig puts a new configuration in force, or keeps the old one and says why.
func (d *daemon) reloadConfig() {
	d.notify("RELOADING=1")
	defer d.notify("READY=1")
	next, err := d.options.Load()
	if err != nil {
		d.log.Error("reload refused, the old configuration stays", "error", err)
		return
	}
	if fixed := d.config.fixed(next); len(fixed) > 0 {
		d.log.Warn("these keys change at the next start only", "keys", strings.Join(fixed, ", "))
	}
	d.advertise.Store(&next.Advertise)
	d.configured.Store(&next.Agents)
	d.roster.nudge()
	if upstream, err := next.upstream(); err == nil { // it was validated
		d.names.SetUpstream(upstream)
	}
	var level slog.Level
	if level.UnmarshalText([]byte(next.LogLevel)) == nil && d.options.Level != nil {
		d.options.Level.Set(level)
	}
	d.refreshSelf()
	d.log.Info("configuration reloaded")
}

// drifted is told when something else changed our rules, after they were put back.
func (d *daemon) drifted(err error) {
	d.log.Warn("firewall rules were changed by another program and put back", "error", err)
	d.events.emit(api.Event{Kind: api.EventDriftRepaired, Host: d.credentials.get().Host, Message: err.Error()})
	d.mesh.Reapply()
}

func (d *daemon) liveness(host string, alive bool) {
	kind, message := api.EventHostAlive, "host is alive"
	if !alive {
		kind, message = api.EventHostDead, "host does not answer"
	}
	d.log.Info(message, "host", host)
	d.events.emit(api.Event{Kind: kind, Host: host, Message: message})
}
