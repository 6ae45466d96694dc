package bind

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// attachment is a program that runs for every process below a cgroup.
type attachment struct {
	link link.Link
	pin  string
}

// hooks are where the programs run, by name.
func (b *Binding) hooks() map[string]hook {
	p := &b.objects.kernelPrograms
	return map[string]hook{
		"arrives":      {p.Arrives, ebpf.AttachCGroupInetIngress},
		"leaves":       {p.Leaves, ebpf.AttachCGroupInetEgress},
		"bind4":        {p.Bind4, ebpf.AttachCGroupInet4Bind},
		"bind6":        {p.Bind6, ebpf.AttachCGroupInet6Bind},
		"connect4":     {p.Connect4, ebpf.AttachCGroupInet4Connect},
		"connect6":     {p.Connect6, ebpf.AttachCGroupInet6Connect},
		"sendmsg4":     {p.Sendmsg4, ebpf.AttachCGroupUDP4Sendmsg},
		"sendmsg6":     {p.Sendmsg6, ebpf.AttachCGroupUDP6Sendmsg},
		"recvmsg4":     {p.Recvmsg4, ebpf.AttachCGroupUDP4Recvmsg},
		"recvmsg6":     {p.Recvmsg6, ebpf.AttachCGroupUDP6Recvmsg},
		"getpeername4": {p.Getpeername4, ebpf.AttachCgroupInet4GetPeername},
		"getpeername6": {p.Getpeername6, ebpf.AttachCgroupInet6GetPeername},
		"sock_create":  {p.SockCreate, ebpf.AttachCGroupInetSockCreate},
	}
}

type hook struct {
	program *ebpf.Program
	kind    ebpf.AttachType
}

// attach has every program run: in the place of its pinned predecessor, so that at no moment none does, or anew.
func (b *Binding) attach() error {
	root, err := inode(b.options.Root)
	if err != nil {
		return err
	}
	for name, h := range b.hooks() {
		pin := filepath.Join(b.options.PinDir, "link-"+name)
		l, err := adoptLink(pin, h.program, root)
		if errors.Is(err, fs.ErrNotExist) {
			l, err = newLink(b.options.Root, pin, h)
		}
		if err != nil {
			return fmt.Errorf("attach %s: %w", name, err)
		}
		b.links[name] = &attachment{l, pin}
	}
	return nil
}

// adoptLink replaces the program of a pinned link. One of another cgroup, which may be gone, is removed.
func adoptLink(pin string, program *ebpf.Program, root uint64) (link.Link, error) {
	l, err := link.LoadPinnedLink(pin, nil)
	if err != nil {
		return nil, err
	}
	if info, err := l.Info(); err == nil {
		if c := info.Cgroup(); c != nil && c.CgroupId == root && l.Update(program) == nil {
			return l, nil
		}
	}
	if err := errors.Join(l.Unpin(), l.Close()); err != nil {
		return nil, err
	}
	return nil, fs.ErrNotExist
}

func newLink(root, pin string, h hook) (link.Link, error) {
	l, err := link.AttachCgroup(link.CgroupOptions{Path: root, Attach: h.kind, Program: h.program})
	if err != nil {
		return nil, err
	}
	if err := l.Pin(pin); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// Restore puts back what another program detached or unpinned, and says whether there was something.
func (b *Binding) Restore() (restored bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	root, err := inode(b.options.Root)
	if err != nil {
		return false, fmt.Errorf("restore bindings: %w", err)
	}
	hooks := b.hooks()
	for name, held := range b.links {
		if held.intact(root) {
			continue
		}
		if err := b.replace(name, hooks[name]); err != nil {
			return restored, fmt.Errorf("restore bindings: %s: %w", name, err)
		}
		restored = true
	}
	if pinned, err := b.pinMaps(); err != nil || pinned {
		return true, err
	}
	return restored, nil
}

// intact reports whether the program is attached to that cgroup, and stays when the daemon is gone.
func (a *attachment) intact(root uint64) bool {
	info, err := a.link.Info()
	if err != nil {
		return false
	}
	if c := info.Cgroup(); c == nil || c.CgroupId != root {
		return false
	}
	_, err = os.Stat(a.pin)
	return err == nil
}

// replace attaches a program anew before it lets go of the attachment that is not whole.
func (b *Binding) replace(name string, h hook) error {
	if err := pinnable(b.options.PinDir); err != nil {
		return err
	}
	old := b.links[name]
	if err := os.Remove(old.pin); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	l, err := newLink(b.options.Root, old.pin, h)
	if err != nil {
		return err
	}
	b.links[name] = &attachment{l, old.pin}
	return old.link.Close()
}

// pinMaps pins those maps again whose pins are gone.
func (b *Binding) pinMaps() (pinned bool, err error) {
	k := &b.objects.kernelMaps
	for name, m := range map[string]*ebpf.Map{
		kernelMapAgents: k.Agents, kernelMapCgroups: k.Cgroups, kernelMapControl: k.Control, kernelMapDrops: k.Drops, kernelMapEgress: k.Egress,
		kernelMapOwners: k.Owners, kernelMapSenders: k.Senders, kernelMapSettings: k.Settings, kernelMapSockets: k.Sockets, kernelMapUsers: k.Users,
	} {
		if !m.IsPinned() {
			continue
		}
		pin := filepath.Join(b.options.PinDir, name)
		if _, err := os.Stat(pin); err == nil {
			continue
		}
		again, err := m.Clone() // which knows of no pin
		if err != nil {
			return pinned, fmt.Errorf("pin %s: %w", name, err)
		}
		if err := errors.Join(again.Pin(pin), again.Close()); err != nil {
			return pinned, fmt.Errorf("pin %s: %w", name, err)
		}
		pinned = true
	}
	return pinned, nil
}

// inode is the number of a directory, which for a cgroup is its ID.
func inode(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, fmt.Errorf("stat %s: %w", path, err)
	}
	return st.Ino, nil
}
