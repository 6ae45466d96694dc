package platform

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/coreos/go-iptables/iptables"
)

const (
	// lockSeconds is how long the programs wait for another that is changing rules.
	lockSeconds = 10
	// writeTries is how often a change is tried when others change the same built-in chains meanwhile.
	writeTries = 5
)

var tableNames = []string{"raw", "mangle", "filter"}

// xtables is one variant of iptables for one family.
type xtables struct {
	family  family
	program *iptables.IPTables
	restore string // path of the program that changes rules atomically
	nft     bool   // rules are kept by nftables
}

// newXtables finds a variant: "" is the system's default, "-nft" and "-legacy" a certain one.
func newXtables(f family, variant string) (*xtables, error) {
	name, proto := "iptables"+variant, iptables.ProtocolIPv4
	if f == ipv6 {
		name, proto = "ip6tables"+variant, iptables.ProtocolIPv6
	}
	path, err := findProgram(name)
	if err != nil {
		return nil, err
	}
	restore, err := findProgram(name + "-restore")
	if err != nil {
		return nil, err
	}
	program, err := iptables.New(iptables.IPFamily(proto), iptables.Path(path), iptables.Timeout(lockSeconds))
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", name, err)
	}
	version, err := exec.Command(path, "--version").Output()
	if err != nil {
		return nil, fmt.Errorf("run %s: %w", name, err)
	}
	return &xtables{family: f, program: program, restore: restore, nft: bytes.Contains(version, []byte("nf_tables"))}, nil
}

// list is a chain's rules as `iptables -S` prints them; none if there is no such chain.
func (x *xtables) list(table, chain string) ([]string, error) {
	lines, err := x.program.List(table, chain)
	return noneIfMissing(lines, err)
}

func (x *xtables) listCounters(table, chain string) ([]string, error) {
	lines, err := x.program.ListWithCounters(table, chain)
	if err != nil { // iptables-nft calls a chain "incompatible" if the whole table is missing
		if ours, listErr := x.ourChains(table); listErr == nil && !slices.Contains(ours, chain) {
			return nil, nil
		}
	}
	return lines, err
}

func noneIfMissing(lines []string, err error) ([]string, error) {
	if failed, ok := errors.AsType[*iptables.Error](err); ok && failed.IsNotExist() {
		return nil, nil
	}
	return lines, err
}

// hooks reads the built-in chains that shall jump to chains.
func (x *xtables) hooks(chains []chain) (map[hook][]string, error) {
	out := make(map[hook][]string)
	for _, c := range chains {
		key := hook{c.table, c.hook}
		if _, ok := out[key]; ok {
			continue
		}
		lines, err := x.list(c.table, c.hook)
		if err != nil {
			return nil, err
		}
		out[key] = lines
	}
	return out, nil
}

// write makes chains what they shall be, each table in one step.
func (x *xtables) write(ctx context.Context, chains []chain) error {
	var err error
	for range writeTries {
		var hooks map[hook][]string
		if hooks, err = x.hooks(chains); err != nil {
			return err
		}
		if err = runChild(ctx, restoreText(chains, hooks), x.restore, "--noflush", "--wait", fmt.Sprint(lockSeconds)); err == nil {
			return nil
		}
		// Another program may have moved a rule that this change deletes: read again.
	}
	return err
}

// check says what differs between the kernel and chains; nil if nothing does.
func (x *xtables) check(chains []chain) error {
	hooks, err := x.hooks(chains)
	if err != nil {
		return err
	}
	for key, lines := range hooks {
		var here []chain
		for _, c := range chains {
			if c.table == key.table {
				here = append(here, c)
			}
		}
		if !inPlace(lines, jumps(here, key.chain)) {
			return fmt.Errorf("%w: IPv%d table %s: %s does not begin with our rules", ErrDrift, x.family, key.table, key.chain)
		}
	}
	for _, c := range chains {
		lines, err := x.list(c.table, c.name)
		if err != nil {
			return err
		}
		want := make([]string, len(c.rules))
		for i, r := range c.rules {
			want[i] = canonical("-A " + c.name + " " + r)
		}
		var got []string
		for _, line := range lines {
			if strings.HasPrefix(line, "-A ") {
				got = append(got, canonical(line))
			}
		}
		if !slices.Equal(want, got) {
			return fmt.Errorf("%w: IPv%d table %s: chain %s was changed", ErrDrift, x.family, c.table, c.name)
		}
	}
	return nil
}

// ourChains are the chains of ours in a table, whatever version made them.
func (x *xtables) ourChains(table string) ([]string, error) {
	all, err := x.program.ListChains(table)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(c string) bool { return !strings.HasPrefix(c, chainPrefix) }), nil
}

// remove deletes all chains of ours and the jumps to them.
func (x *xtables) remove(ctx context.Context) error {
	var err error
	for range writeTries {
		var text []byte
		if text, err = x.removeText(); err != nil || len(text) == 0 {
			return err
		}
		if err = runChild(ctx, text, x.restore, "--noflush", "--wait", fmt.Sprint(lockSeconds)); err == nil {
			return nil
		}
	}
	return err
}

func (x *xtables) removeText() ([]byte, error) {
	var b bytes.Buffer
	for _, table := range tableNames {
		ours, err := x.ourChains(table)
		if err != nil {
			return nil, err
		}
		if len(ours) == 0 {
			continue
		}
		fmt.Fprintf(&b, "*%s\n", table)
		all, err := x.program.ListChains(table)
		if err != nil {
			return nil, err
		}
		for _, c := range all {
			if strings.HasPrefix(c, chainPrefix) {
				continue
			}
			lines, err := x.list(table, c)
			if err != nil {
				return nil, err
			}
			writeDeletes(&b, lines)
		}
		for _, c := range ours {
			fmt.Fprintf(&b, "-F %s\n", c)
		}
		for _, c := range ours {
			fmt.Fprintf(&b, "-X %s\n", c)
		}
		b.WriteString("COMMIT\n")
	}
	return b.Bytes(), nil
}

// others are the installed variants of iptables that are not the default and hold chains of ours.
func (f *Firewall) others() []*xtables {
	var out []*xtables
	for _, x := range f.tables {
		variant := "-nft"
		if x.nft {
			variant = "-legacy"
			// Asking the legacy program makes its tables; so ask only if there are some.
			if !legacyInUse(x.family) {
				continue
			}
		}
		other, err := newXtables(x.family, variant)
		if err != nil {
			continue // not installed
		}
		for _, table := range tableNames {
			if ours, err := other.ourChains(table); err == nil && len(ours) > 0 {
				out = append(out, other)
				break
			}
		}
	}
	return out
}

func legacyInUse(f family) bool {
	name := "ip_tables_names"
	if f == ipv6 {
		name = "ip6_tables_names"
	}
	names, err := os.ReadFile("/proc/thread-self/net/" + name)
	return err == nil && len(bytes.TrimSpace(names)) > 0
}

// checkSplit refuses to work beside rules of ours that the other variant made: they would drop what these allow.
func (f *Firewall) checkSplit() error {
	if len(f.others()) > 0 {
		return fmt.Errorf("%w: take them down with `bulkhead down`, then start again", ErrSplit)
	}
	return nil
}
