package spiffe

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// watcher hands on what a stream brings.
type watcher struct {
	updates chan *workloadapi.X509Context
	faults  chan error
}

func (w *watcher) OnX509ContextUpdate(c *workloadapi.X509Context) { w.updates <- c }

func (w *watcher) OnX509ContextWatchError(err error) { w.faults <- err }

// watch watches until the test ends.
func watch(t *testing.T, c *workloadapi.Client) *watcher {
	t.Helper()
	w := &watcher{updates: make(chan *workloadapi.X509Context, 64), faults: make(chan error, 64)}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.WatchX509Context(ctx, w) }()
	t.Cleanup(func() {
		stop()
		<-ended
	})
	return w
}

// all asks for everything that there is.
func all(t *testing.T, c *workloadapi.Client) map[string]error {
	t.Helper()
	ctx := soon(t)
	faults := map[string]error{}
	_, faults["X.509-SVID"] = c.FetchX509SVID(ctx)
	_, faults["X.509 bundles"] = c.FetchX509Bundles(ctx)
	_, faults["JWT-SVID"] = c.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "vec1"})
	_, faults["JWT bundles"] = c.FetchJWTBundles(ctx)
	_, faults["validation"] = c.ValidateJWTSVID(ctx, "x.y.z", "vec1")
	return faults
}

// A process that is no agent, cannot be told, or whose agent has no certificate, gets nothing of anything.
func TestStrangersGetNothing(t *testing.T) {
	i := newIssuer(t)
	for name, b := range map[string]*badge{"a stranger": {}, "one who cannot be told": {agent: "plan1", err: errors.New("gone")}} {
		for what, err := range all(t, newClient(t, serve(t, i, b.attest))) {
			if status.Code(err) != codes.PermissionDenied {
				t.Errorf("%s asks for %s: %v", name, what, err)
			}
		}
	}
	addr, _ := serveTo(t, i, "pending1")
	faults := all(t, newClient(t, addr))
	for _, what := range []string{"X.509-SVID", "JWT-SVID"} {
		if status.Code(faults[what]) != codes.PermissionDenied {
			t.Errorf("an agent without a certificate asks for %s: %v", what, faults[what])
		}
	}
}

// The stream of a process ends when it is that agent no more, and another's SVID does not come down it.
func TestStreamsEndWithTheIdentity(t *testing.T) {
	for name, lose := range map[string]func(*issuer, *badge){
		"it left the agent's cgroup":  func(i *issuer, b *badge) { b.become(i, "", nil) },
		"it cannot be told any more":  func(i *issuer, b *badge) { b.become(i, "plan1", errors.New("gone")) },
		"the agent was removed":       func(i *issuer, _ *badge) { i.change(func() { delete(i.svids, "plan1") }) },
		"it is another agent's, then": func(i *issuer, b *badge) { b.become(i, "vec1", nil) },
	} {
		i := newIssuer(t, "plan1", "vec1")
		addr, b := serveTo(t, i, "plan1")
		w := watch(t, newClient(t, addr))
		if got := <-w.updates; got.DefaultSVID().ID != spiffeID("plan1") {
			t.Fatal(got)
		}
		lose(i, b)
		select {
		case err := <-w.faults:
			if status.Code(err) != codes.PermissionDenied {
				t.Errorf("%s: the stream ends with %v", name, err)
			}
		case <-w.updates:
			t.Errorf("%s: the stream goes on", name)
		case <-soon(t).Done():
			t.Errorf("%s: the stream does not end", name)
		}
		if agent, _ := b.attest(nil); agent == "vec1" { // the client asks again, as what it is now
			if got := <-w.updates; got.DefaultSVID().ID != spiffeID("vec1") {
				t.Errorf("%s: it gets %s", name, got.DefaultSVID().ID)
			}
		}
	}
}

// A process that becomes an agent gets its SVID without connecting again.
func TestProcessThatBecomesAnAgent(t *testing.T) {
	i := newIssuer(t, "plan1")
	addr, b := serveTo(t, i, "")
	w := watch(t, newClient(t, addr))
	if err := <-w.faults; status.Code(err) != codes.PermissionDenied {
		t.Errorf("got %v", err)
	}
	b.become(i, "plan1", nil)
	select {
	case got := <-w.updates:
		if got.DefaultSVID().ID != spiffeID("plan1") {
			t.Errorf("got %s", got.DefaultSVID().ID)
		}
	case <-soon(t).Done():
		t.Error("it gets nothing")
	}
}

// Calls without the header of the standard are refused before anything else.
func TestHeaderIsRequired(t *testing.T) {
	i := newIssuer(t, "plan1")
	path := listenFor(t, i, (&badge{agent: "plan1"}).attest)
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	api := workload.NewSpiffeWorkloadAPIClient(conn)
	for _, header := range [][]string{nil, {"workload.spiffe.io", "false"}, {"workload.spiffe.io", "true", "workload.spiffe.io", "true"}, {"workload.spiffe.io", "true"}} {
		ctx := metadata.AppendToOutgoingContext(soon(t), header...)
		_, unary := api.FetchJWTSVID(ctx, &workload.JWTSVIDRequest{Audience: []string{"vec1"}})
		stream, err := api.FetchX509SVID(ctx, &workload.X509SVIDRequest{})
		if err == nil {
			_, err = stream.Recv()
		}
		want := codes.InvalidArgument
		if len(header) == 2 && header[1] == "true" {
			want = codes.OK
		}
		if status.Code(unary) != want || status.Code(err) != want {
			t.Errorf("header %v: %v, %v", header, unary, err)
		}
	}
}

// Who opens connections by the hundred is stopped, and others have theirs.
func TestConnectionsOfOneAgentAreBounded(t *testing.T) {
	i := newIssuer(t, "plan1", "vec1")
	b := &badge{agent: "vec1"}
	path := listenFor(t, i, b.attest)
	open := func() (net.Conn, error) { // waits for the server's first frame: then it has its place
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		_, err = conn.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"))
		if err == nil {
			_, err = conn.Read(make([]byte, 9))
		}
		return conn, err
	}
	var held []net.Conn
	for n := range maxConns {
		conn, err := open()
		if err != nil {
			t.Fatalf("connection %d: %v", n, err)
		}
		held = append(held, conn)
	}
	if _, err := open(); err == nil {
		t.Error("one connection too many is served")
	}
	b.become(i, "plan1", nil)
	if _, err := newClient(t, workloadapi.WithAddr("unix://"+path)).FetchX509SVID(soon(t)); err != nil {
		t.Errorf("another agent: %v", err)
	}
	b.become(i, "vec1", nil)
	for _, conn := range held {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}
	ctx := soon(t)
	for { // the server notices in a moment
		if _, err := open(); err == nil {
			break
		}
		if ctx.Err() != nil {
			t.Fatal("places that were given back are not given again")
		}
	}
}

// A place is given back also if the connection was closed before it was given.
func TestPlaceOfAClosedConnection(t *testing.T) {
	q := quota{each: 1}
	leave, _ := q.take("plan1")
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c := &placedConn{UnixConn: conn.(*net.UnixConn)}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if _, ok := q.take("plan1"); ok {
		t.Error("there is a place too many")
	}
	c.place(leave)
	if _, ok := q.take("plan1"); !ok {
		t.Error("the place is lost")
	}
}

// The listener's failure ends the server, and says why.
func TestRunSaysWhyItEnds(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := New(Options{Mesh: mesh, Listener: l}).Run(t.Context()); err == nil || !strings.Contains(err.Error(), "serve SPIFFE Workload API: ") {
		t.Errorf("got %v", err)
	}
}
