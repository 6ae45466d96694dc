package overlay_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/bulkhead-mesh/bulkhead/overlay"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
	"github.com/bulkhead-mesh/bulkhead/overlay/signed"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

var planTime = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

// drawRecord is a verified record as any host could give it: names, keys and times collide often.
func drawRecord(t *rapid.T, host string) *signed.VerifiedRecord {
	life := func(label string) time.Time {
		return planTime.Add(time.Duration(rapid.SampledFrom([]int{2, 8, 8, 8, 0}).Draw(t, label)) * time.Hour)
	}
	r := &signed.VerifiedRecord{
		Record:   signed.Record{Host: host, WireGuard: signed.PublicKey{byte(rapid.IntRange(1, 6).Draw(t, "key"))}},
		HostCert: &identity.Certificate{NotAfter: life("host ends")},
	}
	for i := range rapid.SampledFrom([]int{2, 1, 0}).Draw(t, "agents") {
		n := rapid.IntRange(1, 6).Draw(t, "agent")
		r.AgentCerts = append(r.AgentCerts, &identity.Certificate{
			ID: identity.ID{Kind: identity.KindAgent, Name: fmt.Sprintf("a%d", n)},
			Claims: identity.Claims{
				Host: host, Labels: map[string]string{"f": rapid.SampledFrom([]string{"x", "y"}).Draw(t, "label")},
				Issued: planTime.Add(-time.Duration(2*n+i) * time.Second),
			},
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 201, host[1], byte(n)}), netip.MustParseAddr(fmt.Sprintf("fd00::%d:%d", host[1], n))},
			NotAfter:  life("agent ends"),
		})
	}
	return r
}

func drawPolicy(t *rapid.T) *signed.VerifiedPolicy {
	choices := []string{
		"segments: []",
		"segments: [{name: x, match: {f: x}}, {name: y, match: {f: y}}]\nrules: [{name: r, from: x, to: y, allow: [tcp/1-9, icmp], crosses: c}]",
		"segments: [{name: x, match: {f: x}}, {name: z, match: {f: y}}]\nrules: [{name: r, from: z, to: x, allow: [udp/53], crosses: c, until: 2026-06-01T12:30:00Z}, {name: s, from: x, to: x, allow: [tcp/80], crosses: c}]",
	}
	n := rapid.IntRange(0, len(choices)-1).Draw(t, "policy")
	parsed, err := segment.Parse([]byte(choices[n]))
	if err != nil {
		t.Fatal(err)
	}
	return &signed.VerifiedPolicy{Policy: signed.Policy{Version: uint64(n + 1)}, Parsed: parsed, Digest: [32]byte{byte(n)}}
}

// What a planner remembers saves work and changes nothing; and no plan lets a packet pass that no live certificate
// and tunnel stand behind.
func TestPlanLaws(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var remembering overlay.Planner
		in := overlay.Inputs{Host: "h0", Policy: drawPolicy(t), Records: map[string]*signed.VerifiedRecord{}, Now: planTime}
		for i := range 20 {
			host := fmt.Sprintf("h%d", rapid.IntRange(1, 4).Draw(t, "host"))
			step := "own" // the first
			if i > 0 {
				step = rapid.SampledFrom([]string{"record", "record", "record", "policy", "gone", "own", "later"}).Draw(t, "step")
			}
			switch step {
			case "record":
				in.Records[host] = drawRecord(t, host)
			case "gone":
				delete(in.Records, host)
			case "policy":
				in.Policy = drawPolicy(t)
			case "later":
				in.Now = in.Now.Add(20 * time.Minute)
			case "own":
				in.Local = nil
				own := drawRecord(t, "h0")
				in.Records["h0"] = &signed.VerifiedRecord{Record: own.Record, HostCert: own.HostCert}
				for _, c := range own.AgentCerts {
					if in.Now.Before(c.NotAfter) && !slices.ContainsFunc(in.Local, func(a overlay.AgentState) bool { return a.Name == c.Name }) {
						in.Local = append(in.Local, overlay.AgentState{
							Agent:   segment.Agent{Name: c.Name, Host: "h0", Labels: segment.Labels(c.Labels), Addresses: c.Addresses},
							Expires: c.NotAfter,
						})
					}
				}
			}
			in.Local = slices.DeleteFunc(in.Local, func(a overlay.AgentState) bool { return !in.Now.Before(a.Expires) })
			plan := remembering.Plan(in)
			var fresh overlay.Planner
			want := fresh.Plan(in)
			sortAllows(plan.Firewall.Allow)
			sortAllows(want.Firewall.Allow)
			addrs := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
			ports := cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })
			if diff := cmp.Diff(want, plan, addrs, ports, cmpopts.EquateEmpty(), cmpopts.IgnoreFields(overlay.HostPlan{}, "Rules")); diff != "" {
				t.Fatalf("a planner that remembers differs from a new one (-new +remembering):\n%s", diff)
			}
			backed(t, in, plan)
		}
	})
}

