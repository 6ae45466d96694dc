package confine

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// soon is far beyond what anything here takes on a busy machine.
const soon = 15 * time.Second

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for deadline := time.After(soon); !ok(); {
		select {
		case <-ticker.C:
		case <-deadline:
			t.Fatalf("not within %s: %s", soon, what)
		}
	}
}

// wrapper is a program that confines the test's probe.
func wrapper(what string, args ...string) *exec.Cmd {
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return wrapperAt(self, what, args...)
}

func wrapperAt(self, what string, args ...string) *exec.Cmd {
	cmd := exec.Command(self, append([]string{self, what}, args...)...)
	cmd.Env = append(os.Environ(), roleEnv+"=run", "GORACE=atexit_sleep_ms=0")
	cmd.Stderr = os.Stderr
	return cmd
}

// forAll is the test's binary where every user may start it, and, with -root, one that is set-user-ID root.
func forAll(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "bulkhead-confine-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "probe")
	binary := mustRead(t, self)
	err = errors.Join(os.Chmod(dir, 0o755), os.WriteFile(path, binary, 0o755), os.WriteFile(path+"-root", binary, 0o755), os.Chmod(path+"-root", 0o755|os.ModeSetuid))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// newGroup makes a cgroup of version 2, in which a process is, and one beside it.
func newGroup(t *testing.T) (own, other string) {
	t.Helper()
	root := ""
	all, err := mounts()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range all {
		if m.kind == "cgroup2" {
			root = filepath.Join(m.dir, "bulkhead-confine-test-"+strings.ToLower(rand.Text()[:8]))
		}
	}
	own, other = filepath.Join(root, "own"), filepath.Join(root, "other")
	t.Cleanup(func() {
		_ = os.WriteFile(filepath.Join(root, "cgroup.kill"), []byte("1"), 0)
		eventually(t, "the test's cgroups are removed", func() bool {
			for _, dir := range []string{filepath.Join(other, "mine"), own, other, root} {
				_ = unix.Rmdir(dir)
			}
			_, err := os.Stat(root)
			return os.IsNotExist(err)
		})
	})
	for _, dir := range []string{own, other} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatalf("tests of confine run as root, where cgroup v2 is: %v", err)
		}
	}
	return own, other
}

func TestExitCodes(t *testing.T) {
	for _, c := range []struct {
		args []string
		want int
	}{
		{[]string{"exit", "0"}, 0}, {[]string{"exit", "42"}, 42}, {[]string{"signal", "15"}, 128 + 15}, {[]string{"signal", "9"}, 128 + 9},
	} {
		cmd := wrapper(c.args[0], c.args[1:]...)
		_ = cmd.Run()
		if got := cmd.ProcessState.ExitCode(); got != c.want {
			t.Errorf("%v: exit code %d, want %d", c.args, got, c.want)
		}
	}
}

