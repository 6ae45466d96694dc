package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Engine is Podman on a host, with its API served.
type Engine struct {
	host *Host
	dir  string
}

// imageRecipe makes an image of one static program.
const imageRecipe = "FROM scratch\nCOPY actor /actor\nENTRYPOINT [\"/actor\"]\n"

// containerLimits are what containers may have on machines that allow no more.
var containerLimits = []string{"--ulimit", "nofile=1024:4096", "--ulimit", "nproc=1024:4096"}

// StartEngine starts Podman with a store of its own in dir, and makes the image actor of a static program.
func (h *Host) StartEngine(ctx context.Context, dir, program string) (*Engine, error) {
	e := &Engine{host: h, dir: dir}
	build := filepath.Join(dir, "build")
	if err := os.MkdirAll(build, 0o700); err != nil {
		return nil, err
	}
	binary, err := os.ReadFile(program)
	if err != nil {
		return nil, err
	}
	for name, content := range map[string][]byte{"actor": binary, "Dockerfile": []byte(imageRecipe)} {
		if err := os.WriteFile(filepath.Join(build, name), content, 0o755); err != nil {
			return nil, err
		}
	}
	if err := e.Podman(ctx, append(append([]string{"build", "-q", "--network", "host", "-t", "actor"}, containerLimits...), build)...); err != nil {
		return nil, err
	}
	program, args := e.command("system", "service", "--time=0", "unix://"+e.Socket())
	if _, err := h.Start("podman", program, args...); err != nil {
		return nil, err
	}
	return e, Await(ctx, "podman on "+h.Name, func() (bool, error) {
		_, err := os.Stat(e.Socket())
		return err == nil, err
	})
}

// Socket is where the engine serves its API.
func (e *Engine) Socket() string { return filepath.Join(e.dir, "podman.sock") }

func (e *Engine) command(args ...string) (string, []string) {
	return "podman", append([]string{
		"--root", filepath.Join(e.dir, "root"), "--runroot", filepath.Join(e.dir, "run"), "--tmpdir", filepath.Join(e.dir, "tmp"),
		"--runtime", "runc", "--cgroup-manager", "cgroupfs", "--events-backend", "file",
	}, args...)
}

// Podman runs a command of the engine.
func (e *Engine) Podman(ctx context.Context, args ...string) error {
	program, all := e.command(args...)
	out, err := e.host.Run(ctx, program, all...)
	if err == nil {
		err = out.Err()
	}
	if err != nil {
		return fmt.Errorf("podman %s: %w", strings.Join(args, " "), err)
	}
	return nil
}

// Run starts a container of the image actor on the host's network. Its name and labels are among the flags.
func (e *Engine) Run(flags ...string) (*Actor, error) {
	root, err := unifiedRoot()
	if err != nil {
		return nil, err
	}
	parent := strings.TrimPrefix(filepath.Join(e.host.group.path(), "machine"), root)
	args := append([]string{"run", "-i", "--rm", "--network", "host", "--cgroup-parent", parent}, containerLimits...)
	program, all := e.command(append(append(args, flags...), "actor")...)
	return e.host.Act("", 0, program, all...)
}

// Close removes all containers and what they were made from.
func (e *Engine) Close(ctx context.Context) error {
	return errors.Join(e.Podman(ctx, "rm", "-fa", "-t", "0"), e.Podman(ctx, "rmi", "-fa"))
}
