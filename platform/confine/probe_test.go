package confine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// The test's programs are the test's own binary: one that confines, as `bulkhead run` does, and what it confines.
const (
	roleEnv = "BULKHEAD_CONFINE_TEST"
	hideEnv = "BULKHEAD_CONFINE_HIDE"
)

func TestMain(m *testing.M) {
	switch os.Getenv(roleEnv) {
	case "":
		goleak.VerifyTestMain(m)
	case "run":
		o := Options{Command: os.Args[1:], Env: append(os.Environ(), roleEnv+"=probe")}
		if hide := os.Getenv(hideEnv); hide != "" {
			o.Hide = []string{hide}
		}
		code, err := Run(context.Background(), o)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(125)
		}
		os.Exit(code)
	case "probe":
		if err := probe(os.Args[1], os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(99)
		}
	}
}

// probe is what is done in the confined process.
func probe(what string, args []string) error {
	switch what {
	case "exit":
		code, err := strconv.Atoi(args[0])
		if err != nil {
			return err
		}
		os.Exit(code)
	case "signal":
		n, err := strconv.Atoi(args[0])
		if err != nil {
			return err
		}
		if err := unix.Kill(os.Getpid(), syscall.Signal(n)); err != nil {
			return err
		}
		select {}
	case "listen":
		return listen()
	case "effective":
		fmt.Println(os.Geteuid(), status()["CapEff"])
		return nil
	case "attack":
		return json.NewEncoder(os.Stdout).Encode(attack(args))
	}
	return fmt.Errorf("no probe %q", what)
}

// listen says which signals come, until SIGTERM does.
func listen() error {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, passed()...)
	fmt.Println("listening", os.Getpid())
	for s := range signals {
		fmt.Println("got", int(s.(syscall.Signal)))
		if s == syscall.SIGTERM {
			os.Exit(7)
		}
	}
	return nil
}

// findings are what a confined process could do, and what the kernel says of it. An empty text is a success.
type findings struct {
	Status   map[string]string
	Attempts map[string]string
	Group    string // cgroup v2 after all attempts
}

// attack tries to get out. The arguments are a process of the same user outside, a cgroup that is not the process's, and
// a directory that is hidden from it.
func attack(args []string) findings {
	runtime.LockOSThread()
	outside, err := strconv.Atoi(args[0])
	if err != nil {
		panic(err)
	}
	group, hidden := args[1], args[2]
	f := findings{Status: status(), Attempts: make(map[string]string)}
	try := func(name string, err error) {
		f.Attempts[name] = ""
		if err != nil {
			f.Attempts[name] = err.Error()
		}
	}
	errnoOf := func(_, _ uintptr, errno syscall.Errno) error {
		if errno != 0 {
			return errno
		}
		return nil
	}
	self := strconv.Itoa(os.Getpid())
	try("write cgroup.procs", os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(self), 0))
	try("make a cgroup", os.Mkdir(filepath.Join(group, "mine"), 0o755))
	try("write cgroup.procs of version 1", os.WriteFile("/sys/fs/cgroup/pids/cgroup.procs", []byte(self), 0))
	try("write cgroup.procs of another's view", os.WriteFile("/proc/"+args[0]+"/root"+group+"/cgroup.procs", []byte(self), 0))
	try("write cgroup.procs of the first process's view", os.WriteFile("/proc/1/root"+group+"/cgroup.procs", []byte(self), 0))
	try("remount", unix.Mount("", filepath.Dir(group), "", unix.MS_BIND|unix.MS_REMOUNT, ""))
	try("unmount", unix.Unmount(hidden, unix.MNT_DETACH))
	try("mount cgroup2", unix.Mount("none", os.TempDir(), "cgroup2", 0, ""))
	try("unshare mounts", unix.Unshare(unix.CLONE_NEWNS))
	try("enter mounts", enterMounts(outside))
	try("set core_pattern", os.WriteFile("/proc/sys/kernel/core_pattern", []byte("core"), 0))
	try("set uevent_helper", os.WriteFile("/sys/kernel/uevent_helper", []byte(""), 0))
	try("set forwarding", os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0))
	_, err = os.ReadFile(filepath.Join(hidden, "secret"))
	try("read hidden", err)
	try("write hidden", os.WriteFile(filepath.Join(hidden, "new"), nil, 0o600))
	_, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP)
	try("raw socket", err)
	_, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	try("packet socket", err)
	try("transparent socket", transparent())
	try("device node", unix.Mknod(filepath.Join(os.TempDir(), "bulkhead-confine-node"), unix.S_IFBLK, 0))
	try("load bpf", errnoOf(unix.Syscall(unix.SYS_BPF, 0 /* BPF_MAP_CREATE */, uintptr(unsafe.Pointer(&[4]uint32{2, 4, 4, 1})), 16)))
	try("trace outside", unix.PtraceAttach(outside))
	_, err = os.ReadFile("/proc/" + args[0] + "/environ")
	try("read memory outside", err)
	try("signal outside", unix.Kill(outside, 0))
	try("gain by program", gain())
	if text, err := os.ReadFile("/proc/self/cgroup"); err == nil {
		for line := range strings.Lines(string(text)) {
			if at, ok := strings.CutPrefix(line, "0::"); ok {
				f.Group = strings.TrimSpace(at)
			}
		}
	}
	entries, err := os.ReadDir("/sys/fs/bpf")
	if err == nil && len(entries) > 0 {
		err = errors.New("there are things")
	}
	f.Status["bpf"] = fmt.Sprint(err == nil)
	return f
}

func status() map[string]string {
	text, err := os.ReadFile("/proc/thread-self/status")
	if err != nil {
		panic(err)
	}
	all := make(map[string]string)
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(line, ":"); ok && (strings.HasPrefix(key, "Cap") || key == "NoNewPrivs") {
			all[key] = strings.TrimSpace(value)
		}
	}
	return all
}

func enterMounts(pid int) error {
	f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/ns/mnt")
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Setns(int(f.Fd()), unix.CLONE_NEWNS)
}

func transparent() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_TRANSPARENT, 1)
}

// gain starts a program that is set-user-ID root and fails if that is no more than this process is.
func gain() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self+"-root", "effective")
	out, err := cmd.CombinedOutput()
	if err == nil && strings.TrimSpace(string(out)) == fmt.Sprint(os.Geteuid(), " ", status()["CapEff"]) {
		err = errors.New("it is as before")
	}
	return err
}
