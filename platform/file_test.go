package platform

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestWriteFileReplacesTheWhole(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key.pem")
	for _, content := range []string{"first", "a longer second", ""} {
		if err := WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != content {
			t.Fatalf("read %q, %v; want %q", got, err, content)
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Fatalf("mode %v, %v; want 0600", info.Mode(), err)
		}
	}
	onlyFile(t, filepath.Dir(path), "key.pem")
}

func TestWriteFileThatFailsLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "taken"), 0o700); err != nil {
		t.Fatal(err)
	}
	err := WriteFile(filepath.Join(dir, "taken"), []byte("x"), 0o600)
	if err == nil || !strings.Contains(err.Error(), "taken") {
		t.Fatalf("WriteFile over a directory = %v, want an error that names it", err)
	}
	onlyFile(t, dir, "taken")
	if err := WriteFile(filepath.Join(dir, "absent", "x"), nil, 0o600); err == nil {
		t.Fatal("WriteFile into an absent directory succeeds")
	}
}

func onlyFile(t *testing.T, dir, name string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 1 || entries[0].Name() != name {
		t.Fatalf("%s holds %v, want %s alone", dir, entries, name)
	}
}

func TestPeerUIDIsTheUserThatConnected(t *testing.T) {
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	client, err := net.DialUnix("unix", nil, listener.Addr().(*net.UnixAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	conn, err := listener.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	if uid, err := PeerUID(conn); err != nil || uid != os.Getuid() {
		t.Fatalf("PeerUID = %d, %v; want %d", uid, err, os.Getuid())
	}
	conn.Close()
	if _, err := PeerUID(conn); err == nil {
		t.Fatal("PeerUID of a closed connection succeeds")
	}
}

func TestNotifyReachesTheServiceManager(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if err := Notify("READY=1"); err != nil {
		t.Fatalf("without systemd: %v", err)
	}
	path := filepath.Join(t.TempDir(), "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	if err := Notify("READY=1\nSTATUS=fine"); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 100)
	if err := manager.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	n, err := manager.Read(got)
	if err != nil || string(got[:n]) != "READY=1\nSTATUS=fine" {
		t.Fatalf("systemd read %q, %v", got[:n], err)
	}
	t.Setenv("NOTIFY_SOCKET", path+"-absent")
	if err := Notify("READY=1"); err == nil {
		t.Fatal("Notify to an absent socket succeeds")
	}
}

func TestWatchdogIntervalIsHalf(t *testing.T) {
	for usec, want := range map[string]time.Duration{"": 0, "10000000": 5 * time.Second, "soon": 0} {
		t.Setenv("WATCHDOG_USEC", usec)
		t.Setenv("WATCHDOG_PID", "")
		if got := WatchdogInterval(); got != want {
			t.Errorf("WATCHDOG_USEC=%q: %v, want %v", usec, got, want)
		}
	}
}
