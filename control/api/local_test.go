package api

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-mesh/bulkhead/control/authority"
	"github.com/bulkhead-mesh/bulkhead/overlay"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

// onSocket serves the host's own socket, to root.
func (w *world) onSocket() *Client {
	w.t.Helper()
	return w.dial(DialOptions{Socket: serveSocket(w.t, w.server.Socket(socketRoot))})
}

func socketRoot(*http.Request) authority.Principal { return root }

func TestAgentsAreDeclaredOnTheSocket(t *testing.T) {
	w := newWorld(t)
	client := w.onSocket()
	d := AgentDeclaration{Name: "a1", Labels: segment.Labels{"function": "plan"}, Match: overlay.Match{Container: &overlay.ContainerMatch{Label: "app=plan"}}}
	got, err := client.AddLocalAgent(t.Context(), d)
	if err != nil || got.State != AgentActive {
		t.Fatalf("add = %+v, %v", got, err)
	}
	if diff := cmp.Diff(d, *w.local.added.Load()); diff != "" {
		t.Error(diff)
	}
	w.local.here = []LocalAgent{got}
	list, err := client.LocalAgents(t.Context())
	if err != nil || len(list) != 1 || list[0].Match.Container.Label != "app=plan" {
		t.Errorf("list = %+v, %v", list, err)
	}
	if err := client.RemoveLocalAgent(t.Context(), "a1"); err != nil {
		t.Error(err)
	}
	wantCode(t, client.RemoveLocalAgent(t.Context(), "a2"), authority.CodeNotFound)
	_, err = client.AddLocalAgent(t.Context(), AgentDeclaration{Match: overlay.Match{Run: true}})
	wantCode(t, err, authority.CodeInvalid)

	// What control said of it reaches the one who asked; what control did not say is not this host's fault.
	w.local.fault = fmt.Errorf("control 192.0.2.1:7443: %w", &Problem{Status: http.StatusConflict, Code: authority.CodeNameTaken, Detail: "taken"})
	_, err = client.AddLocalAgent(t.Context(), d)
	wantCode(t, err, authority.CodeNameTaken)
	w.local.fault = fmt.Errorf("control 192.0.2.1:7443: is %w", ErrUnreachable)
	_, err = client.AddLocalAgent(t.Context(), d)
	wantCode(t, err, CodeUnreachable)
	w.local.fault = errors.New("disk is gone")
	_, err = client.AddLocalAgent(t.Context(), d)
	wantCode(t, err, CodeInternal)
}

// Who may log in to control may not thereby say what runs on its host.
func TestAgentsAreDeclaredNowhereElse(t *testing.T) {
	w := newWorld(t)
	admin := w.operator("root", authority.RoleAdmin)
	_, err := admin.AddLocalAgent(t.Context(), AgentDeclaration{Name: "a1", Match: overlay.Match{Host: true}})
	wantCode(t, err, authority.CodeDenied)
	wantCode(t, admin.RemoveLocalAgent(t.Context(), "a1"), authority.CodeDenied)
	_, err = admin.LocalAgents(t.Context())
	wantCode(t, err, authority.CodeDenied)
	if w.local.added.Load() != nil {
		t.Error("an agent was declared over TCP")
	}
	viewer := w.dial(DialOptions{Socket: serveSocket(t, w.server.Socket(func(*http.Request) authority.Principal {
		return authority.Principal{Name: "local/uid-7", Role: authority.RoleViewer}
	}))})
	_, err = viewer.LocalAgents(t.Context())
	wantCode(t, err, authority.CodeDenied)
}

var scout = Whois{Agent: "scout", Host: "h2", Labels: segment.Labels{"function": "scout"}, Segments: []string{"scouts"},
	Addresses: []netip.Addr{netip.MustParseAddr("10.201.0.7"), netip.MustParseAddr("fd00::7")}, ID: "spiffe://lab.test/agent/scout", PolicyVersion: 3}

func TestWhois(t *testing.T) {
	w := newWorld(t)
	w.local.whois = map[netip.Addr]Whois{scout.Addresses[0]: scout, scout.Addresses[1]: scout}
	client := w.operator("vic", authority.RoleViewer)
	for _, addr := range []string{"10.201.0.7", "10.201.0.7:443", "::ffff:10.201.0.7", "[::ffff:10.201.0.7]:1", "fd00::7", "[fd00::7]:443"} {
		got, err := client.Whois(t.Context(), addr)
		if err != nil || !cmp.Equal(got, scout, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })) {
			t.Errorf("whois %s = %+v, %v", addr, got, err)
		}
	}
	for addr, code := range map[string]string{"10.201.0.8": authority.CodeNotFound, "scout": authority.CodeInvalid, "": authority.CodeInvalid,
		"10.201.0.7:443:1": authority.CodeInvalid, "fe80::7%eth0": authority.CodeInvalid, strings.Repeat("1", 99): authority.CodeInvalid} {
		_, err := client.Whois(t.Context(), addr)
		if p, ok := errors.AsType[*Problem](err); !ok || p.Code != code {
			t.Errorf("whois %q = %v, want %s", addr, err, code)
		}
	}
}

// What parses is an address that a socket may have, without the forms that say the same.
func FuzzParseWhois(f *testing.F) {
	for _, s := range []string{"10.201.0.7", "10.201.0.7:443", "[::ffff:10.201.0.7]:1", "fd00::7%x", "[fd00::7]:443", ":443", "[]:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		addr, err := parseWhois(s)
		if err != nil {
			return
		}
		if !addr.IsValid() || addr.Is4In6() || addr.Zone() != "" {
			t.Errorf("parseWhois(%q) = %v", s, addr)
		}
		if again, err := parseWhois(netip.AddrPortFrom(addr, 7).String()); err != nil || again != addr {
			t.Errorf("%v with a port is %v, %v", addr, again, err)
		}
	})
}

// A host without the authority tells of its own agents that wait for an operator.
func TestPendingAgentsOfThisHost(t *testing.T) {
	local := &fakeLocal{
		agents: []segment.Agent{{Name: "plan1", Host: "h2"}},
		here: []LocalAgent{
			{Name: "plan1", State: AgentActive}, {Name: "conf1", State: AgentDeclared},
			{Name: "vault1", State: AgentPending, Labels: segment.Labels{"function": "vault"}},
		},
	}
	client, err := Dial(DialOptions{Socket: serveSocket(t, New(Options{Local: local}).Socket(socketRoot))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	agents, err := client.Agents(t.Context())
	if err != nil || len(agents) != 2 || agents[0].Name != "plan1" || agents[1].Name != "vault1" || agents[1].State != AgentPending || agents[1].Host != "h1" {
		t.Errorf("got %+v, %v", agents, err)
	}
	if a, err := client.Agent(t.Context(), "vault1"); err != nil || a.Labels["function"] != "vault" {
		t.Errorf("got %+v, %v", a, err)
	}
}
