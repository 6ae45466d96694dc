package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// World is a set of namespaces on this machine. Its methods are safe for concurrent use.
type World struct {
	name string // of the world, and of all it makes before the dash
	dir  string
	lock *os.File

	ctx   context.Context // ends when Close begins
	leave context.CancelFunc
	work  sync.WaitGroup // servers and probes

	mu        sync.Mutex
	processes []*Process
	ports     int // switch ports made so far, for their names
}

// New makes an empty world, after removing the worlds of processes that died. Logs of what runs in it go to files
// in dir. It needs root.
func New(dir string) (*World, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("make lab: network namespaces need root (fix: run as root)")
	}
	if err := sweep(); err != nil {
		return nil, fmt.Errorf("make lab: remove leftovers: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make lab: %w", err)
	}
	name, lock, err := register()
	if err != nil {
		return nil, fmt.Errorf("make lab: %w", err)
	}
	w := &World{name: name, dir: dir, lock: lock}
	w.ctx, w.leave = context.WithCancel(context.Background())
	return w, nil
}

// Name is the prefix of all namespaces of this world.
func (w *World) Name() string { return w.name }

// Close ends everything that runs in the world and removes it. Its logs stay.
func (w *World) Close() error {
	w.leave()
	w.mu.Lock()
	processes := w.processes
	w.processes = nil
	w.mu.Unlock()
	var faults error
	for _, p := range processes {
		faults = errors.Join(faults, p.Kill())
	}
	w.work.Wait()
	return errors.Join(faults, demolish(w.name), w.lock.Close())
}

// run keeps fn for Close to wait for; fn ends when the world does.
func (w *World) run(fn func()) { w.work.Go(fn) }

// namespace makes a namespace with its loopback up.
func (w *World) namespace(name string) (namespace, error) {
	n := namespace(w.name + "-" + name)
	if err := ip("netns", "add", string(n)); err != nil {
		return "", fmt.Errorf("make %s: %w", name, err)
	}
	return n, n.ip("link set lo up")
}

// AddHost makes a machine without any network yet.
func (w *World) AddHost(name string) (*Host, error) {
	n, err := w.namespace(name)
	if err != nil {
		return nil, err
	}
	group, err := newCgroup(string(n))
	if err != nil {
		return nil, fmt.Errorf("make %s: %w", name, err)
	}
	return &Host{Name: name, world: w, ns: n, group: group}, nil
}

// AddRouter makes a host that forwards IPv4 and IPv6 between its links.
func (w *World) AddRouter(name string) (*Host, error) {
	h, err := w.AddHost(name)
	if err != nil {
		return nil, err
	}
	return h, h.ns.sysctl(map[string]string{"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1"})
}

// AddSwitch makes an Ethernet switch.
func (w *World) AddSwitch(name string) (*Switch, error) {
	n, err := w.namespace(name)
	if err != nil {
		return nil, err
	}
	for _, bridge := range []string{joined, apart} {
		if err := n.ip("link add "+bridge+" type bridge mcast_snooping 0", "link set "+bridge+" up"); err != nil {
			return nil, fmt.Errorf("make switch %s: %w", name, err)
		}
	}
	// Frames that are switched shall not go through netfilter as well.
	err = n.sysctl(map[string]string{"bridge/bridge-nf-call-iptables": "0", "bridge/bridge-nf-call-ip6tables": "0"})
	return &Switch{Name: name, world: w, ns: n}, err
}

// port is the next name of a switch port.
func (w *World) port() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ports++
	return fmt.Sprint("port", w.ports)
}

// Await calls done at once and then every few milliseconds until it says true, or ctx ends: then the error names
// what was waited for and why it was not so.
func Await(ctx context.Context, what string, done func() (bool, error)) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, err := done()
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("wait for %s: %w", what, ctx.Err()), err)
		case <-tick.C:
		}
	}
}

// logFile makes a new file for what a program prints.
func (w *World) logFile(host, name string) (*os.File, error) {
	path := filepath.Join(w.dir, host+"-"+strings.ReplaceAll(name, "/", "-")+".log")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("write log: %w: the world's directory is gone", err)
	}
	return f, err
}
