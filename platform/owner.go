package platform

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Owner is who may send from an agent's addresses, as netfilter can tell: by user, or by cgroup v2 path. The innermost
// cgroup that any owner names goes before its user.
type Owner struct {
	Addresses []netip.Addr
	UIDs      []uint32
	Groups    []string // paths from the root of cgroup v2, without the first slash
}

func (o Owner) equal(p Owner) bool {
	return slices.Equal(o.Addresses, p.Addresses) && slices.Equal(o.UIDs, p.UIDs) && slices.Equal(o.Groups, p.Groups)
}

const (
	dropForeign = "foreign-source"
	ownerChain  = chainPrefix + "OWNER"

	// anyUser matches what a program sends. Sockets of the kernel itself, which answer for it, have no user.
	anyUser = "0-4294967294"
	// maxGroupPath is the longest path that a rule takes, bytes.
	maxGroupPath = 511
)

// SetOwners says who may send from agents' addresses. No other program of this host may; and an owner may send from no
// address of the overlay but its own. Until the first call, rules by owner are what an earlier process left.
func (f *Firewall) SetOwners(ctx context.Context, owners []Owner) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	living, inodes := livingGroups(append([]Owner{}, owners...)) // nil is not yet known
	if f.owners != nil && slices.EqualFunc(f.owners, living, Owner.equal) && maps.Equal(f.inodes, inodes) {
		return nil
	}
	f.owners = living
	if !f.state.fenced {
		return nil
	}
	data := f.state.rules
	data.owners = living
	if err := f.writeRules(ctx, data); err != nil {
		return fmt.Errorf("set owners of addresses: %w", err)
	}
	return nil
}

// writeOwned writes all rules. One about a cgroup that is gone would be refused, with all others: such are left out. One
// about a cgroup that was made anew would still mean the old one: so their inodes are remembered.
func (f *Firewall) writeOwned(ctx context.Context, rules *ruleData) error {
	for {
		rules.owners, f.inodes = livingGroups(rules.owners)
		err := f.writeTables(ctx, *rules)
		if err == nil {
			f.owners = rules.owners
			return nil
		}
		if again, _ := livingGroups(rules.owners); slices.EqualFunc(again, rules.owners, Owner.equal) {
			return err
		}
	}
}

// livingGroups leaves out the groups that are gone, and says which inodes the others are. Of nil it makes nil.
func livingGroups(owners []Owner) ([]Owner, map[string]uint64) {
	inodes := make(map[string]uint64)
	root, err := CgroupRoot()
	gone := func(group string) bool {
		var st unix.Stat_t
		if err != nil || !RuleNames(group) || unix.Stat(filepath.Join(root, group), &st) != nil {
			return true
		}
		inodes[group] = st.Ino
		return false
	}
	living := slices.Clone(owners)
	for i := range living {
		living[i].Groups = slices.DeleteFunc(slices.Clone(living[i].Groups), gone)
	}
	return living, inodes
}

// RuleNames reports whether a rule can name a cgroup's path, from the root of cgroup v2.
func RuleNames(path string) bool {
	odd := func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '"' || r == '\'' }
	return path != "" && path != "." && len(path) <= maxGroupPath && !strings.ContainsFunc(path, odd)
}

// claim is which packets a program of an owner sends, in the words of a rule.
type claim struct {
	who   string
	depth int
	owner Owner
}

// ownership lets the programs of owners send from their owner's addresses, and no others. What the kernel answers for
// an address, like a reset or an echo, passes: no socket of a program sends it, or, of a connection that is being
// opened, one whose cgroup netfilter cannot tell.
func (g ruleGen) ownership() []string {
	var groups, users []claim
	for _, o := range g.owners {
		for _, path := range o.Groups {
			groups = append(groups, claim{"-m cgroup --path " + path, strings.Count(path, "/"), o})
		}
		for _, uid := range o.UIDs {
			users = append(users, claim{fmt.Sprintf("-m owner --uid-owner %d", uid), 0, o})
		}
	}
	slices.SortFunc(groups, func(a, b claim) int { return cmp.Or(b.depth-a.depth, strings.Compare(a.who, b.who)) })
	var rules []string
	if len(g.prefixes) == 1 {
		rules = append(rules, fmt.Sprintf("! -s %s -j RETURN", g.prefixes[0]))
	}
	rules = append(rules, g.claims(groups)...)
	for _, o := range g.owners {
		for _, a := range g.ofFamily(o.Addresses) {
			if len(o.Groups) > 0 {
				rules = append(rules, fmt.Sprintf("-s %s -p tcp -m tcp --tcp-flags SYN,ACK SYN,ACK -m conntrack --ctdir REPLY -j RETURN", single(a)))
			}
		}
	}
	rules = append(rules, g.claims(users)...)
	for _, o := range g.owners {
		for _, a := range g.ofFamily(o.Addresses) {
			rules = append(rules, fmt.Sprintf("-s %s -m owner --uid-owner %s %s", single(a), anyUser, drop(dropForeign)))
		}
	}
	return rules
}

func (g ruleGen) claims(claims []claim) (rules []string) {
	for _, c := range claims {
		for _, a := range g.ofFamily(c.owner.Addresses) {
			rules = append(rules, fmt.Sprintf("-s %s %s -j RETURN", single(a), c.who))
		}
		for _, p := range g.prefixes {
			rules = append(rules, fmt.Sprintf("-s %s %s %s", p, c.who, drop(dropForeign)))
		}
	}
	return rules
}

func (g ruleGen) ofFamily(addrs []netip.Addr) []netip.Addr {
	return slices.DeleteFunc(slices.Clone(addrs), func(a netip.Addr) bool { return familyOf(a) != g.family })
}

// removeOwners takes away rules by owner that an earlier process left, which had nothing better.
func (x *xtables) removeOwners(ctx context.Context) error {
	chains, err := x.ourChains("mangle")
	if err != nil || !slices.Contains(chains, ownerChain) {
		return err
	}
	lines, err := x.list("mangle", "OUTPUT")
	if err != nil {
		return err
	}
	var b bytes.Buffer
	b.WriteString("*mangle\n")
	writeDeletes(&b, lines)
	fmt.Fprintf(&b, "-F %s\n-X %s\nCOMMIT\n", ownerChain, ownerChain)
	return runChild(ctx, b.Bytes(), x.restore, "--noflush", "--wait", fmt.Sprint(lockSeconds))
}

// CgroupPaths are the paths, from the root of cgroup v2, of cgroups below root with these IDs; those that are gone have none.
func CgroupPaths(root string, ids []uint64) (map[uint64]string, error) {
	paths := make(map[uint64]string, len(ids))
	if root == "" || len(ids) == 0 {
		return paths, nil
	}
	mount, err := CgroupRoot()
	if err != nil {
		return nil, err
	}
	err = filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil // it went meanwhile
		}
		var st unix.Stat_t
		if unix.Stat(name, &st) != nil || !slices.Contains(ids, st.Ino) {
			return nil
		}
		if rel, err := filepath.Rel(mount, name); err == nil {
			paths[st.Ino] = rel
		}
		if len(paths) == len(ids) {
			return fs.SkipAll
		}
		return nil
	})
	return paths, err
}
