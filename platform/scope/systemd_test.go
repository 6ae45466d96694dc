package scope

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	godbus "github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/bulkhead-mesh/bulkhead/platform/workload"
)

// manager stands in for systemd on a bus of the test's own: it makes a scope's cgroup, and says so as systemd does. What
// systemd itself makes of the request is not tested here.
type manager struct {
	root   string
	result string // of the job
	group  func(name string) string

	conn *godbus.Conn
	mu   sync.Mutex
	jobs []string         // what was asked for
	said []godbus.Variant // its properties, as key and value in turn
}

const (
	managerPath = "/org/freedesktop/systemd1"
	managerName = "org.freedesktop.systemd1"
)

type property struct {
	Name  string
	Value godbus.Variant
}

type auxiliary struct {
	Name       string
	Properties []property
}

func (m *manager) Subscribe() *godbus.Error { return nil }

func (m *manager) StartTransientUnit(name, mode string, properties []property, _ []auxiliary) (godbus.ObjectPath, *godbus.Error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.jobs = append(m.jobs, name+" "+mode)
	for _, p := range properties {
		m.said = append(m.said, godbus.MakeVariant(p.Name), p.Value)
		if pids, ok := p.Value.Value().([]uint32); ok && p.Name == "PIDs" && m.result == "done" {
			dir := filepath.Join(m.root, m.group(name))
			err := os.MkdirAll(dir, 0o755)
			for _, pid := range pids {
				err = errors.Join(err, put(dir, strconv.Itoa(int(pid))))
			}
			if err != nil {
				return "", godbus.MakeFailedError(err)
			}
		}
	}
	const job = godbus.ObjectPath(managerPath + "/job/1")
	if err := m.conn.Emit(managerPath, managerName+".Manager.JobRemoved", uint32(1), job, name, m.result); err != nil {
		return "", godbus.MakeFailedError(err)
	}
	return job, nil
}

// Get answers for each unit's properties.
func (m *manager) Get(message godbus.Message, face, name string) (godbus.Variant, *godbus.Error) {
	path, _ := message.Headers[godbus.FieldPath].Value().(godbus.ObjectPath)
	if face != managerName+".Scope" || name != "ControlGroup" {
		return godbus.Variant{}, godbus.MakeFailedError(fmt.Errorf("asked for %s of %s at %s", name, face, path))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	unit, _, _ := strings.Cut(m.jobs[len(m.jobs)-1], " ")
	return godbus.MakeVariant(m.group(unit)), nil
}

// serve puts the manager on a bus of its own, to which this process turns for the system's.
func (m *manager) serve(t *testing.T) {
	t.Helper()
	address := "unix:path=" + filepath.Join(t.TempDir(), "bus")
	config := filepath.Join(t.TempDir(), "bus.conf")
	err := os.WriteFile(config, []byte(`<busconfig><type>session</type><listen>`+address+`</listen>
<policy context="default"><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy></busconfig>`), 0o644)
	if err != nil {
		t.Fatal(err)
	}
	bus := exec.Command("dbus-daemon", "--nofork", "--print-address", "--config-file", config)
	stdout, err := bus.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := bus.Start(); err != nil {
		t.Fatalf("tests of scopes need dbus-daemon: %v", err)
	}
	t.Cleanup(func() { _ = bus.Process.Kill(); _ = bus.Wait() })
	if _, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
	if m.conn, err = godbus.Connect(address); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.conn.Close() })
	err = errors.Join(m.conn.Export(m, managerPath, managerName+".Manager"),
		m.conn.ExportSubtree(m, managerPath+"/unit", "org.freedesktop.DBus.Properties"))
	if err != nil {
		t.Fatal(err)
	}
	if reply, err := m.conn.RequestName(managerName, godbus.NameFlagDoNotQueue); err != nil || reply != godbus.RequestNameReplyPrimaryOwner {
		t.Fatal(reply, err)
	}
}

func TestSystemdMakesTheScope(t *testing.T) {
	root := newRoot(t)
	m := &manager{root: root, result: "done", group: func(name string) string { return "/bulkhead.slice/" + name }}
	m.serve(t)
	a := start(t)
	s, err := enterSystemd(t.Context(), root, "planner", a.pid)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Base(s.Dir())
	if !strings.HasPrefix(name, "bulkhead-run_planner_") || !strings.HasSuffix(name, ".scope") || !within(t, root, s.Dir(), a.pid) {
		t.Errorf("scope %s", s.Dir())
	}
	if diff := cmp.Diff([]string{name + " fail"}, m.jobs); diff != "" {
		t.Errorf("asked for (-want +got):\n%s", diff)
	}
	var said []any
	for _, v := range m.said {
		said = append(said, v.Value())
	}
	want := []any{"Description", "bulkhead agent planner", "Slice", "bulkhead.slice", "PIDs", []uint32{uint32(a.pid)}, "CollectMode", "inactive-or-failed"}
	if diff := cmp.Diff(want, said); diff != "" {
		t.Errorf("properties (-want +got):\n%s", diff)
	}
	a.end()
	if err := errors.Join(s.Wait(t.Context()), s.Remove()); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(s.Dir()); !os.IsNotExist(err) {
		t.Errorf("the scope is left: %v", err)
	}
}

func TestSystemdRefuses(t *testing.T) {
	root := newRoot(t)
	m := &manager{root: root, result: "failed", group: func(string) string { return "/elsewhere" }}
	m.serve(t)
	a := start(t)
	if _, err := enterSystemd(t.Context(), root, "planner", a.pid); err == nil || err.Error() != `ask systemd for a scope: the job ended as "failed"` {
		t.Errorf("a failed job: %v", err)
	}
	m.mu.Lock()
	m.result = "done"
	m.mu.Unlock()
	if _, err := enterSystemd(t.Context(), root, "planner", a.pid); err == nil || !strings.HasPrefix(err.Error(), "ask systemd for a scope: it is in cgroup /elsewhere, not /bulkhead.slice/bulkhead-run_planner_") {
		t.Errorf("a scope elsewhere: %v", err)
	}
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+filepath.Join(t.TempDir(), "none"))
	if _, err := enterSystemd(t.Context(), root, "planner", a.pid); err == nil || !strings.HasPrefix(err.Error(), "ask systemd: ") {
		t.Errorf("no bus: %v", err)
	}
}

// The name of a scope is one that systemd takes, and no other agent's scopes begin like it.
func TestNamesOfScopes(t *testing.T) {
	agent := rapid.StringMatching(`[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?`)
	rapid.Check(t, func(t *rapid.T) {
		one, two := agent.Draw(t, "one"), agent.Draw(t, "two")
		name := workload.RunScope(one) + suffix() + ".scope"
		if len(name) > 255 || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789:-_.") != "" {
			t.Fatalf("systemd takes no unit %q", name)
		}
		if one != two && strings.HasPrefix(name, workload.RunScope(two)) {
			t.Fatalf("%q is a scope of %s and of %s", name, one, two)
		}
	})
}
