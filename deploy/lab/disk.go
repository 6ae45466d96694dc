package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	diskFiller = "filler"
	diskReady  = "the disk is ready"
)

// mountDisk is run with a directory and a size. The working directory stays the one below the mount.
const mountDisk = `cd "$1"; mount -t tmpfs -o mode=700,size="$2" disk "$1"; cp -a . "$1"; echo "` + diskReady + `"; exec sleep infinity`

// Disk is a small file system in place of a directory, which only programs that are started on it see.
type Disk struct {
	path   string
	host   *Host
	holder *Process // in the mount namespace, which ends with the last process there
}

// MountDisk makes a disk of some bytes for a directory, with a copy of what is in there.
func (h *Host) MountDisk(ctx context.Context, path string, size int) (*Disk, error) {
	holder, err := h.Start("disk", "unshare", "--mount", "sh", "-euc", mountDisk, "disk", path, strconv.Itoa(size))
	if err != nil {
		return nil, err
	}
	return &Disk{path: path, host: h, holder: holder}, Await(ctx, "a disk on "+h.Name, func() (bool, error) {
		log := holder.Log()
		return strings.Contains(log, diskReady), errors.New(log)
	})
}

// command is how a program is run on the disk.
func (d *Disk) command(program string, args ...string) (string, []string) {
	return "nsenter", append([]string{"--mount", "--target", strconv.Itoa(d.holder.PID()), program}, args...)
}

// Path is where this process finds a file of the disk.
func (d *Disk) Path(name string) string {
	return filepath.Join("/proc", strconv.Itoa(d.holder.PID()), "root", d.path, name)
}

// Fill leaves no space.
func (d *Disk) Fill() error {
	f, err := os.Create(d.Path(diskFiller))
	if err != nil {
		return err
	}
	block := make([]byte, os.Getpagesize())
	for err == nil {
		_, err = f.Write(block)
	}
	if errors.Is(err, unix.ENOSPC) {
		err = nil
	}
	return errors.Join(err, f.Close())
}

// Free ends what Fill did.
func (d *Disk) Free() error { return os.Remove(d.Path(diskFiller)) }

// Protect makes the disk read-only. Nothing on it may be open for writing.
func (d *Disk) Protect(ctx context.Context) error { return d.remount(ctx, "ro") }

// Unprotect ends what Protect did.
func (d *Disk) Unprotect(ctx context.Context) error { return d.remount(ctx, "rw") }

func (d *Disk) remount(ctx context.Context, mode string) error {
	program, args := d.command("mount", "-o", "remount,"+mode, d.path)
	out, err := d.host.Run(ctx, program, args...)
	if err == nil {
		err = out.Err()
	}
	if err != nil {
		return fmt.Errorf("remount %s of %s: %w", d.path, d.host.Name, err)
	}
	return nil
}
