// Command demo shows a mesh at work: five hosts in network namespaces of this machine, agents in four segments (two
// functions, each in two sensitivities), real HTTP and PostgreSQL flows between all of them, a rule withdrawn during
// a download, and a host revoked during another. It needs root, and touches nothing outside its namespaces.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	binary := flag.String("binary", "bin/bulkhead", "the bulkhead `program` to show")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	begin := time.Now()
	board := newBoard(os.Stdout)
	err := show(ctx, board, *binary)
	stop()
	if err != nil {
		board.fault(err)
	}
	passed := board.sum(time.Since(begin))
	if err != nil || !passed {
		os.Exit(1)
	}
}

// show plays all acts. The error is what kept it from going on; checks that fail are on the board.
func show(ctx context.Context, b *board, binary string) (err error) {
	b.title("Five hosts, four segments, one control host")
	var s *stage
	if err := b.step("found a mesh on h1, enrol h2 to h5 with tokens, each with its agent", func() (err error) {
		s, err = newStage(ctx, binary)
		return err
	}); err != nil {
		return err
	}
	defer func() {
		if closeErr := b.step("remove the namespaces and all that ran in them", s.close); err == nil {
			err = closeErr
		}
	}()
	if err := b.step("apply the policy and wait until all hosts enforce it", func() error { return s.mesh.Apply(ctx, policy) }); err != nil {
		return err
	}
	if err := b.cast(s); err != nil {
		return err
	}
	for _, act := range []struct {
		title string
		play  func(context.Context, *board, *stage) error
	}{
		{"Every agent tries every other, over IPv4 and IPv6", everyPair},
		{"A rule is withdrawn during a download", withdrawRule},
		{"A host is revoked during a download", revokeHost},
	} {
		b.title(act.title)
		if err := act.play(ctx, b, s); err != nil {
			return fmt.Errorf("%s: %w", act.title, err)
		}
	}
	b.title("The end")
	return nil
}
