package main

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/bulkhead-mesh/bulkhead/deploy/lab"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

const (
	idleSettle = 5 * time.Second // after the start, whose work is not idling
	idleLook   = 5 * time.Second // between two looks at the memory

	targetIdleMemory = 40e6  // bytes
	targetIdleShare  = 0.005 // of one core
	targetBinary     = 30e6  // bytes
)

// measureIdle watches three daemons that have nothing to do. The worst of them counts, which is mostly the one with
// the control role.
func measureIdle(ctx context.Context, s settings, p *progress, r *report) (err error) {
	spec := func(agent string) lab.Spec {
		return lab.Spec{Agent: agent, Labels: segment.Labels{"function": "work", "sensitivity": "internal"}}
	}
	p.say("idle: found a mesh of three hosts")
	m, err := lab.NewMesh(ctx, s.binary, spec("one"), spec("two"), spec("three"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	if err := m.Apply(ctx, workersPolicy); err != nil {
		return err
	}
	if err := rest(ctx, idleSettle); err != nil {
		return err
	}
	result := &idle{Hosts: len(m.Hosts), Seconds: s.idle.Seconds()}
	if result.Daemons, err = watch(ctx, m, s.idle, p); err != nil {
		return err
	}
	for _, d := range result.Daemons {
		result.Memory, result.Share = max(result.Memory, d.Memory), max(result.Share, d.Share)
	}
	binary, err := os.Stat(s.binary)
	if err != nil {
		return err
	}
	result.Binary = uint64(binary.Size())
	result.Met = float64(result.Memory) <= targetIdleMemory && result.Share < targetIdleShare && float64(result.Binary) <= targetBinary
	r.Idle = result
	return nil
}

// watch looks at every daemon for that long.
func watch(ctx context.Context, m *lab.Mesh, long time.Duration, p *progress) ([]idleDaemon, error) {
	daemons := make([]idleDaemon, len(m.Hosts))
	before := make([]time.Duration, len(m.Hosts))
	begin := time.Now()
	for i, n := range m.Hosts {
		t, err := processTime(n.Daemon.PID())
		if err != nil {
			return nil, err
		}
		daemons[i].Host, before[i] = n.Name, t
	}
	for end := begin.Add(long); ; {
		left := time.Until(end)
		p.say("idle: watch three daemons for %.0f s more", max(0, left.Seconds()))
		for i, n := range m.Hosts {
			now, err := residentMemory(n.Daemon.PID())
			if err != nil {
				return nil, err
			}
			daemons[i].Memory = max(daemons[i].Memory, now)
		}
		if left <= 0 {
			break
		}
		if err := rest(ctx, min(left, idleLook)); err != nil {
			return nil, err
		}
	}
	for i, n := range m.Hosts {
		t, err := processTime(n.Daemon.PID())
		if err != nil {
			return nil, err
		}
		daemons[i].Share = (t - before[i]).Seconds() / time.Since(begin).Seconds()
	}
	return daemons, nil
}
