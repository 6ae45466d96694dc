package platform

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/bulkhead-mesh/bulkhead/overlay"
)

var update = flag.Bool("update", false, "write the golden files anew")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

func TestRestoreTextGolden(t *testing.T) {
	wide := []wideRange{
		{overlay.In, protoTCP, 1000, 65535, here4}, {overlay.Out, protoUDP, 4000, 6000, here4},
		{overlay.In, protoTCP, 1000, 65535, here6},
	}
	own := []netip.Addr{here4, here6}
	owners := []Owner{
		{Addresses: own, Groups: []string{"agents.slice", "agents.slice/run-scout"}},
		{Addresses: []netip.Addr{near4, near6}, UIDs: []uint32{1000}, Groups: []string{"agents.slice/x"}},
	}
	f := Firewall{options: FirewallOptions{
		Interface: "bulkhead0", Prefixes: []netip.Prefix{prefix4, prefix6}, Resolvers: overlay.ResolverAddrs([]netip.Prefix{prefix4, prefix6}),
	}}
	for name, c := range map[string]struct {
		family family
		owners []Owner
		hooks  map[hook][]string
	}{
		"restore-4-first.txt":  {ipv4, nil, nil},
		"restore-4-owners.txt": {ipv4, owners, nil},
		"restore-6-moved.txt": {ipv6, nil, map[hook][]string{
			{"raw", "PREROUTING"}:     {"-P PREROUTING ACCEPT", "-A PREROUTING -j BULKHEAD-RAW", "-A PREROUTING -j THEIRS"},
			{"mangle", "PREROUTING"}:  {"-P PREROUTING ACCEPT", `-A PREROUTING -m comment --comment "first now" -j ACCEPT`, "-A PREROUTING -i bulkhead0 -j BULKHEAD-IN"},
			{"mangle", "POSTROUTING"}: {"-P POSTROUTING ACCEPT", "-A POSTROUTING -o old0 -j BULKHEAD-OUT", "-A POSTROUTING ! -o bulkhead0 -j BULKHEAD-LEAK"},
			{"filter", "OUTPUT"}:      {"-P OUTPUT ACCEPT", "-A OUTPUT -o bulkhead0 -j BULKHEAD-REJECT", "-A OUTPUT -o bulkhead0 -j BULKHEAD-REJECT"},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			f.options.ByOwner = c.owners != nil
			golden(t, name, string(restoreText(f.chains(c.family, ruleData{wide: wide, own: own, owners: c.owners}), c.hooks)))
		})
	}
}

func TestSetTextGolden(t *testing.T) {
	now := time.UnixMilli(1_800_000_000_000)
	prefixes := []netip.Prefix{prefix4, prefix6}
	allow := append(grant(overlay.In, protoTCP, 443, 443), grant(overlay.Out, protoICMP, 0, 0)...)
	allow = append(allow, grant(overlay.In, protoUDP, 1000, 2000)...)
	for i := range allow {
		if i%2 == 0 {
			allow[i].Until = now.Add(90500 * time.Millisecond)
		}
	}
	first, _ := desiredSets(config(allow...), prefixes, now)
	second, _ := desiredSets(config(append(grant(overlay.In, protoTCP, 80, 81), allow[1])...), prefixes, now)
	var many []overlay.Allow
	for port := range uint16(66) {
		many = append(many, grant(overlay.Out, protoUDP, 1+port, 1+port)[0])
	}
	third, _ := desiredSets(config(many...), prefixes, now)
	var b strings.Builder
	have := sets{"bulkhead-tmp-0": newSet(kindAddress, ipv4)}
	for _, want := range []sets{first, second, third} {
		plan, err := planSets(have, want, now)
		if err != nil {
			t.Fatal(err)
		}
		b.WriteString("# change\n" + string(plan.change(now)) + "# cleanup\n" + string(plan.cleanup()))
		have = want
	}
	golden(t, "ipset-changes.txt", b.String())
}

// memory is sets as `ipset restore` would make them.
type memory map[string]map[string]string

func (m memory) run(t *rapid.T, line string) {
	w := strings.Fields(line)
	_, exists := m[w[1]]
	if exists == (w[0] == "create") {
		t.Fatalf("%q would fail", line)
	}
	switch w[0] {
	case "create":
		m[w[1]] = make(map[string]string)
	case "destroy":
		delete(m, w[1])
	case "flush":
		clear(m[w[1]])
	case "swap":
		m[w[1]], m[w[2]] = m[w[2]], m[w[1]]
	case "add":
		m[w[1]][w[2]] = w[4]
	case "del":
		delete(m[w[1]], w[2])
	default:
		t.Fatalf("unknown %q", line)
	}
}

