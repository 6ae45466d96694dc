package platform

import (
	"context"
	"fmt"
	"io/fs"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Owner is who may send from an agent's addresses, as netfilter can tell: by user, or by cgroup v2 path.
type Owner struct {
	Addresses []netip.Addr
	UIDs      []uint32
	Groups    []string // paths from the root of cgroup v2, without the first slash
}

func (o Owner) equal(p Owner) bool {
	return slices.Equal(o.Addresses, p.Addresses) && slices.Equal(o.UIDs, p.UIDs) && slices.Equal(o.Groups, p.Groups)
}

const dropForeign = "foreign-source"

// SetOwners says who may send from agents' addresses; no other local program may. It takes effect at once.
func (f *Firewall) SetOwners(ctx context.Context, owners []Owner) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if slices.EqualFunc(f.owners, owners, Owner.equal) {
		return nil
	}
	f.owners = slices.Clone(owners)
	if !f.state.fenced {
		return nil
	}
	data := f.state.rules
	data.owners = f.owners
	if err := f.writeRules(ctx, data); err != nil {
		return fmt.Errorf("set owners of addresses: %w", err)
	}
	return nil
}

// ownership lets owners alone send from their addresses. What no socket sends is the kernel's own.
func (g ruleGen) ownership() []string {
	var rules []string
	for _, o := range g.owners {
		for _, a := range o.Addresses {
			if familyOf(a) != g.family {
				continue
			}
			for _, uid := range o.UIDs {
				rules = append(rules, fmt.Sprintf("-s %s -m owner --uid-owner %d -j RETURN", single(a), uid))
			}
			for _, group := range o.Groups {
				rules = append(rules, fmt.Sprintf("-s %s -m cgroup --path %s -j RETURN", single(a), group))
			}
			rules = append(rules, fmt.Sprintf("-s %s -m owner --socket-exists %s", single(a), drop(dropForeign)))
		}
	}
	return rules
}

// CgroupPaths are the paths, from the root of cgroup v2, of cgroups below root with these IDs; of those that are gone there
// is none, and none of those whose name a rule cannot have.
func CgroupPaths(root string, ids []uint64) ([]string, error) {
	if root == "" || len(ids) == 0 {
		return nil, nil
	}
	mount, err := CgroupRoot()
	if err != nil {
		return nil, err
	}
	var paths []string
	err = filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil // it went meanwhile
		}
		var st unix.Stat_t
		if unix.Stat(name, &st) == nil && slices.Contains(ids, st.Ino) {
			if rel, err := filepath.Rel(mount, name); err == nil && !strings.ContainsAny(rel, " \t\n\"'\\") {
				paths = append(paths, rel)
			}
		}
		return nil
	})
	slices.Sort(paths)
	return paths, err
}
