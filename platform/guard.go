package platform

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	// guardInterval is how often the guard looks whether anything changed: by counters, so it costs nothing.
	guardInterval = 500 * time.Millisecond
	// guardFull is how often it reads all back, and judges all ends again by the wall clock.
	guardFull = 30 * time.Second
)

// generation numbers the states of the kernel's nftables rules; 0 is unknown.
type generation uint32

// readGeneration asks the kernel. It changes with every change of rules in this network namespace.
func readGeneration() (generation, error) {
	const getGeneration, attrID = 16, 1
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|getGeneration, 0)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, Version: nl.NFNETLINK_V0})
	messages, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil {
		return 0, fmt.Errorf("read generation of rules: %w", err)
	}
	var g generation
	for _, m := range messages {
		if len(m) < nl.SizeofNfgenmsg {
			return 0, fmt.Errorf("read generation of rules: %w", errSetMessage)
		}
		err = eachAttr(m[nl.SizeofNfgenmsg:], func(kind uint16, value []byte) error {
			if kind == attrID && len(value) == 4 {
				g = generation(binary.BigEndian.Uint32(value))
			}
			return nil
		})
	}
	return g, err
}

// Check compares the kernel with what was applied; what another program changed is ErrDrift.
func (f *Firewall) Check(ctx context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if !f.state.fenced {
		return fmt.Errorf("%w: there is no fence", ErrDrift)
	}
	return errors.Join(f.checkRules(), f.checkSets(), f.checkRoutes())
}

// checkRules also remembers that rules were right, so that equal ones need not be read again.
func (f *Firewall) checkRules() error {
	f.clean = 0
	before, err := f.generation()
	if err != nil {
		return err
	}
	for _, x := range f.tables {
		if err := x.check(f.chains(x.family, f.state.rules)); err != nil {
			return err
		}
	}
	f.clean = before
	return nil
}

// generation is 0 where rules are not kept by nftables.
func (f *Firewall) generation() (generation, error) {
	for _, x := range f.tables {
		if !x.nft {
			return 0, nil
		}
	}
	return readGeneration()
}

func (f *Firewall) checkSets() error {
	if f.state.sets == nil {
		return fmt.Errorf("%w: ipsets were not applied", ErrDrift)
	}
	now := f.now()
	found, err := readSets(now)
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(f.state.sets)) {
		switch want, got := f.state.sets[name], found[name]; {
		case got == nil:
			errs = append(errs, fmt.Errorf("%w: ipset %s is gone", ErrDrift, name))
		case got.kind != want.kind || got.family != want.family:
			errs = append(errs, fmt.Errorf("%w: ipset %s is of another type", ErrDrift, name))
		default:
			if n := countDifferences(got, want, instantOf(now)); n > 0 {
				errs = append(errs, fmt.Errorf("%w: ipset %s differs in %d entries", ErrDrift, name, n))
			}
		}
	}
	return errors.Join(errs...)
}

// countDifferences does not count entries that end about now: the kernel may or may not have ended them.
func countDifferences(got, want *set, now instant) int {
	n := 0
	for e, end := range got.entries {
		if _, ok := want.entries[e]; !ok && !ending(end, now) {
			n++
		}
	}
	for e, end := range want.entries {
		old, ok := got.entries[e]
		switch {
		case ending(end, now):
		case !ok:
			n++
		case old != end && !near(old, end) && !(far(old, now) && far(end, now)):
			n++
		}
	}
	return n
}

func ending(end, now instant) bool { return end != 0 && end-now <= roughness }

// Guard notices within a second what other programs change, puts it back, and tells onDrift what it was.
// It also arms ends again that are later than the kernel can count, and cuts flows that a change let in. It
// returns nil when ctx ends.
func (f *Firewall) Guard(ctx context.Context, onDrift func(error)) error {
	ticker := time.NewTicker(guardInterval)
	defer ticker.Stop()
	var sinceFull time.Duration
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		sinceFull += guardInterval
		full := sinceFull >= guardFull
		if full {
			sinceFull = 0
		}
		drift, err := f.guardOnce(ctx, full)
		if drift != nil {
			onDrift(drift)
		}
		if err != nil && ctx.Err() == nil {
			f.options.Logger.Error("firewall is not restored; trying again", "error", err)
		}
	}
}

// guardOnce returns what had drifted, and the error if it is not put right.
func (f *Firewall) guardOnce(ctx context.Context, full bool) (drift, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.state.fenced {
		return nil, nil
	}
	ruleDrift, err := f.ruleDrift(full)
	if err != nil {
		return nil, err
	}
	setDrift, err := f.setDrift(full)
	if err != nil {
		return nil, err
	}
	restored, err := f.restoreRoutes()
	if err != nil {
		return nil, err
	}
	if drift = errors.Join(ruleDrift, setDrift, restored); drift == nil && !full {
		return nil, nil
	}
	return drift, f.repair(ctx, drift != nil)
}

func (f *Firewall) ruleDrift(full bool) (drift, err error) {
	now, err := f.generation()
	if err != nil {
		return nil, err
	}
	if !full && now != 0 && now == f.clean {
		return nil, nil
	}
	return driftOnly(f.checkRules())
}

func (f *Firewall) setDrift(full bool) (drift, err error) {
	if !full {
		sizes, err := setSizes()
		if err != nil || f.sizesFit(sizes) {
			return nil, err
		}
	}
	return driftOnly(f.checkSets())
}

func driftOnly(err error) (drift, other error) {
	if errors.Is(err, ErrDrift) {
		return err, nil
	}
	return nil, err
}

// sizesFit compares the sizes of sets; entries that end about now may be counted or not.
func (f *Firewall) sizesFit(sizes map[string]int) bool {
	if f.state.sets == nil {
		return false
	}
	now := instantOf(f.now())
	for name, s := range f.state.sets {
		low, high := s.sizeAt(now)
		if n, ok := sizes[name]; !ok || n < low || n > high {
			return false
		}
	}
	return true
}

// repair converges from what the kernel holds now to what it shall.
func (f *Firewall) repair(ctx context.Context, drifted bool) error {
	believed := f.state.sets
	found, err := readSets(f.now())
	if err != nil {
		return err
	}
	var want sets
	switch {
	case f.state.config != nil:
		want, _ = f.desired(*f.state.config)
	case believed != nil:
		want = believed
	default:
		want = found.adopt()
	}
	f.state.sets, f.state.stale, f.state.uncut = found, f.state.stale || drifted, f.state.uncut || drifted
	return f.converge(ctx, want)
}