func drawConfig(t *rapid.T, now time.Time, name string) overlay.FirewallConfig {
	return config(rapid.SliceOfN(rapid.Custom(func(t *rapid.T) overlay.Allow {
		g := overlay.Allow{
			Direction: rapid.SampledFrom([]overlay.Direction{overlay.In, overlay.Out}).Draw(t, "direction"),
			Remote:    there4, Local: here4,
			Proto: rapid.SampledFrom([]uint8{protoICMP, protoTCP, protoUDP}).Draw(t, "proto"),
		}
		if rapid.Bool().Draw(t, "v6") {
			g.Remote, g.Local = there6, here6
		}
		if g.Proto != protoICMP {
			g.First = rapid.Uint16Range(1, 400).Draw(t, "first")
			g.Last = g.First + rapid.SampledFrom([]uint16{0, 1, 70, 255, 256, 3000}).Draw(t, "width")
		}
		if s := rapid.IntRange(-5, 20).Draw(t, "until"); s != 0 {
			g.Until = now.Add(time.Duration(s) * time.Second)
		}
		return g
	}), 0, 8).Draw(t, name)...)
}

// After every line, what a set that rules name lets pass is within the old and the new; and at the end it is the new.
func TestChangesStayWithinOldAndNew(t *testing.T) {
	now := time.UnixMilli(1_800_000_000_000)
	rapid.Check(t, func(t *rapid.T) {
		old, _ := desiredSets(drawConfig(t, now, "old"), []netip.Prefix{prefix4, prefix6}, now)
		new, _ := desiredSets(drawConfig(t, now, "new"), []netip.Prefix{prefix4, prefix6}, now)
		m := make(memory)
		load := func(want sets) setPlan {
			plan, err := planSets(nil, want, now)
			if err != nil {
				t.Fatal(err)
			}
			return plan
		}
		run := func(text []byte, after func()) {
			for line := range strings.Lines(string(text)) {
				m.run(t, line)
				after()
			}
		}
		run(load(old).change(now), func() {})
		before := make(map[string][]string)
		for name, entries := range m {
			for e := range entries {
				before[name] = append(before[name], e)
			}
		}
		target := make(memory)
		m, target = target, m
		run(load(new).change(now), func() {})
		m, target = target, m

		plan, err := planSets(old, new, now)
		if err != nil {
			t.Fatal(err)
		}
		run(append(plan.change(now), plan.cleanup()...), func() {
			for name, entries := range m {
				if strings.HasPrefix(name, tmpPrefix) {
					continue
				}
				for e := range entries {
					if _, ok := target[name][e]; !ok && !slices.Contains(before[name], e) {
						t.Fatalf("%s lets %s pass, which neither the old nor the new does", name, e)
					}
				}
			}
		})
		if diff := cmp.Diff(target, m); diff != "" {
			t.Fatalf("not as wanted (-want +got):\n%s", diff)
		}
		again, err := planSets(new, new, now)
		if err != nil || len(again.change(now))+len(again.cleanup()) > 0 {
			t.Fatalf("a second change: %q, %v", again.change(now), err)
		}
	})
}

// The sets, taken as a judge, agree with the grants.
func TestSetsJudgeAsGrantsSay(t *testing.T) {
	now := time.UnixMilli(1_800_000_000_000)
	rapid.Check(t, func(t *rapid.T) {
		c := drawConfig(t, now, "config")
		s, refused := desiredSets(c, []netip.Prefix{prefix4, prefix6}, now)
		if refused > 0 {
			t.Fatalf("%d refused", refused)
		}
		at := rapid.IntRange(0, 10).Draw(t, "seconds")
		port := rapid.IntRange(1, 4000).Draw(t, "port")
		live := slices.DeleteFunc(slices.Clone(c.Allow), func(g overlay.Allow) bool {
			return !g.Until.IsZero() && !g.Until.After(now.Add(time.Duration(at)*time.Second))
		})
		for _, p := range allProbes([]int{port}) {
			src, dst := here4, there4
			if p.v6 {
				src, dst = here6, there6
			}
			if p.direction == overlay.In {
				src, dst = dst, src
			}
			proto := protoOf[p.network]
			if proto == protoICMP {
				proto = icmpOf(familyOf(src))
			}
			got := s.allows(src, proto, uint16(p.port), dst, instantOf(now.Add(time.Duration(at)*time.Second)))
			if want := p.allowedBy(live); got != want {
				t.Fatalf("%s after %d s: %t, want %t", p, at, got, want)
			}
		}
	})
}

func TestWideNameRoundTrip(t *testing.T) {
	locals := fixedSets()
	for _, a := range []netip.Addr{here4, here6, there4, there6} {
		locals[nameLocal(familyOf(a))].add(entry{src: a}, 0)
	}
	rapid.Check(t, func(t *rapid.T) {
		first := rapid.Uint16Range(1, 65279).Draw(t, "first")
		w := wideRange{
			direction: rapid.SampledFrom([]overlay.Direction{overlay.In, overlay.Out}).Draw(t, "direction"),
			proto:     rapid.SampledFrom([]uint8{protoTCP, protoUDP}).Draw(t, "proto"),
			first:     first, last: rapid.Uint16Range(first+256, 65535).Draw(t, "last"),
			local: rapid.SampledFrom([]netip.Addr{here4, here6, there4, there6}).Draw(t, "local"),
		}
		name := w.name()
		if len(name) > 31 || !ownedName.MatchString(name) {
			t.Fatalf("%q is no name of ours", name)
		}
		if got, ok := parseWideName(name, locals); !ok || got != w {
			t.Fatalf("%q is read as %+v, want %+v", name, got, w)
		}
		if _, ok := parseWideName(name, fixedSets()); ok {
			t.Fatalf("%q is read without its address", name)
		}
	})
}
