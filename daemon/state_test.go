package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-mesh/bulkhead/overlay"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
	"github.com/bulkhead-mesh/bulkhead/overlay/signed"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

func filesIn(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func fill(files ...string) func(string) error {
	return func(tmp string) error {
		for _, name := range files {
			if err := os.WriteFile(filepath.Join(tmp, name), []byte(name), 0o600); err != nil {
				return err
			}
		}
		return nil
	}
}

func TestNewStateIsAllOrNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	refused := errors.New("control is away")
	err := newState(dir, func(tmp string) error { return errors.Join(fill(hostFile, controlFile)(tmp), refused) })
	if !errors.Is(err, refused) || len(filesIn(t, dir)) != 0 {
		t.Errorf("got %v, and %q is left", err, filesIn(t, dir))
	}
	if err := newState(dir, fill(controlFile)); err == nil {
		t.Error("a state without a host is accepted")
	}
	// As after a crash: a directory half full, and files of a host that was never finished.
	if err := errors.Join(os.Mkdir(filepath.Join(dir, unfinished+"1"), 0o700), fill(controlFile)(dir)); err != nil {
		t.Fatal(err)
	}
	if err := newState(dir, fill(hostFile, controlFile)); err != nil {
		t.Fatal(err)
	}
	if got := filesIn(t, dir); !slices.Equal(got, []string{controlFile, hostFile}) {
		t.Errorf("made %q", got)
	}
	if err := newState(dir, fill(hostFile)); err == nil || !strings.Contains(err.Error(), "already holds a host") {
		t.Errorf("over a host: %v", err)
	}
}

func TestNewStateOneAtATime(t *testing.T) {
	dir := t.TempDir()
	err := newState(dir, func(tmp string) error {
		if err := newState(dir, fill(hostFile)); err == nil || !strings.Contains(err.Error(), "another `init` or `join`") {
			t.Errorf("the second got %v", err)
		}
		return fill(hostFile)(tmp)
	})
	if err != nil {
		t.Error(err)
	}
}

func TestNewStateKeepsOutOfForeignDirectories(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(os.Chmod(dir, 0o755), fill("theirs")(dir)); err != nil {
		t.Fatal(err)
	}
	if err := newState(dir, fill(hostFile)); err == nil || !strings.Contains(err.Error(), "chmod 700") {
		t.Errorf("got %v", err)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("mode is %v, %v", info.Mode(), err)
	}
}

func initOptions(t *testing.T) InitOptions {
	c := DefaultConfig()
	c.StateDir = filepath.Join(t.TempDir(), "state")
	return InitOptions{
		Config: c, Mesh: "lab.test", Name: "h1", Advertise: []string{"192.0.2.1"},
		Agents: []AgentSpec{{Name: "scout", Labels: segment.Labels{"function": "research"}}},
	}
}

func TestInitMakesAPrivateWholeHost(t *testing.T) {
	o := initOptions(t)
	if _, err := Init(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	err := filepath.WalkDir(o.Config.StateDir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := os.Stat(path)
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	store, err := openHost(o.Config.StateDir)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	c, err := loadCredentials(store)
	if err != nil {
		t.Fatal(err)
	}
	if c.Mesh != "lab.test" || c.Host != "h1" || len(c.Agents) != 1 || len(c.Prefixes) != 2 {
		t.Errorf("the host is %s in %s, with %d agents and prefixes %v", c.Host, c.Mesh, len(c.Agents), c.Prefixes)
	}
	if !slices.Equal(controlAddrs(o.Config, c.Advertise), []string{"192.0.2.1:7443"}) {
		t.Errorf("control is at %q", controlAddrs(o.Config, c.Advertise))
	}
	err = store.View(func(tx overlay.Tx) error {
		if raw := tx.Get("policy", "current"); raw == nil {
			return errors.New("no policy is stored")
		} else if p, err := signed.OpenPolicy(raw, trustOf(t, c), time.Now()); err != nil {
			return err
		} else if p.Version != 1 || len(p.Parsed.Rules) != 0 {
			return fmt.Errorf("policy version %d with %d rules", p.Version, len(p.Parsed.Rules))
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if _, err := Init(context.Background(), o); err == nil || !strings.Contains(err.Error(), "already holds a host") {
		t.Errorf("the second init: %v", err)
	}
}

func trustOf(t *testing.T, c *Credentials) *identity.Trust {
	t.Helper()
	roots, err := c.roots()
	if err != nil {
		t.Fatal(err)
	}
	return &identity.Trust{Mesh: c.Mesh, Roots: roots}
}

func TestInitRefuses(t *testing.T) {
	for field, change := range map[string]func(*InitOptions){
		"--mesh":             func(o *InitOptions) { o.Mesh = "not a mesh" },
		"--name":             func(o *InitOptions) { o.Name = "H 1" },
		"--agent":            func(o *InitOptions) { o.Agents[0].Name = "" },
		"--label":            func(o *InitOptions) { o.Agents[0].Labels = segment.Labels{"a b": "c"} },
		"one agent per host": func(o *InitOptions) { o.Agents = append(o.Agents, AgentSpec{Name: "two"}) },
		"advertise[0]":       func(o *InitOptions) { o.Advertise = []string{"localhost"} },
	} {
		o := initOptions(t)
		change(&o)
		if _, err := Init(t.Context(), o); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: got %v", field, err)
		}
		if _, err := os.Stat(o.Config.StateDir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: something was made: %v", field, err)
		}
	}
}

func TestNoMeshIsSaid(t *testing.T) {
	if _, err := openHost(t.TempDir()); !errors.Is(err, ErrNoMesh) || !strings.Contains(err.Error(), "bulkhead init") {
		t.Errorf("got %v", err)
	}
}
