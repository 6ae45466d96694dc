package workload

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

const (
	engineAnswer = 10 * time.Second // to one question
	engineAgain  = 2 * time.Second  // at most, until an engine that is away is tried again
	maxQuestions = 32               // at once, to one engine: it answers late about a container that it is busy with
	maxContainer = 4096
	maxHomes     = 64 // cgroups in which an engine was seen to make those of containers
)

// engine follows the containers of Podman or Docker, by the API that both have.
type engine struct {
	path, root string
	log        *slog.Logger
	nudge      func()
	asks       chan string   // IDs of containers that seem to come
	asked      chan struct{} // closed once it was asked for its containers
	askedOnce  func()

	mu         sync.Mutex
	containers map[string]container // by ID
	parents    map[string]bool      // of the containers' cgroups
	pending    map[string]bool      // questions that wait for an answer; true: ask again then
	entered    map[string]int
	problem    error // why it is not asked; nil: it answers
}

var errAway = errors.New("it has not answered yet")

func newEngine(path, root string, log *slog.Logger, nudge func()) *engine {
	e := &engine{
		path: path, root: root, log: log.With("engine", path), nudge: nudge, problem: errAway,
		asks: make(chan string, maxQuestions), asked: make(chan struct{}),
		containers: make(map[string]container), parents: make(map[string]bool), pending: make(map[string]bool), entered: make(map[string]int),
	}
	e.askedOnce = sync.OnceFunc(func() { close(e.asked) })
	return e
}

// ask has the engine asked about a container. One that is not asked for want of room is told of by the engine itself.
func (e *engine) ask(id string) {
	select {
	case e.asks <- id:
	default:
	}
}

// running are the containers, and why the engine cannot be asked, if so.
func (e *engine) running() ([]container, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	var all []container
	for _, id := range slices.Sorted(maps.Keys(e.containers)) {
		all = append(all, e.containers[id])
	}
	return all, e.problem
}

// homes are the cgroups in which those of containers were.
func (e *engine) homes() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Collect(maps.Keys(e.parents))
}

