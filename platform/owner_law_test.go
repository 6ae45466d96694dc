package platform

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/bulkhead-mesh/bulkhead/overlay"
)

// judge is what a chain of rules by owner does with a packet; it knows the words that they use.
func judge(t *rapid.T, rules []string, src netip.Addr, group string, uid uint32) bool {
	for _, rule := range rules {
		match, target := true, ""
		for _, o := range ruleOptions(rule) {
			name, value, _ := strings.Cut(o, " ")
			value, not := strings.TrimPrefix(value, "-s "), name == "!"
			is := true
			switch {
			case name == "-j":
				target = value
			case name == "-s" || not:
				is = netip.MustParsePrefix(value).Contains(src) != not
			case name == "--path":
				is = strings.HasPrefix(group+"/", value+"/")
			case name == "--uid-owner" && value != anyUser:
				is = value == strconv.Itoa(int(uid))
			case name == "--tcp-flags":
				is = false // no connection is answered
			case name == "-m", name == "-p", name == "--ctdir", name == "--comment", name == "--uid-owner":
			default:
				t.Fatalf("unknown option %q", o)
			}
			match = match && is
		}
		if match && target != "" {
			return target == "RETURN"
		}
	}
	return true
}

// Rules by owner are the specification of whose a process is, for agents that are not the host.
func TestOwnershipIsAsSpecified(t *testing.T) {
	dirs := []string{"a", "a/b", "a/b/c", "a/bc", "d"}
	rapid.Check(t, func(t *rapid.T) {
		var config overlay.BindingConfig
		g := ruleGen{family: ipv4, prefixes: []netip.Prefix{prefix4}}
		groups, uids := rapid.Permutation(dirs).Draw(t, "groups"), []uint32{1, 2, 3}
		for i := range rapid.IntRange(1, 4).Draw(t, "agents") {
			b := overlay.Binding{Agent: fmt.Sprint(i), Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 201, 0, byte(i)})}}
			o := Owner{Addresses: b.Addresses}
			for range rapid.IntRange(0, min(2, len(groups))).Draw(t, "groups of one") {
				o.Groups = append(o.Groups, groups[0])
				b.Cgroups = append(b.Cgroups, uint64(slices.Index(dirs, groups[0])))
				groups = groups[1:]
			}
			if len(uids) > 0 && rapid.Bool().Draw(t, "user") {
				o.UIDs, b.UIDs, uids = uids[:1], uids[:1], uids[1:]
			}
			config.Agents, g.owners = append(config.Agents, b), append(g.owners, o)
		}
		config.Agents = append(config.Agents, overlay.Binding{
			Agent: "host", Addresses: []netip.Addr{netip.MustParseAddr("10.201.0.200")}, Workload: overlay.Workload{Host: true},
		})
		rules := g.ownership()
		group, uid := rapid.SampledFrom(append(dirs, "e")).Draw(t, "group"), rapid.Uint32Range(0, 4).Draw(t, "uid")
		var above []uint64
		for i, dir := range dirs {
			if strings.HasPrefix(group+"/", dir+"/") {
				above = append(above, uint64(i)) // outermost first, as dirs are
			}
		}
		owner := config.Owner(above, uid)
		for _, b := range config.Agents {
			if got := judge(t, rules, b.Addresses[0], group, uid); got != (b.Agent == owner) {
				t.Fatalf("user %d in %s is %s, and may send as %s: %t\n%s", uid, group, owner, b.Agent, got, strings.Join(rules, "\n"))
			}
		}
		if !judge(t, rules, netip.MustParseAddr("192.0.2.1"), group, uid) {
			t.Fatal("an address that is none of the overlay's is judged")
		}
	})
}
