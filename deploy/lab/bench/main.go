// Command bench measures Bulkhead over real network namespaces of this machine: the throughput of two hosts beside
// bare wireguard-go's in the same run, how fast a change of policy is enforced on twenty hosts, and what a daemon
// costs that does nothing. It needs root and iperf3, and touches nothing outside its namespaces. A target that is
// missed is marked; only what could not be measured is an error.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// settings are what the flags say.
type settings struct {
	binary  string
	only    string
	output  string
	rounds  int
	slice   time.Duration
	apart   bool
	changes int
	idle    time.Duration
	adds    int
}

const (
	partThroughput = "throughput"
	partChange     = "change"
	partIdle       = "idle"
	partAgents     = "agents"
)

func main() {
	var s settings
	flag.StringVar(&s.binary, "binary", "bin/bulkhead", "the bulkhead `program` to measure")
	flag.StringVar(&s.only, "only", "", "measure one `part` only: throughput, change, idle or agents")
	flag.StringVar(&s.output, "o", "table", "output `format`: table or json")
	flag.IntVar(&s.rounds, "rounds", 5, "throughput: how often each load is put on each of the two data planes")
	flag.DurationVar(&s.slice, "slice", 3*time.Second, "throughput: how long each of these takes")
	flag.BoolVar(&s.apart, "apart", false, "throughput: run bare wireguard-go on two hosts of its own, without any firewall, not on those of Bulkhead")
	flag.IntVar(&s.changes, "changes", 40, "change: how many")
	flag.DurationVar(&s.idle, "idle", time.Minute, "idle: how long to watch")
	flag.IntVar(&s.adds, "adds", 20, "agents: how many are added")
	flag.Parse()
	if err := s.check(flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	report, err := measure(ctx, s, newProgress(os.Stderr))
	stop()
	if printErr := report.print(os.Stdout, s.output); err == nil {
		err = printErr
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func (s *settings) check(rest []string) error {
	switch {
	case len(rest) > 0:
		return fmt.Errorf("bench takes no argument, but got %q", rest)
	case !slices.Contains([]string{"", partThroughput, partChange, partIdle, partAgents}, s.only):
		return fmt.Errorf("-only %q is unknown (fix: throughput, change, idle or agents)", s.only)
	case s.output != "table" && s.output != "json":
		return fmt.Errorf("-o %q is unknown (fix: table or json)", s.output)
	case s.rounds < 1 || s.changes < 1 || s.adds < 1:
		return errors.New("-rounds, -changes and -adds must be at least 1")
	case s.slice < time.Second || s.slice%time.Second != 0 || s.idle < time.Second:
		return errors.New("-slice must be whole seconds, and -idle at least one second")
	}
	path, err := filepath.Abs(s.binary)
	if err != nil {
		return err
	}
	if _, err := os.Stat(path); err != nil {
		return fmt.Errorf("-binary: %w (fix: make build)", err)
	}
	s.binary = path
	return nil
}

// measure does all parts, or the one that was asked for. What was measured before an error is in the report.
func measure(ctx context.Context, s settings, p *progress) (*report, error) {
	r := &report{}
	begin, before := time.Now(), stolen()
	parts := []struct {
		name string
		do   func(context.Context, settings, *progress, *report) error
	}{{partThroughput, measureThroughput}, {partChange, measureChange}, {partIdle, measureIdle}, {partAgents, measureAgents}}
	var failed error
	for _, part := range parts {
		if s.only != "" && s.only != part.name {
			continue
		}
		if err := part.do(ctx, s, p, r); err != nil {
			if ctx.Err() != nil {
				err = fmt.Errorf("interrupted: %w", err)
			}
			failed = fmt.Errorf("measure %s: %w", part.name, err)
			break
		}
	}
	p.end()
	r.Took = time.Since(begin)
	r.Machine = describeMachine(before)
	return r, failed
}
