package bind

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-mesh/bulkhead/overlay"
)

// Options say what a binding binds.
type Options struct {
	Root      string         // directory of cgroup v2; programs see the processes below it
	PinDir    string         // directory in a bpffs for what stays when the daemon is gone; made if missing
	Prefixes  []netip.Prefix // the overlay's ranges: at most one of each family
	Resolvers []netip.Addr   // addresses in them that are every host's own
	Interface string         // the overlay's, for routes by mark
	OwnPorts  []uint16       // at most 4 TCP ports of this host that are not for agents
	Logger    *slog.Logger
}

// ErrUnsupported is wrapped by errors that say why this host cannot bind agents to addresses.
var ErrUnsupported = errors.New("eBPF binding is not available")

// Binding is what enforces whose addresses are whose. Its methods are safe for concurrent use.
type Binding struct {
	options Options

	clock clock

	mu        sync.Mutex
	objects   kernelObjects
	links     map[string]*attachment // by program
	settings  kernelConfiguration    // this, and what follows, is as the kernel has it
	owners    claims[kernelAddr]
	cgroups   claims[uint64]
	users     claims[uint32]
	egress    map[uint32]map[kernelDestination]kernelPorts // by agent
	denied    map[kernelEndpoint]uint8
	state     state
	config    overlay.BindingConfig
	learned   map[string]*lessons // by agent
	recovered map[uint32]*lessons // by agent, from before this binding
}

// Supported is nil where Open can work; the error says what is missing.
func Supported(root string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(root, &st); err != nil {
		return fmt.Errorf("%w: cgroup root %s: %w", ErrUnsupported, root, err)
	}
	if st.Type != unix.CGROUP2_SUPER_MAGIC {
		return fmt.Errorf("%w: %s is not of cgroup v2", ErrUnsupported, root)
	}
	for _, kind := range []ebpf.ProgramType{ebpf.CGroupSKB, ebpf.CGroupSockAddr, ebpf.CGroupSock} {
		if err := features.HaveProgramType(kind); err != nil {
			return fmt.Errorf("%w: %s programs: %w", ErrUnsupported, kind, err)
		}
	}
	for kind, helper := range map[ebpf.ProgramType]asm.BuiltinFunc{ebpf.CGroupSockAddr: asm.FnGetNetnsCookie, ebpf.CGroupSKB: asm.FnSkStorageGet} {
		if err := features.HaveProgramHelper(kind, helper); err != nil {
			return fmt.Errorf("%w: the kernel is older than 5.10: %s: %w", ErrUnsupported, helper, err)
		}
	}
	return nil
}

// Open loads and attaches the programs, or takes over those that are pinned, with what they enforce. Until the first Apply
// of new ones nobody has an overlay address.
func Open(o Options) (*Binding, error) {
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, fmt.Errorf("%w: lock memory: %w", ErrUnsupported, err)
	}
	if err := pinnable(o.PinDir); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	c, err := readClock()
	if err != nil {
		return nil, fmt.Errorf("open binding: %w", err)
	}
	b := &Binding{options: o, clock: c, links: make(map[string]*attachment)}
	if err := b.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("open binding: %w", err), b.Close())
	}
	return b, nil
}

func (b *Binding) open() error {
	err := b.load()
	if err == nil {
		err = b.checkNamespace()
	}
	if errors.Is(err, ebpf.ErrMapIncompatible) || errors.Is(err, errOtherNamespace) {
		b.options.Logger.Info("bindings that another version or namespace left are replaced")
		err = errors.Join(b.objects.Close(), putAside(b.options.PinDir))
		b.objects = kernelObjects{}
		if err == nil {
			err = b.load()
		}
	}
	if err != nil {
		return err
	}
	if err := b.adopt(); err != nil {
		return err
	}
	b.recollect()
	if err := b.attach(); err != nil {
		return err
	}
	return removePins(b.options.PinDir + aside)
}

const aside = "-old" // of the name of what enforces until its replacement does

// putAside leaves what is pinned in dir attached, under another name, and makes dir anew. What an earlier one left so, and
// did not replace, still enforces: then the pins in dir go.
func putAside(dir string) error {
	err := os.Rename(dir, dir+aside)
	if errors.Is(err, fs.ErrExist) || errors.Is(err, unix.ENOTEMPTY) {
		err = removePins(dir)
	}
	if err != nil {
		return fmt.Errorf("put bindings aside: %w", err)
	}
	return pinnable(dir)
}

// load makes programs and maps, or opens the pinned maps.
func (b *Binding) load() error {
	spec, err := loadKernel()
	if err != nil {
		return err
	}
	for name, m := range spec.Maps {
		if name != kernelMapMembers && (m.Type != ebpf.Array || name == kernelMapSettings) { // the programs' constants are their own
			m.Pinning = ebpf.PinByName
		}
	}
	if features.HaveProgramHelper(ebpf.CGroupSKB, asm.FnGetNetnsCookie) != nil {
		if err := spec.Variables[kernelVarKnowsNamespace].Set(false); err != nil {
			return err
		}
	}
	return spec.LoadAndAssign(&b.objects, &ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: b.options.PinDir}})
}

var errOtherNamespace = errors.New("the bindings are of a network namespace that is gone")

// checkNamespace fails if what is pinned is of a namespace that had the number of this one.
func (b *Binding) checkNamespace() error {
	netns, err := netnsCookie()
	if err != nil {
		return err
	}
	var held kernelConfiguration
	if err := b.objects.Settings.Lookup(uint32(0), &held); err != nil {
		return fmt.Errorf("read settings: %w", err)
	}
	if held.Netns != 0 && held.Netns != netns {
		return errOtherNamespace
	}
	return nil
}

// pinnable makes dir, in a bpffs.
func pinnable(dir string) error {
	if err := mountBPF(); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make %s: %w", dir, err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return err
	}
	if st.Type != unix.BPF_FS_MAGIC {
		return fmt.Errorf("%s is in no bpffs", dir)
	}
	return nil
}

const bpfFS = "/sys/fs/bpf"

// mountBPF mounts the bpffs where systemd does, if nobody has.
func mountBPF() error {
	var st unix.Statfs_t
	if err := unix.Statfs(bpfFS, &st); err == nil && st.Type == unix.BPF_FS_MAGIC {
		return nil
	}
	if err := unix.Mount("bpf", bpfFS, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_RELATIME, "mode=700"); err != nil {
		return fmt.Errorf("mount bpffs at %s: %w", bpfFS, err)
	}
	return nil
}

// Close lets go of what the kernel has, which goes on enforcing.
func (b *Binding) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	var errs []error
	for _, l := range b.links {
		errs = append(errs, l.link.Close())
	}
	b.links = make(map[string]*attachment)
	return errors.Join(append(errs, b.objects.Close())...)
}

// Remove detaches all that is pinned in dir, and takes back what was done beside it. It needs no Open before, and may be
// repeated.
func Remove(dir string) error {
	if err := removeRoutes(); err != nil {
		return fmt.Errorf("remove bindings: %w", err)
	}
	for _, d := range []string{dir, dir + aside} {
		if err := removePins(d); err != nil {
			return fmt.Errorf("remove bindings: %w", err)
		}
	}
	_ = os.Remove(filepath.Dir(dir)) // unless other namespaces have some there
	return nil
}

// removePins detaches and frees what is pinned in dir.
func removePins(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
