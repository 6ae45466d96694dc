package lab

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/bulkhead-mesh/bulkhead/control/api"
	"github.com/bulkhead-mesh/bulkhead/overlay"
)

// Each agent knows the names of those that it may reach, who is behind an address that it has to do with, and has an
// identity that unmodified programs use for mutual TLS.
func TestAgentsKnowWhoIsWho(t *testing.T) {
	m := newTestMesh(t, Spec{Agent: "store1", Labels: labels("store", "confidential")}, Spec{})
	c := newCrew(t, m)
	if err := m.Apply(t.Context(), oneHostPolicy); err != nil {
		t.Fatal(err)
	}
	c.agents["store1"] = agentsOf(t, m)["store1"]
	resolver := "10.201.0.53:53"
	if want := overlay.ResolverAddrs([]netip.Prefix{netip.MustParsePrefix("10.201.0.0/16")})[0].String() + ":53"; resolver != want {
		t.Fatalf("the resolver is at %s", want)
	}
	t.Run("names", func(t *testing.T) {
		for _, tt := range []struct{ asker, name, want string }{
			{"retriever1", "store1", "store1"}, {"retriever1", "retriever1", "retriever1"}, {"retriever1", "planner1", ""},
			{"planner1", "retriever1", "retriever1"}, {"planner1", "store1", ""}, {"clerk1", "planner1", "planner1"}, {"clerk1", "store1", ""},
			{"planner1", "nobody", ""},
		} {
			actor := c.actors[tt.asker]
			forward := func() error {
				r, err := actor.Tell(Order{Do: "lookup", Remote: tt.name + ".lab.test.internal", Server: resolver})
				if err != nil {
					return err
				}
				if found := tt.want != "" && slices.Contains(r.Names, c.agents[tt.want].Addresses[0].String()); (tt.want != "") != found || found != (r.Error == "") {
					return fmt.Errorf("%s asks for %s: %+v", tt.asker, tt.name, r)
				}
				return nil
			}
			if err := Eventually(t.Context(), patient, forward); err != nil { // the policy may be on its way
				t.Error(err)
			}
			if tt.name == "nobody" {
				continue
			}
			r, err := actor.Tell(Order{Do: "lookup", Remote: c.agents[tt.name].Addresses[0].String(), Server: resolver})
			if err != nil || (tt.want == "") != (r.Error != "") || tt.want != "" && !slices.Contains(r.Names, tt.name+".lab.test.internal.") {
				t.Errorf("%s asks for the address of %s: %+v, %v", tt.asker, tt.name, r, err)
			}
		}
		if r, err := c.stranger.Tell(Order{Do: "lookup", Remote: "store1.lab.test.internal", Server: resolver}); err != nil || r.Error == "" {
			t.Errorf("a stranger asks for store1: %+v, %v", r, err)
		}
	})
	t.Run("whois", func(t *testing.T) { c.checkWhois(t) })
	t.Run("SPIFFE", func(t *testing.T) { c.checkSPIFFE(t) })
}

func (c *crew) checkWhois(t *testing.T) {
	out, err := c.node.Run(t.Context(), "whois", netip.AddrPortFrom(c.agents["store1"].Addresses[1], 5001).String(), "-o", "json")
	if err != nil {
		t.Fatal(err)
	}
	var who api.Whois
	if err := json.Unmarshal(out, &who); err != nil {
		t.Fatal(err)
	}
	if who.Agent != "store1" || who.Host != "h1" || who.ID != "spiffe://lab.test/agent/store1" || !slices.Equal(who.Segments, []string{"stores"}) || who.PolicyVersion == 0 {
		t.Errorf("got %+v", who)
	}
	// An agent asks on the agents' socket.
	socket := strings.TrimSuffix(c.node.Socket(), ".sock") + "-agent.sock"
	for _, tt := range []struct {
		asker, about string
		code         int
	}{{"retriever1", "store1", http.StatusOK}, {"planner1", "store1", http.StatusNotFound}, {"planner1", "planner1", http.StatusOK}} {
		url := "http://local/v1/whois?addr=" + c.agents[tt.about].Addresses[0].String()
		r, err := c.actors[tt.asker].Do(Order{Do: "exec", Command: []string{"curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--unix-socket", socket, url}})
		if err != nil || r.Output != fmt.Sprint(tt.code) {
			t.Errorf("%s asks who %s is: %+v, %v; want %d", tt.asker, tt.about, r, err, tt.code)
		}
		r, err = c.actors[tt.asker].Tell(Order{Do: "exec", Command: []string{c.node.mesh.Binary, "--socket", c.node.Socket(), "whois", c.agents[tt.about].Addresses[0].String()}})
		if err != nil || (r.Error == "") != (tt.code == http.StatusOK) {
			t.Errorf("%s asks by command who %s is: %+v, %v", tt.asker, tt.about, r, err)
		}
	}
	// The daemon's own socket is not for agents, not even for one that is root's.
	r, err := c.actors["retriever1"].Do(Order{Do: "exec", Command: []string{"curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--unix-socket", c.node.Socket(), "http://local/v1/agents"}})
	if err != nil || r.Output != fmt.Sprint(http.StatusForbidden) && r.Output != fmt.Sprint(http.StatusUnauthorized) {
		t.Errorf("an agent of root asks the daemon: %+v, %v", r, err)
	}
	// Nor is the control API.
	control := net.JoinHostPort(c.node.mesh.Hosts[0].Addresses()[0].String(), "7443")
	if r, err := c.actors["retriever1"].Tell(Order{Do: "ask", Network: "tcp", Remote: control}); err != nil || !strings.Contains(r.Error, "not permitted") {
		t.Errorf("an agent connects to the control API: %+v, %v", r, err)
	}
}

func (c *crew) checkSPIFFE(t *testing.T) {
	socket := strings.TrimSuffix(c.node.Socket(), ".sock") + "-spiffe.sock"
	at := netip.AddrPortFrom(c.agents["retriever1"].Addresses[0], 5001).String()
	if _, err := c.actors["retriever1"].Do(Order{Do: "mtls-serve", Local: at, Server: socket}); err != nil {
		t.Fatal(err)
	}
	r, err := c.actors["planner1"].Do(Order{Do: "mtls-ask", Remote: at, Server: socket})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"spiffe://lab.test/agent/planner1", "spiffe://lab.test/agent/retriever1"}; !slices.Equal(r.Names, want) {
		t.Errorf("got %v, want %v", r.Names, want)
	}
	if r, err := c.actors["clerk1"].Do(Order{Do: "jwt", Remote: "store1", Server: socket}); err != nil || !slices.Equal(r.Names, []string{"spiffe://lab.test/agent/clerk1"}) {
		t.Errorf("a token of clerk1: %+v, %v", r, err)
	}
	if r, err := c.stranger.Tell(Order{Do: "jwt", Remote: "store1", Server: socket}); err != nil || r.Error == "" {
		t.Errorf("a stranger gets a token: %+v, %v", r, err)
	}
}