func sortAllows(allows []overlay.Allow) {
	slices.SortFunc(allows, func(a, b overlay.Allow) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
}

// backed demands for each grant a live certificate of its remote address, and that each tunnel has a key of its own
// and only such addresses.
func backed(t *rapid.T, in overlay.Inputs, plan overlay.HostPlan) {
	live := map[netip.Addr]string{}
	for host, r := range in.Records {
		for _, c := range r.AgentCerts {
			if in.Now.Before(c.NotAfter) && in.Now.Before(r.HostCert.NotAfter) {
				for _, a := range c.Addresses {
					live[a] = host
				}
			}
		}
	}
	for _, a := range plan.Firewall.Allow {
		own := slices.Contains(plan.Addresses, a.Remote) // two agents here
		if live[a.Remote] == "" && !own || !slices.Contains(plan.Addresses, a.Local) {
			t.Fatalf("nobody stands behind the grant %+v", a)
		}
		if !a.Until.IsZero() && !in.Now.Before(a.Until) {
			t.Fatalf("the grant %+v has ended", a)
		}
	}
	keys := map[[32]byte]string{in.Records["h0"].WireGuard: "this host"}
	for _, p := range plan.Tunnel.Peers {
		if other := keys[p.PublicKey]; other != "" {
			t.Fatalf("%s and %s have one key", p.Host, other)
		}
		keys[p.PublicKey] = p.Host
		for _, a := range p.AllowedIPs {
			if live[a] != p.Host {
				t.Fatalf("%s may use %s, which is of %q", p.Host, a, live[a])
			}
		}
	}
}

// Of two hosts that carry one agent, the one with the newer certificate does.
func TestMovedAgentIsWhereItWasCertifiedLast(t *testing.T) {
	record := func(host string, issued time.Time) *signed.VerifiedRecord {
		return &signed.VerifiedRecord{
			Record:   signed.Record{Host: host, WireGuard: signed.PublicKey{host[1]}},
			HostCert: &identity.Certificate{NotAfter: planTime.Add(time.Hour)},
			AgentCerts: []*identity.Certificate{{
				ID: identity.ID{Kind: identity.KindAgent, Name: "mover"}, NotAfter: planTime.Add(time.Hour),
				Claims:    identity.Claims{Host: host, Labels: map[string]string{"f": "y"}, Issued: issued},
				Addresses: []netip.Addr{netip.MustParseAddr("10.201.0.9")},
			}},
		}
	}
	policy, err := segment.Parse([]byte("segments: [{name: x, match: {f: x}}, {name: y, match: {f: y}}]\nrules: [{name: r, from: x, to: y, allow: [tcp/80], crosses: c}]"))
	if err != nil {
		t.Fatal(err)
	}
	in := overlay.Inputs{
		Host: "h0", Now: planTime, Policy: &signed.VerifiedPolicy{Parsed: policy},
		Local:   []overlay.AgentState{{Agent: segment.Agent{Name: "own", Host: "h0", Labels: segment.Labels{"f": "x"}, Addresses: []netip.Addr{netip.MustParseAddr("10.201.0.1")}}, Expires: planTime.Add(time.Hour)}},
		Records: map[string]*signed.VerifiedRecord{"h1": record("h1", planTime.Add(-time.Hour)), "h2": record("h2", planTime.Add(-time.Minute))},
	}
	var planner overlay.Planner
	peers := planner.Plan(in).Tunnel.Peers
	if len(peers) != 1 || peers[0].Host != "h2" {
		t.Errorf("the peers are %+v, want h2 alone", peers)
	}
}
