package overlay_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/bulkhead-mesh/bulkhead/overlay"
)

var matches = map[string]overlay.Match{
	"cgroup=/agents/planner": {Cgroup: "/agents/planner"},
	"unit=retriever.service": {Unit: "retriever.service"},
	"unit=worker@*.service":  {Unit: "worker@*.service"},
	"unit=agents.slice":      {Unit: "agents.slice"},
	"user=alice":             {User: "alice"},
	"user=1000":              {User: "1000"},
	"run":                    {Run: true},
	"host":                   {Host: true},
	"container.name=box":     {Container: &overlay.ContainerMatch{Name: "box"}},
	"container.label=role=a,container.image=busybox:1": {Container: &overlay.ContainerMatch{Label: "role=a", Image: "busybox:1"}},
}

func TestMatchHasOneTextForm(t *testing.T) {
	for text, want := range matches {
		got, err := overlay.ParseMatch(text)
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q (-want +got):\n%s", text, diff)
		}
		again, err := overlay.ParseMatch(got.String())
		if err != nil || !again.Equal(got) {
			t.Errorf("%q: its form %q is read as %v, %v", text, got, again, err)
		}
	}
}

func TestMatchRefusesWhatIsNoMatch(t *testing.T) {
	for text, want := range map[string]string{
		"":                              "not understood",
		"unit=":                         "not understood",
		"unit=a.service,unit=b.service": "not understood",
		"unit=a.service,host":           "exactly one",
		"unit=-.slice":                  "match.unit",
		"unit=retriever":                "match.unit",
		"unit=../x.service":             "match.unit",
		"unit=*.service":                "match.unit",
		"cgroup=agents":                 "match.cgroup",
		"cgroup=/":                      "match.cgroup",
		"cgroup=/a/../b":                "match.cgroup",
		"user=a b":                      "match.user",
		"user=root":                     "match.user: root",
		"container.label=role":          "match.container.label",
		"container.size=3":              "not understood",
		"container.name=" + strings.Repeat("x", 300): "match.container.name",
	} {
		if m, err := overlay.ParseMatch(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60q: got %v, %v; want an error about %q", text, m, err, want)
		}
	}
}

func FuzzParseMatch(f *testing.F) {
	for text := range matches {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		m, err := overlay.ParseMatch(text)
		if err != nil {
			return
		}
		if again, err := overlay.ParseMatch(m.String()); err != nil || !again.Equal(m) {
			t.Errorf("%q is %v, whose form %q is %v, %v", text, m, m.String(), again, err)
		}
	})
}

func TestTheInnermostClaimOwnsAProcess(t *testing.T) {
	c := overlay.BindingConfig{Agents: []overlay.Binding{
		{Agent: "host", Workload: overlay.Workload{Host: true}},
		{Agent: "inner", Workload: overlay.Workload{Cgroups: []uint64{7}}},
		{Agent: "outer", Workload: overlay.Workload{Cgroups: []uint64{3}}},
		{Agent: "user", Workload: overlay.Workload{UIDs: []uint32{1000}}},
	}}
	for _, tt := range []struct {
		groups []uint64
		uid    uint32
		want   string
	}{
		{[]uint64{1, 3, 7}, 1000, "inner"}, {[]uint64{1, 3, 8}, 1000, "outer"}, {[]uint64{1, 8}, 1000, "user"}, {[]uint64{1, 8}, 0, "host"},
	} {
		if got := c.Owner(tt.groups, tt.uid); got != tt.want {
			t.Errorf("cgroups %v of user %d: got %q, want %q", tt.groups, tt.uid, got, tt.want)
		}
	}
	c.Agents = c.Agents[1:]
	if got := c.Owner([]uint64{1}, 0); got != "" {
		t.Errorf("a process that nobody claims is %q", got)
	}
}

func TestResolverAddrsLieInTheRanges(t *testing.T) {
	got := overlay.ResolverAddrs([]netip.Prefix{netip.MustParsePrefix("10.201.0.0/16"), netip.MustParsePrefix("fd00:1:2::/48"), netip.MustParsePrefix("10.9.9.0/28")})
	want := []netip.Addr{netip.MustParseAddr("10.201.0.53"), netip.MustParseAddr("fd00:1:2::35")}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Error(diff)
	}
}
