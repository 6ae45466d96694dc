package platform

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// childTime is far beyond what any change of ours takes: a child that needs longer hangs.
const childTime = time.Minute

// runChild runs a program that reads text, and waits for it. The text is a complete file before the program
// starts, and neither the end of ctx nor of this process or its terminal session stops the program half-way.
func runChild(ctx context.Context, text []byte, path string, args ...string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	stdin, err := memoryFile(text)
	if err != nil {
		return fmt.Errorf("run %s: %w", filepath.Base(path), err)
	}
	defer stdin.Close()
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), childTime)
	defer cancel()
	cmd := exec.CommandContext(limited, path, args...)
	cmd.Stdin = stdin
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("run %s: %w: %s", filepath.Base(path), err, firstLine(stderr.String()))
	}
	return nil
}

// memoryFile is an open file without a name that holds text.
func memoryFile(text []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("bulkhead-restore", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create memory file: %w", err)
	}
	file := os.NewFile(uintptr(fd), "restore")
	if _, err := file.Write(text); err != nil {
		file.Close()
		return nil, fmt.Errorf("write memory file: %w", err)
	}
	if _, err := file.Seek(0, 0); err != nil {
		file.Close()
		return nil, fmt.Errorf("rewind memory file: %w", err)
	}
	return file, nil
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return line
}

// findProgram looks a program up where the system's administration tools are, also if PATH does not say so.
func findProgram(name string) (string, error) {
	path, err := exec.LookPath(name)
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if err != nil {
			path, err = exec.LookPath(filepath.Join(dir, name))
		}
	}
	if err != nil {
		return "", fmt.Errorf("find program %s: %w: install it", name, err)
	}
	return path, nil
}