func TestWhatCannotStart(t *testing.T) {
	for name, c := range map[string]struct {
		o    Options
		want string
	}{
		"no command":             {Options{}, "run: no command"},
		"a file for a directory": {Options{Command: []string{"/bin/true"}, Dir: "/etc/passwd"}, "run in /etc/passwd: not a directory"},
		"no program":             {Options{Command: []string{"/no/such/program"}}, "run /no/such/program: fork/exec /no/such/program: no such file or directory"},
		"no such in PATH":        {Options{Command: []string{"no-such-program"}}, `run no-such-program: exec: "no-such-program": executable file not found in $PATH`},
		"no directory":           {Options{Command: []string{"/bin/true"}, Dir: "/no/such/dir"}, "run in /no/such/dir: no such file or directory"},
		"hides a file":           {Options{Command: []string{"/bin/true"}, Hide: []string{"/etc/passwd"}}, "run /bin/true: hide /etc/passwd: not a directory"},
	} {
		if _, err := Run(t.Context(), c.o); err == nil || err.Error() != c.want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDirectoryAndEnvironment(t *testing.T) {
	dir := t.TempDir()
	out := filepath.Join(dir, "out")
	code, err := Run(t.Context(), Options{Command: []string{"/bin/sh", "-c", `echo "$PWD $GREETING" > out`}, Dir: dir, Env: []string{"GREETING=hello"}})
	got, readErr := os.ReadFile(out)
	if code != 0 || err != nil || readErr != nil || string(got) != dir+" hello\n" {
		t.Errorf("%d, %v: %q, %v", code, err, got, readErr)
	}
}

// The process that confines stays as it is: what is given up is the command's.
func TestCallerKeepsAll(t *testing.T) {
	before := status()
	if code, err := Run(t.Context(), Options{Command: []string{"/bin/true"}, Hide: []string{t.TempDir()}}); code != 0 || err != nil {
		t.Fatal(code, err)
	}
	after := status()
	for key, value := range before {
		if after[key] != value {
			t.Errorf("%s is %s after, %s before", key, after[key], value)
		}
	}
	if err := os.WriteFile("/proc/sys/kernel/core_pattern", mustRead(t, "/proc/sys/kernel/core_pattern"), 0); err != nil {
		t.Errorf("the caller's own /proc: %v", err)
	}
}

func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// attackAs runs the attacks as a user, in a cgroup, and returns what they came to.
func attackAs(t *testing.T, uid int) findings {
	t.Helper()
	own, other := newGroup(t)
	hidden := t.TempDir()
	if err := os.WriteFile(filepath.Join(hidden, "secret"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	credential := &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}
	outside := exec.Command("/bin/sleep", "1000")
	outside.SysProcAttr = &syscall.SysProcAttr{Credential: credential}
	if err := outside.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = outside.Process.Kill(); _ = outside.Wait() })

	cmd := wrapperAt(forAll(t), "attack", strconv.Itoa(outside.Process.Pid), other, hidden)
	cmd.Env = append(cmd.Env, hideEnv+"="+hidden, "TMPDIR=/tmp")
	group, err := os.Open(own)
	if err != nil {
		t.Fatal(err)
	}
	defer group.Close()
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: credential, UseCgroupFD: true, CgroupFD: int(group.Fd())}
	if uid != 0 { // what an administrator may have left to a user
		cmd.SysProcAttr.AmbientCaps = []uintptr{unix.CAP_NET_RAW, unix.CAP_NET_ADMIN, unix.CAP_SYS_ADMIN}
	}
	var out bytes.Buffer
	cmd.Stdout = &out
	if err := cmd.Run(); err != nil {
		t.Fatalf("attack: %v", err)
	}
	var f findings
	if err := json.Unmarshal(out.Bytes(), &f); err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(own, f.Group) {
		t.Errorf("it went from %s to %s", own, f.Group)
	}
	return f
}

func TestRootCannotLeave(t *testing.T) {
	f := attackAs(t, 0)
	const few = "00000000000004fb" // those that are kept
	for key, want := range map[string]string{
		"CapBnd": few, "CapPrm": few, "CapEff": few, "CapInh": "0000000000000000", "CapAmb": "0000000000000000", "NoNewPrivs": "1", "bpf": "true",
	} {
		if f.Status[key] != want {
			t.Errorf("%s is %s, want %s", key, f.Status[key], want)
		}
	}
	for attempt, result := range f.Attempts {
		if result == "" {
			t.Errorf("%s: succeeds", attempt)
		}
		t.Logf("%s: %s", attempt, result)
	}
}

func TestUserCannotLeave(t *testing.T) {
	f := attackAs(t, 65534)
	const none = "0000000000000000"
	for key, want := range map[string]string{"CapPrm": none, "CapEff": none, "CapInh": none, "CapAmb": none, "NoNewPrivs": "1"} {
		if f.Status[key] != want {
			t.Errorf("%s is %s, want %s", key, f.Status[key], want)
		}
	}
	for attempt, result := range f.Attempts {
		if result == "" {
			t.Errorf("%s: succeeds", attempt)
		}
		t.Logf("%s: %s", attempt, result)
	}
}

// A command may make sandboxes of its own, in which it is root and mounts what it likes: of cgroups it gets its own.
func TestSandboxOfItsOwn(t *testing.T) {
	own, _ := newGroup(t)
	cmd := wrapperAt(forAll(t), "sandbox")
	cmd.Args[1] = "/usr/bin/unshare"
	cmd.Args = append(cmd.Args[:2], "--user", "--map-root-user", "--mount", "--cgroup", "/bin/sh", "-c",
		"mount -t tmpfs none /mnt && mkdir /mnt/groups && mount -t cgroup2 none /mnt/groups && find /mnt/groups -type d && cat /mnt/groups/cgroup.procs | wc -l && cat /proc/self/cgroup")
	group, err := os.Open(own)
	if err != nil {
		t.Fatal(err)
	}
	defer group.Close()
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}, UseCgroupFD: true, CgroupFD: int(group.Fd())}
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(out), "\n")
	if lines[0] != "/mnt/groups" || strings.HasPrefix(lines[1], "/") || !strings.Contains(string(out), "\n0::/\n") {
		t.Errorf("it sees:\n%s", out)
	}
}