// run follows the engine until ctx ends. One that is away keeps the containers that it had: they run without it.
func (e *engine) run(ctx context.Context) {
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = 100*time.Millisecond, engineAgain
	for ctx.Err() == nil {
		err := e.follow(ctx, pause.Reset)
		if ctx.Err() != nil {
			return
		}
		e.setProblem(err)
		e.askedOnce()
		timer := time.NewTimer(pause.NextBackOff())
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
}

func (e *engine) setProblem(err error) {
	e.mu.Lock()
	before := e.problem
	e.problem = err
	e.mu.Unlock()
	switch {
	case err == nil && before != nil:
		e.log.Info("container engine answers")
	case err != nil && before == nil:
		e.log.Warn("container engine is away", "error", err)
	}
	e.nudge()
}

// follow asks for all containers, then for each that an event names. It returns when the engine is away.
func (e *engine) follow(ctx context.Context, reached func()) error {
	if _, err := os.Stat(e.path); errors.Is(err, os.ErrNotExist) {
		return errors.New("there is no socket")
	}
	c, err := client.New(client.WithHost("unix://"+e.path), client.WithDialContext(e.dial))
	if err != nil {
		return err
	}
	defer c.Close()
	questions, ctx := errgroup.WithContext(ctx)
	questions.SetLimit(maxQuestions)
	questions.Go(func() error { return e.listen(ctx, c, questions, reached) })
	return questions.Wait()
}

// dial connects to an engine of root's. Another's could say of any process that it is an agent.
func (e *engine) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", e.path)
	if err != nil {
		return nil, err
	}
	uid, err := ownerOf(conn.(*net.UnixConn))
	if err == nil && uid != 0 {
		err = fmt.Errorf("it is user %d's, and only root's can say which processes are an agent", uid)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// ownerOf is the user that listens at the other end.
func ownerOf(conn *net.UnixConn) (uid uint32, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var fault error
	err = raw.Control(func(fd uintptr) { cred, fault = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err := errors.Join(err, fault); err != nil {
		return 0, err
	}
	return cred.Uid, nil
}

// listen turns events into questions: what an engine says of a container counts when it is asked.
func (e *engine) listen(ctx context.Context, c *client.Client, questions *errgroup.Group, reached func()) error {
	// First the events, so that none between the list and them is missed.
	events := c.Events(ctx, client.EventsListOptions{Filters: make(client.Filters).Add("type", "container")})
	if err := e.list(ctx, c, questions); err != nil {
		return err
	}
	reached()
	ticker := time.NewTicker(recheck)
	defer ticker.Stop()
	var unheard sync.WaitGroup // nobody waits for these answers
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-events.Err:
			return err
		case event := <-events.Messages:
			e.noteEntry(string(event.Action), event.Actor.ID)
			e.question(ctx, c, questions, event.Actor.ID, &unheard)
		case id := <-e.asks:
			e.question(ctx, c, questions, id, &unheard)
		case <-ticker.C:
			if err := e.list(ctx, c, questions); err != nil {
				return err
			}
		}
	}
}

// list asks about all containers that run, or ran when they were last asked about.
func (e *engine) list(ctx context.Context, c *client.Client, questions *errgroup.Group) error {
	asking, cancel := context.WithTimeout(ctx, engineAnswer)
	defer cancel()
	list, err := c.ContainerList(asking, client.ContainerListOptions{})
	if err != nil {
		return err
	}
	e.mu.Lock()
	ids := maps.Clone(e.containers)
	e.mu.Unlock()
	for _, item := range list.Items {
		ids[item.ID] = container{}
	}
	var answers sync.WaitGroup
	for id := range ids {
		e.question(ctx, c, questions, id, &answers)
	}
	questions.Go(func() error {
		answers.Wait()
		e.setProblem(nil)
		e.askedOnce()
		return nil
	})
	return nil
}

// noteEntry counts the processes that are put into a container from outside.
func (e *engine) noteEntry(action, id string) {
	if strings.HasPrefix(action, "exec") {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.entered[id]++
	}
}

// question asks about a container, unless it is being asked about already: then again after that, so that the latest
// answer counts.
func (e *engine) question(ctx context.Context, c *client.Client, questions *errgroup.Group, id string, answers *sync.WaitGroup) {
	e.mu.Lock()
	_, waits := e.pending[id]
	e.pending[id] = waits
	e.mu.Unlock()
	if waits {
		return
	}
	answers.Add(1)
	questions.Go(func() error {
		defer answers.Done()
		for again := true; again; {
			e.inspect(ctx, c, id)
			e.mu.Lock()
			if again = e.pending[id] && ctx.Err() == nil; again {
				e.pending[id] = false
			} else {
				delete(e.pending, id)
			}
			e.mu.Unlock()
		}
		return nil
	})
}

// inspect takes a container as the engine says that it is now.
func (e *engine) inspect(ctx context.Context, c *client.Client, id string) {
	asking, cancel := context.WithTimeout(ctx, engineAnswer)
	defer cancel()
	info, err := c.ContainerInspect(asking, id, client.ContainerInspectOptions{})
	if err != nil && !errdefs.IsNotFound(err) {
		e.log.Debug("inspect container", "container", id, "error", err)
		return // what was known stays, until the engine says otherwise
	}
	i := info.Container
	if err != nil || i.ID == "" || containerID(i.ID) != i.ID || i.State == nil || !i.State.Running || i.State.Pid <= 0 || i.Config == nil {
		e.forget(id)
		return
	}
	first, err := readProcess(i.State.Pid)
	if err != nil { // it has ended since
		e.forget(id)
		return
	}
	home, err := homeOf(e.root, i.State.Pid, i.ID)
	if err != nil {
		e.forget(id)
		return
	}
	e.keep(container{
		id: i.ID, name: strings.TrimPrefix(i.Name, "/"), image: i.Config.Image, labels: i.Config.Labels,
		pid: i.State.Pid, started: first.started, home: home,
	})
}

func (e *engine) keep(c container) {
	e.mu.Lock()
	c.entered = e.entered[c.id]
	if _, known := e.containers[c.id]; known || len(e.containers) < maxContainer {
		e.containers[c.id] = c
	} else {
		e.log.Warn("container left out: there are too many", "container", c.name, "most", maxContainer)
	}
	if len(e.parents) < maxHomes && c.home != "" {
		e.parents[filepath.Dir(c.home)] = true
	}
	e.mu.Unlock()
	e.nudge()
}

func (e *engine) forget(id string) {
	e.mu.Lock()
	delete(e.containers, id)
	delete(e.entered, id)
	e.mu.Unlock()
	e.nudge()
}
