package spiffe

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffetls"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/bulkhead-mesh/bulkhead/platform"
)

// roll says which processes are which agents, as the daemon does by their cgroups.
type roll struct {
	mu     sync.Mutex
	agents map[int]string
}

func (r *roll) attest(conn *net.UnixConn) (string, error) {
	peer, err := platform.PeerOf(conn)
	if err != nil {
		return "", err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.agents[peer.PID], nil
}

// start starts a process that plays a role with a client of the API, as an agent.
func (r *roll) start(t *testing.T, role, agent, socket, peer string) (line func() string) {
	t.Helper()
	cmd := exec.Command(os.Args[0]) // it ends by itself, and is waited for
	cmd.Env = append(os.Environ(), "SPIFFE_TEST_ROLE="+role, "SPIFFE_TEST_PEER="+peer, "SPIFFE_ENDPOINT_SOCKET=unix://"+socket)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s of %q: %v", role, agent, err)
		}
	})
	r.mu.Lock()
	r.agents[cmd.Process.Pid] = agent
	r.mu.Unlock()
	lines := bufio.NewReader(out)
	return func() string {
		text, err := lines.ReadString('\n')
		if err != nil {
			t.Errorf("%s of %q: %v", role, agent, err)
		}
		return strings.TrimSpace(text)
	}
}

// Two processes on one socket, told apart by the kernel alone, are two agents, and do mutual TLS; a third gets nothing.
func TestProcessesOnOneSocket(t *testing.T) {
	i := newIssuer(t, "plan1", "vec1")
	r := &roll{agents: map[int]string{}}
	socket := listenFor(t, i, r.attest)
	server := r.start(t, "server", "vec1", socket, "")
	client := r.start(t, "client", "plan1", socket, server())
	if got, want := client(), "talked to "+agentID("vec1"); got != want {
		t.Errorf("the client %q, want %q", got, want)
	}
	if got, want := server(), "heard "+agentID("plan1"); got != want {
		t.Errorf("the server %q, want %q", got, want)
	}
	if got := r.start(t, "stranger", "", socket, "")(); !strings.Contains(got, "PermissionDenied") {
		t.Errorf("a stranger: %q", got)
	}
}

// play is what a process of these tests does. Its client finds the socket in the environment, as the standard has it.
func play(role string) int {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	err := map[string]func(context.Context) error{"server": playServer, "client": playClient, "stranger": playStranger}[role](ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, role+":", err)
		return 1
	}
	return 0
}

func playServer(ctx context.Context) error {
	source, err := workloadapi.NewX509Source(ctx)
	if err != nil {
		return err
	}
	defer source.Close()
	l, err := spiffetls.ListenWithMode(ctx, "tcp", "127.0.0.1:0", spiffetls.MTLSServerWithRawConfig(tlsconfig.AuthorizeID(spiffeID("plan1")), source, source))
	if err != nil {
		return err
	}
	defer l.Close()
	fmt.Println(l.Addr())
	conn, err := l.Accept()
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := io.ReadFull(conn, make([]byte, 5)); err != nil {
		return err
	}
	id, err := spiffetls.PeerIDFromConn(conn)
	if err != nil {
		return err
	}
	fmt.Println("heard", id)
	_, err = conn.Write([]byte("heard"))
	return err
}

func playClient(ctx context.Context) error {
	source, err := workloadapi.NewX509Source(ctx)
	if err != nil {
		return err
	}
	defer source.Close()
	conn, err := spiffetls.DialWithMode(ctx, "tcp", os.Getenv("SPIFFE_TEST_PEER"), spiffetls.MTLSClientWithRawConfig(tlsconfig.AuthorizeID(spiffeID("vec1")), source, source))
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("hello")); err != nil {
		return err
	}
	if _, err := io.ReadFull(conn, make([]byte, 5)); err != nil {
		return err
	}
	id, err := spiffetls.PeerIDFromConn(conn)
	fmt.Println("talked to", id)
	return err
}

func playStranger(ctx context.Context) error {
	_, err := workloadapi.FetchX509SVID(ctx)
	if err == nil {
		return errors.New("it got an SVID")
	}
	fmt.Println(strings.ReplaceAll(err.Error(), "\n", " "))
	return nil
}