// listener is a confined process that says which signals come.
type listener struct {
	*testing.T
	wrapper *exec.Cmd
	out     *bufio.Reader
	pid     int // of the confined process
}

func (l *listener) line() string {
	l.Helper()
	line, err := l.out.ReadString('\n')
	if err != nil {
		l.Fatal(err)
	}
	return strings.TrimSpace(line)
}

func (l *listener) hears(s syscall.Signal) {
	l.Helper()
	if got, want := l.line(), "got "+strconv.Itoa(int(s)); got != want {
		l.Fatalf("%s: %q", s, got)
	}
}

// startListener starts one; the terminal, if any, is its controlling one.
func startListener(t *testing.T, terminal *os.File) *listener {
	t.Helper()
	cmd := wrapper("listen")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if terminal != nil {
		cmd.Stdin = terminal
		cmd.SysProcAttr.Setctty = true
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	l := &listener{t, cmd, bufio.NewReader(out), 0}
	l.pid, err = strconv.Atoi(strings.TrimPrefix(l.line(), "listening "))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// state is what the kernel says a process does: T is stopped.
func state(t *testing.T, pid int) string {
	t.Helper()
	stat := string(mustRead(t, "/proc/"+strconv.Itoa(pid)+"/stat"))
	return strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])[0]
}

func TestSignalsArePassedOn(t *testing.T) {
	l := startListener(t, nil)
	for _, s := range []syscall.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH, 35, 64} {
		if err := l.wrapper.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
		l.hears(s)
	}
	if err := l.wrapper.Process.Signal(syscall.SIGTSTP); err != nil {
		t.Fatal(err)
	}
	l.hears(syscall.SIGTSTP)
	eventually(t, "the wrapper stops", func() bool { return state(t, l.wrapper.Process.Pid) == "T" })
	if err := l.wrapper.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	l.hears(syscall.SIGCONT)
	if err := l.wrapper.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	l.hears(syscall.SIGTERM)
	_ = l.wrapper.Wait()
	if got := l.wrapper.ProcessState.ExitCode(); got != 7 {
		t.Errorf("exit code %d", got)
	}
}

func TestKilledWithTheWrapper(t *testing.T) {
	l := startListener(t, nil)
	if err := l.wrapper.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := l.out.ReadString('\n'); err != io.EOF {
		t.Errorf("the command goes on: %v", err)
	}
}

// A terminal sends its signals to both, and each comes once.
func TestTerminal(t *testing.T) {
	keyboard, terminal := newTerminal(t)
	l := startListener(t, terminal)
	typed := func(key string) {
		t.Helper()
		if _, err := keyboard.WriteString(key); err != nil {
			t.Fatal(err)
		}
	}
	typed("\x03")
	l.hears(syscall.SIGINT)
	typed("\x1c")
	l.hears(syscall.SIGQUIT)
	typed("\x1a")
	l.hears(syscall.SIGTSTP)
	eventually(t, "the wrapper stops", func() bool { return state(t, l.wrapper.Process.Pid) == "T" })
	if err := unix.Kill(-l.wrapper.Process.Pid, unix.SIGCONT); err != nil { // as a shell does
		t.Fatal(err)
	}
	l.hears(syscall.SIGCONT)
	// It may come again by way of the wrapper; the end comes after all that.
	if err := l.wrapper.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for line := l.line(); line != "got 15"; line = l.line() {
		if line != "got 18" {
			t.Errorf("%q", line)
		}
	}
	_ = l.wrapper.Wait()
	if got := l.wrapper.ProcessState.ExitCode(); got != 7 {
		t.Errorf("exit code %d", got)
	}
}

// newTerminal is a terminal and what is typed into it.
func newTerminal(t *testing.T) (keyboard, terminal *os.File) {
	t.Helper()
	keyboard, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { keyboard.Close() })
	if err := unix.IoctlSetPointerInt(int(keyboard.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(keyboard.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	terminal, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { terminal.Close() })
	return keyboard, terminal
}
