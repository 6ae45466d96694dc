package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/bulkhead-mesh/bulkhead/daemon"
	"github.com/bulkhead-mesh/bulkhead/deploy/lab"
)

const (
	patience = time.Minute
	attempts = 3 // of one run of iperf3
	warmUp   = time.Second

	targetRatio = 0.97 // of bare wireguard-go's throughput and packet rate
)

// plane is one of the two ways from one host to another: its ends, and the two processes that carry the packets.
type plane struct {
	name     string
	from, to *lab.Host
	address  netip.Addr // of the receiving end
	pids     []int
	server   *lab.Process
}

func newPlane(name string, from, to *lab.Host, address netip.Addr, processes ...*lab.Process) (*plane, error) {
	p := &plane{name: name, from: from, to: to, address: address}
	for _, process := range processes {
		p.pids = append(p.pids, process.PID())
	}
	return p, p.serve()
}

func (p *plane) serve() (err error) {
	p.server, err = iperfServer(p.to, p.address)
	return err
}

// sample is one run of one load on one plane.
type sample struct {
	received
	cpu time.Duration // of both ends' processes, while it ran
}

// cost is CPU time by what was received: seconds for a gigabit, or microseconds for a packet.
func (s sample) cost(l load) float64 {
	if l.udp {
		return s.cpu.Seconds() * 1e6 / (s.amount * 1000)
	}
	return s.cpu.Seconds() / s.amount
}

// run puts a load on the plane. iperf3 sometimes fails to start in time on a machine that is busy: then again.
func (p *plane) run(ctx context.Context, l load, long time.Duration) (sample, error) {
	var failed error
	for range attempts {
		before, err := processesTime(p.pids)
		if err != nil {
			return sample{}, err
		}
		r, err := iperf(ctx, p.from, p.address, l, long)
		if ctx.Err() != nil {
			return sample{}, ctx.Err()
		}
		if err != nil {
			failed = errors.Join(failed, err)
			if err := p.again(ctx); err != nil {
				return sample{}, errors.Join(failed, err)
			}
			continue
		}
		after, err := processesTime(p.pids)
		return sample{received: r, cpu: after - before}, err
	}
	return sample{}, fmt.Errorf("%s, %s: %w", p.name, l.Name, failed)
}

// again replaces an iperf3 server that may wait for a client that is gone.
func (p *plane) again(ctx context.Context) error {
	if err := p.server.Kill(); err != nil {
		return err
	}
	if err := p.serve(); err != nil {
		return err
	}
	return p.reachable(ctx)
}

// reachable waits until a short run passes from end to end.
func (p *plane) reachable(ctx context.Context) error {
	return lab.Eventually(ctx, patience, func() error {
		_, err := iperf(ctx, p.from, p.address, loads[0], warmUp)
		return err
	})
}

func (p *plane) resetPeaks() error {
	var faults error
	for _, pid := range p.pids {
		faults = errors.Join(faults, resetPeak(pid))
	}
	return faults
}

// peak is the larger of both ends' peaks.
func (p *plane) peak() (worst uint64, err error) {
	for _, pid := range p.pids {
		n, err := peakMemory(pid)
		if err != nil {
			return 0, err
		}
		worst = max(worst, n)
	}
	return worst, nil
}

// measureThroughput puts every load on both planes in turn.
func measureThroughput(ctx context.Context, s settings, p *progress, r *report) (err error) {
	c, err := newCrowd(ctx, s.binary, p)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.mesh.Close()) }()
	p.say("throughput: start bare wireguard-go beside it")
	bare, err := newBare(ctx, c, daemon.DefaultConfig().MTU, !s.apart)
	if err != nil {
		return err
	}
	ours, err := newPlane("Bulkhead", c.left.Host, c.right.Host, c.rightAddress, c.left.Daemon, c.right.Daemon)
	if err != nil {
		return err
	}
	for _, plane := range []*plane{bare, ours} {
		if err := errors.Join(plane.reachable(ctx), plane.resetPeaks()); err != nil {
			return fmt.Errorf("%s carries nothing: %w", plane.name, err)
		}
	}
	result := &throughput{Known: c.known, Shared: !s.apart, Rounds: s.rounds, Slice: s.slice.Seconds()}
	if result.Loads, err = alternate(ctx, bare, ours, s, p); err != nil {
		return err
	}
	if result.BarePeak, err = bare.peak(); err != nil {
		return err
	}
	if result.Peak, err = ours.peak(); err != nil {
		return err
	}
	r.Throughput = result
	return nil
}

// alternate puts every load on both planes, again and again, and each time in the other order.
func alternate(ctx context.Context, bare, ours *plane, s settings, p *progress) (results []loadResult, err error) {
	pairs := make([][]pair, len(loads))
	for round := range s.rounds {
		for i, l := range loads {
			p.say("throughput: round %d of %d, %s", round+1, s.rounds, l.Name)
			one, err := runBoth(ctx, bare, ours, l, s.slice, round%2 == 1)
			if err != nil {
				return nil, err
			}
			pairs[i] = append(pairs[i], one)
		}
	}
	for i, l := range loads {
		results = append(results, summarise(l, pairs[i]))
	}
	return results, nil
}

// pair is one load on both planes, one right after the other, so that both had about the same machine.
type pair struct{ bare, ours sample }

func runBoth(ctx context.Context, bare, ours *plane, l load, long time.Duration, oursFirst bool) (p pair, err error) {
	if oursFirst {
		if p.ours, err = ours.run(ctx, l, long); err != nil {
			return p, err
		}
	}
	if p.bare, err = bare.run(ctx, l, long); err != nil {
		return p, err
	}
	if !oursFirst {
		p.ours, err = ours.run(ctx, l, long)
	}
	return p, err
}

// summarise takes medians. The ratio is the median of each round's ratio, not the ratio of the medians: that way
// what disturbed a whole round cancels out.
func summarise(l load, pairs []pair) loadResult {
	var bare, ours, ratio, bareCost, oursCost, costRatio []float64
	for _, p := range pairs {
		bare, ours, ratio = append(bare, p.bare.rate), append(ours, p.ours.rate), append(ratio, p.ours.rate/p.bare.rate)
		b, o := p.bare.cost(l), p.ours.cost(l)
		bareCost, oursCost, costRatio = append(bareCost, b), append(oursCost, o), append(costRatio, o/b)
	}
	return loadResult{
		Name: l.Name, Unit: l.unit(), CostUnit: l.costUnit(),
		Bare: spreadOf(bare), Ours: spreadOf(ours), Ratio: spreadOf(ratio),
		BareCost: spreadOf(bareCost), OursCost: spreadOf(oursCost), CostRatio: spreadOf(costRatio),
		Met: median(ratio) >= targetRatio,
	}
}
