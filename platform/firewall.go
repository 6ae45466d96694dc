package platform

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"regexp"
	"sync"
	"time"

	"github.com/bulkhead-mesh/bulkhead/overlay"
)

// FirewallOptions say what a firewall guards.
type FirewallOptions struct {
	Interface string         // the overlay interface; it need not exist yet
	Prefixes  []netip.Prefix // the overlay's address ranges, IPv4 and IPv6
	Resolvers []netip.Addr   // addresses in them that are this host's own, where it answers DNS queries
	ByOwner   bool           // who sends from an agent's address is judged by SetOwners: where eBPF cannot
	Logger    *slog.Logger
}

// Firewall enforces which flows pass the overlay interface, in the kernel, by rules that only ever drop:
//
//	raw    PREROUTING   overlay addresses only on the interface, and only overlay addresses on it
//	mangle PREROUTING   what comes in: opened by a remote agent (set in), or the answer to one here (set out)
//	filter OUTPUT       what goes out: the same with the sides swapped, refused with an error that the agent sees
//	mangle POSTROUTING  the same for every packet, forwarded ones included; and no overlay address leaves elsewhere
//
// The last two judge the loopback interface, too, over which the agents of one host meet. With ByOwner, mangle OUTPUT
// also says which programs may send from which agent's addresses.
//
// A packet is judged by its connection's direction and by sets of initiator, port and responder, so that a
// withdrawn flow, established or not, ends with the change of the set. The sets are the state: rules follow
// from their names, so that a restarted daemon adopts what it finds. A killed one leaves all in force.
//
// Its methods are safe for concurrent use.
type Firewall struct {
	options FirewallOptions
	tables  []*xtables // one for each family
	ipset   string     // path of the program
	now     func() time.Time

	mu     sync.Mutex
	owners []Owner           // nil until the first SetOwners
	inodes map[string]uint64 // of their groups, as rules mean them
	state  enforced
	clean  generation // of the kernel's rules when they were last seen right
	drops  drops
}

// enforced is what this process knows to be in the kernel.
type enforced struct {
	fenced bool
	config *overlay.FirewallConfig // nil until the first Apply: the sets are adopted ones
	sets   sets                    // nil: unknown, to be read before the next change
	rules  ruleData                // that the rules speak of
	stale  bool                    // the rules may differ from that
	uncut  bool                    // flows may be left that are not allowed
}

var (
	// ErrDrift is wrapped by the error of Check when another program changed what this one put into the kernel.
	ErrDrift = errors.New("firewall differs from what was applied")
	// ErrSplit is returned by Fence when the other variant of iptables (nft or legacy) also holds rules of ours.
	ErrSplit = errors.New("firewall rules are split between nft and legacy iptables")

	errNotFenced = errors.New("apply firewall: it has no fence yet")
)

