package scope

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"

	"github.com/bulkhead-mesh/bulkhead/platform/workload"
)

// systemdAnswer is how long systemd may take to make a scope.
const systemdAnswer = 10 * time.Second

// enterSystemd has systemd make the scope, because below its root all cgroups are its own.
func enterSystemd(ctx context.Context, root, agent string, pid int) (*Scope, error) {
	ctx, cancel := context.WithTimeout(ctx, systemdAnswer)
	defer cancel()
	conn, err := dbus.NewWithContext(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask systemd: %w", err)
	}
	defer conn.Close()
	name := workload.RunScope(agent) + suffix() + ".scope"
	done := make(chan string, 1)
	if _, err := conn.StartTransientUnitContext(ctx, name, "fail", properties(agent, pid), done); err != nil {
		return nil, fmt.Errorf("ask systemd for a scope: %w", err)
	}
	select {
	case <-ctx.Done():
		return nil, fmt.Errorf("ask systemd for a scope: %w", ctx.Err())
	case result := <-done:
		if result != "done" {
			return nil, fmt.Errorf("ask systemd for a scope: the job ended as %q", result)
		}
	}
	group, err := groupOf(ctx, conn, name)
	if err != nil {
		return nil, err
	}
	// The agent has what is there, and nothing elsewhere.
	if want := "/" + workload.RunDir + "/" + name; group != want {
		return nil, fmt.Errorf("ask systemd for a scope: it is in cgroup %s, not %s", group, want)
	}
	return &Scope{root: root, dir: filepath.Join(root, group)}, nil
}

func properties(agent string, pid int) []dbus.Property {
	return []dbus.Property{
		dbus.PropDescription("bulkhead agent " + agent), dbus.PropSlice(workload.RunDir), dbus.PropPids(uint32(pid)),
		{Name: "CollectMode", Value: godbus.MakeVariant("inactive-or-failed")},
	}
}

// groupOf is the cgroup that systemd gave a scope, as a path in the hierarchy.
func groupOf(ctx context.Context, conn *dbus.Conn, name string) (string, error) {
	p, err := conn.GetUnitTypePropertyContext(ctx, name, "Scope", "ControlGroup")
	if err != nil {
		return "", fmt.Errorf("ask systemd for a scope's cgroup: %w", err)
	}
	group, ok := p.Value.Value().(string)
	if !ok || group == "" {
		return "", errors.New("ask systemd for a scope's cgroup: it has none")
	}
	return group, nil
}
