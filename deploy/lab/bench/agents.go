package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"time"

	"github.com/bulkhead-mesh/bulkhead/deploy/lab"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

const (
	connects       = 500 // of one round
	targetConnects = 0.95
	targetAdd      = 200 * time.Millisecond
	bindingRounds  = 101
)

// agents is what it costs to tell agents of one host apart.
type agents struct {
	Loads     []connectResult `json:"loads"`
	Adds      int             `json:"adds"`
	AddMedian time.Duration   `json:"addMedian"` // from `agent add` to the first answer of another host's agent
	AddWorst  time.Duration   `json:"addWorst"`
	AddMet    bool            `json:"addMet"`
}

// connectResult is how fast TCP connections open, with the binding's programs and without.
type connectResult struct {
	Name    string `json:"name"`
	Off     spread `json:"off"` // connections a second
	On      spread `json:"on"`
	Ratio   spread `json:"ratio"`   // of the rates of one round
	Latency spread `json:"latency"` // off by on, of the medians of one round
	Met     bool   `json:"met"`
}

const agentsPolicy = `
segments:
  - {name: all, match: {function: work}}
rules:
  - {name: all, from: all, to: all, allow: [tcp/5001-5002, udp/5001], crosses: "a benchmark"}
`

// measureAgents compares programs in agents' cgroups with the same outside of all cgroups that the daemon sees.
func measureAgents(ctx context.Context, s settings, p *progress, r *report) (err error) {
	work := segment.Labels{"function": "work"}
	p.say("agents: found a mesh of two hosts")
	m, err := lab.NewMesh(ctx, s.binary, lab.Spec{}, lab.Spec{Agent: "far", Labels: work})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	if err := m.Apply(ctx, agentsPolicy); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "bulkhead-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	program, err := lab.BuildActor(ctx, dir)
	if err != nil {
		return err
	}
	b := &agentBench{node: m.Hosts[0], far: m.Hosts[1], program: program}
	result := &agents{Adds: s.adds}
	if result.Loads, err = b.connects(ctx, p); err != nil {
		return err
	}
	var took []time.Duration
	for i := range s.adds {
		p.say("agents: add agent %d of %d", i+1, s.adds)
		d, err := b.add(ctx, i)
		if err != nil {
			return err
		}
		took = append(took, d)
	}
	result.AddMedian, result.AddWorst = quantile(took, 0.5), quantile(took, 1)
	result.AddMet = result.AddMedian < targetAdd
	r.Agents = result
	return nil
}

type agentBench struct {
	node, far *lab.Node
	program   string
}

// declare adds an agent that is a cgroup, starts a program in it, and returns the agent's IPv4 address.
func (b *agentBench) declare(ctx context.Context, name string) (*lab.Actor, netip.Addr, error) {
	if err := b.node.Cgroup(name); err != nil {
		return nil, netip.Addr{}, err
	}
	a, err := b.node.Act(name, 0, b.program)
	if err != nil {
		return nil, netip.Addr{}, err
	}
	if _, err := b.node.Run(ctx, "agent", "add", name, "--label", "function=work", "--match", "cgroup=/"+name); err != nil {
		return nil, netip.Addr{}, err
	}
	addr, err := b.address(ctx, b.node, name)
	return a, addr, err
}

func (b *agentBench) address(ctx context.Context, n *lab.Node, agent string) (netip.Addr, error) {
	s, err := n.Status(ctx)
	for _, a := range s.Agents {
		if a.Name == agent {
			return a.Addresses[0], nil
		}
	}
	return netip.Addr{}, errors.Join(fmt.Errorf("%s has no agent %s", n.Name, agent), err)
}

