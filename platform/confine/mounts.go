package confine

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// kernelTypes are file systems in which what root owns changes the kernel, or a process's cgroup.
var kernelTypes = []string{"cgroup", "cgroup2", "sysfs", "debugfs", "tracefs", "securityfs", "configfs", "efivarfs", "pstore"}

// kernelFiles are those of /proc that do.
var kernelFiles = []string{"/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus"}

// bpfType has maps and programs that root can change through a read-only mount, too.
const bpfType = "bpf"

const harmless = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// protect makes what changes the kernel read-only and hides directories, in a mount namespace of this thread's own: what
// root owns it could write otherwise, without any capability.
func protect(hide []string) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("protect cgroups: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("protect cgroups: %w", err)
	}
	all, err := mounts()
	if err != nil {
		return fmt.Errorf("protect cgroups: %w", err)
	}
	for _, m := range all {
		if m.kind == bpfType {
			hide = append(slices.Clip(hide), m.dir)
		}
		if !slices.Contains(kernelTypes, m.kind) {
			continue
		}
		// One that is hidden below another mount is seen by nobody.
		if err := readOnly(m.dir); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.EINVAL) {
			return err
		}
	}
	for _, path := range kernelFiles {
		err := unix.Mount(path, path, "", unix.MS_BIND|unix.MS_REC, "")
		if err == nil {
			err = readOnly(path)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("protect %s: %w", path, err)
		}
	}
	for _, dir := range hide {
		err := unix.Mount("none", dir, "tmpfs", unix.MS_RDONLY|harmless, "size=4k,mode=000")
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("hide %s: %w", dir, err)
		}
	}
	return nil
}

func readOnly(dir string) error {
	if err := unix.Mount("", dir, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|harmless, ""); err != nil {
		return fmt.Errorf("make %s read-only: %w", dir, err)
	}
	return nil
}

type mount struct{ dir, kind string }

// unescape is for what the kernel writes as octal in lists of mounts.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

func mounts() ([]mount, error) {
	f, err := os.Open("/proc/thread-self/mounts")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var all []mount
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20) // options of some file systems are long
	for lines.Scan() {
		if fields := strings.Fields(lines.Text()); len(fields) > 2 {
			all = append(all, mount{unescape.Replace(fields[1]), fields[2]})
		}
	}
	return all, lines.Err()
}