// A name that iptables takes literally: no wildcard, no negation.
var interfaceName = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,15}$`)

// NewFirewall finds the programs it needs. It changes nothing.
func NewFirewall(o FirewallOptions) (*Firewall, error) {
	if !interfaceName.MatchString(o.Interface) {
		return nil, fmt.Errorf("interface %q: use 1 to 15 letters, digits, dots, dashes or underscores", o.Interface)
	}
	for i, p := range o.Prefixes {
		if !p.IsValid() || p.Addr().Is4In6() {
			return nil, fmt.Errorf("overlay prefix %s: use an IPv4 or IPv6 prefix", p)
		}
		for _, q := range o.Prefixes[:i] {
			if p.Overlaps(q) {
				return nil, fmt.Errorf("overlay prefixes %s and %s overlap: remove one", p, q)
			}
		}
	}
	ipset, err := findProgram("ipset")
	if err != nil {
		return nil, err
	}
	f := &Firewall{options: o, ipset: ipset, now: time.Now, drops: drops{kept: make(map[string]uint64)}}
	for _, family := range families {
		x, err := newXtables(family, "")
		if err != nil {
			return nil, err
		}
		f.tables = append(f.tables, x)
	}
	return f, nil
}

// Fence puts deny into the kernel: chains, sets and routes that let nothing pass. Sets that an earlier
// process left are adopted with their content, which then keeps passing until the first Apply.
func (f *Firewall) Fence(ctx context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.checkSplit(); err != nil {
		return err
	}
	found, err := readSets(f.now())
	if err != nil {
		return fmt.Errorf("read ipsets: %w", err)
	}
	adopted := found.adopt()
	f.state = enforced{sets: found, stale: true, uncut: true}
	if err := f.converge(ctx, adopted); err != nil {
		return fmt.Errorf("fence: %w", err)
	}
	if err := f.addRoutes(); err != nil {
		return fmt.Errorf("fence: %w", err)
	}
	for _, x := range f.tables {
		if f.options.ByOwner {
			break
		}
		if err := x.removeOwners(ctx); err != nil {
			return fmt.Errorf("fence: remove rules by owner: %w", err)
		}
	}
	// A program that prints rules in a way we do not know would be taken for drift for ever: say so now.
	if err := f.checkRules(); err != nil {
		return fmt.Errorf("fence: read rules back: %w", err)
	}
	f.state.fenced = true
	return nil
}

// Apply makes the kernel let pass what config allows and nothing else; it needs a Fence. Flows that are no
// longer allowed are dropped first; before it returns, the kernel has also forgotten them and closed their
// local TCP sockets. After an error what passes is within the old and the new; the next Apply starts from
// what the kernel then holds.
func (f *Firewall) Apply(ctx context.Context, config overlay.FirewallConfig) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.state.fenced {
		return errNotFenced
	}
	want, refused := f.desired(config)
	if refused > 0 {
		f.options.Logger.Warn("firewall entries that cannot be enforced stay denied", "entries", refused)
	}
	f.state.config = &config
	if err := f.convergeOrReread(ctx, want); err != nil {
		return fmt.Errorf("apply firewall: %w", err)
	}
	return nil
}

func (f *Firewall) desired(config overlay.FirewallConfig) (sets, int) {
	return desiredSets(config, f.options.Prefixes, f.now())
}

// convergeOrReread tries once more from what the kernel holds, if what was believed turned out wrong.
func (f *Firewall) convergeOrReread(ctx context.Context, want sets) error {
	if f.state.sets != nil {
		err := f.converge(ctx, want)
		if err == nil || ctx.Err() != nil {
			return err
		}
		f.options.Logger.Warn("firewall is not as it was left; reading it again", "error", err)
	}
	found, err := readSets(f.now())
	if err != nil {
		return fmt.Errorf("read ipsets: %w", err)
	}
	f.state.sets, f.state.stale = found, true
	return f.converge(ctx, want)
}

// converge takes the kernel from f.state to want, in an order in which after each step what passes is
// within both, and withdrawals come before the rest: sets, then rules that name new sets and forget gone
// ones, then the gone sets themselves, then the flows.
func (f *Firewall) converge(ctx context.Context, want sets) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	now := f.now()
	plan, err := planSets(f.state.sets, want, now)
	if err != nil {
		return err
	}
	f.state.sets = nil
	f.state.uncut = f.state.uncut || plan.withdraws
	if err := f.runIpset(ctx, plan.change(now)); err != nil {
		return err
	}
	rules := want.ruleData()
	if rules.owners = f.owners; f.state.stale || !rules.equal(f.state.rules) {
		if err := f.writeRules(ctx, rules); err != nil {
			return err
		}
	}
	if err := f.runIpset(ctx, plan.cleanup()); err != nil {
		return err
	}
	f.state.sets = want
	if f.state.uncut {
		if err := f.cut(want); err != nil {
			return err
		}
		f.state.uncut = false
	}
	return nil
}

// writeRules replaces the rules of both families, each in one transaction, IPv6 first because nobody watches it.
func (f *Firewall) writeRules(ctx context.Context, rules ruleData) error {
	f.state.stale = true
	f.keepCounts()
	if err := f.writeOwned(ctx, &rules); err != nil {
		return err
	}
	f.state.rules, f.state.stale = rules, false
	return nil
}

func (f *Firewall) writeTables(ctx context.Context, rules ruleData) error {
	for _, x := range f.tables {
		if err := x.write(ctx, f.chains(x.family, rules)); err != nil {
			return err
		}
	}
	return nil
}

// Remove takes all rules, sets and routes of ours out of the kernel, and nothing else. Before, it ends the flows of
// the overlay, which nobody will answer. It needs no Fence before, and may be repeated.
func (f *Firewall) Remove(ctx context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.state = enforced{}
	if err := f.cutAll(); err != nil {
		return fmt.Errorf("remove firewall: %w", err)
	}
	var errs []error
	for _, x := range append(f.others(), f.tables...) {
		errs = append(errs, x.remove(ctx))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove firewall: %w", err)
	}
	names, err := setNames()
	if err != nil {
		return fmt.Errorf("remove firewall: read ipsets: %w", err)
	}
	if err := f.runIpset(ctx, destroyText(names)); err != nil {
		return fmt.Errorf("remove firewall: %w", err)
	}
	if err := removeRoutes(); err != nil {
		return fmt.Errorf("remove firewall: %w", err)
	}
	return nil
}