// connects has a client open connections to a server of its host: over the overlay as agents, and over the loopback as
// any two programs do.
func (b *agentBench) connects(ctx context.Context, p *progress) ([]connectResult, error) {
	client, clientAddr, err := b.declare(ctx, "client")
	if err != nil {
		return nil, err
	}
	server, serverAddr, err := b.declare(ctx, "server")
	if err != nil {
		return nil, err
	}
	inside, err := b.node.Act("", 0, b.program)
	if err != nil {
		return nil, err
	}
	outside, err := b.node.ActOutside(b.program)
	if err != nil {
		return nil, err
	}
	outsideServer, err := b.node.ActOutside(b.program)
	if err != nil {
		return nil, err
	}
	loop := netip.MustParseAddr("127.0.0.1")
	for _, o := range []struct {
		who  *lab.Actor
		addr netip.Addr
		port uint16
	}{{server, serverAddr, 5001}, {outsideServer, serverAddr, 5002}, {inside, loop, 6001}, {outsideServer, loop, 6002}} {
		if _, err := o.who.Do(lab.Order{Do: "serve", Network: "tcp", Local: netip.AddrPortFrom(o.addr, o.port).String()}); err != nil {
			return nil, err
		}
	}
	insideClient, err := b.node.Act("", 0, b.program)
	if err != nil {
		return nil, err
	}
	overlayOff := lab.Order{Do: "connect", Network: "tcp", Remote: netip.AddrPortFrom(serverAddr, 5002).String(), Local: netip.AddrPortFrom(clientAddr, 0).String()}
	overlayOn := lab.Order{Do: "connect", Network: "tcp", Remote: netip.AddrPortFrom(serverAddr, 5001).String()}
	loads := []struct {
		name        string
		off, on     *lab.Actor
		offDo, onDo lab.Order
	}{
		{"two agents over the overlay", outside, client, overlayOff, overlayOn},
		{"two other programs over the loopback", outside, insideClient,
			lab.Order{Do: "connect", Network: "tcp", Remote: "127.0.0.1:6002"}, lab.Order{Do: "connect", Network: "tcp", Remote: "127.0.0.1:6001"}},
	}
	var results []connectResult
	for _, l := range loads {
		var off, on, ratios, latencies []float64
		for round := range bindingRounds {
			p.say("agents: %s, round %d of %d", l.name, round+1, bindingRounds)
			var offRate, offMedian, onRate, onMedian float64
			var err, other error
			if round%2 == 0 { // neither always comes second
				offRate, offMedian, err = rate(l.off, l.offDo)
				onRate, onMedian, other = rate(l.on, l.onDo)
			} else {
				onRate, onMedian, err = rate(l.on, l.onDo)
				offRate, offMedian, other = rate(l.off, l.offDo)
			}
			if err := errors.Join(err, other); err != nil {
				return nil, fmt.Errorf("%s: %w", l.name, err)
			}
			off, on = append(off, offRate), append(on, onRate)
			ratios, latencies = append(ratios, onRate/offRate), append(latencies, offMedian/onMedian)
		}
		c := connectResult{Name: l.name, Off: spreadOf(off), On: spreadOf(on), Ratio: spreadOf(ratios), Latency: spreadOf(latencies)}
		c.Met = c.Ratio.Median >= targetConnects && c.Latency.Median >= targetConnects
		results = append(results, c)
	}
	return results, nil
}

// rate is how many connections an actor opens a second, and the median time of one, ns.
func rate(a *lab.Actor, o lab.Order) (perSecond, medianNS float64, err error) {
	o.Count = connects
	begin := time.Now()
	r, err := a.Do(o)
	if err != nil {
		return 0, 0, err
	}
	elapsed := time.Since(begin)
	took := make([]float64, len(r.Took))
	for i, t := range r.Took {
		took[i] = float64(t)
	}
	return float64(len(took)) / elapsed.Seconds(), median(took), nil
}

// add is how long it takes from `agent add` until the agent's waiting program has an answer from another host.
func (b *agentBench) add(ctx context.Context, i int) (time.Duration, error) {
	name := "late" + strconv.Itoa(i)
	if err := b.node.Cgroup(name); err != nil {
		return 0, err
	}
	a, err := b.node.Act(name, 0, b.program)
	if err != nil {
		return 0, err
	}
	far, err := b.address(ctx, b.far, "far")
	if err != nil {
		return 0, err
	}
	server, err := b.far.Serve([]netip.Addr{far}, 5001)
	if err != nil {
		return 0, err
	}
	defer server.Close()
	answered := make(chan error, 1)
	go func() {
		_, err := a.Do(lab.Order{Do: "knock", Remote: netip.AddrPortFrom(far, 5001).String()})
		answered <- err
	}()
	begin := time.Now()
	if _, err := b.node.Run(ctx, "agent", "add", name, "--label", "function=work", "--match", "cgroup=/"+name); err != nil {
		return 0, errors.Join(err, <-answered)
	}
	if err := <-answered; err != nil {
		return 0, err
	}
	took := time.Since(begin)
	_, err = b.node.Run(ctx, "agent", "remove", name)
	return took, errors.Join(err, a.Close())
}

func (a *agents) print(t *table) {
	t.title("Agents of one host told apart: new TCP connections with the binding's programs and without")
	t.row("", "OFF /s", "ON /s", "RATIO", "MIN–MAX", "LATENCY", "MIN–MAX", "TARGET")
	for _, l := range a.Loads {
		t.row(l.Name, figure(l.Off.Median), figure(l.On.Median), ratio(l.Ratio.Median), span(l.Ratio), ratio(l.Latency.Median), span(l.Latency),
			mark(l.Met)+fmt.Sprintf(" ≥ %.2f", targetConnects))
	}
	t.note("Medians of %d rounds of %d connections each way in turn; latency is the median of one connect(), off by on.", bindingRounds, connects)
	t.row("`agent add` to the first answer from another host", "median "+milliseconds(a.AddMedian), "worst "+milliseconds(a.AddWorst), mark(a.AddMet)+" < "+milliseconds(targetAdd))
	t.note("%d agents, one after another; the time of the command itself is in it.", a.Adds)
}
