package overlay_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bulkhead-mesh/bulkhead/overlay"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity/identitytest"
	"github.com/bulkhead-mesh/bulkhead/overlay/overlaytest"
	"github.com/bulkhead-mesh/bulkhead/overlay/signed"
)

const meshName = "lab.test"

// soon is longer than any news takes on a network that loses nothing.
const soon = 100 * time.Millisecond

const readsDocument = `
segments:
  - {name: readers, match: {function: read}}
  - {name: stores, match: {function: store}}
rules:
  - {name: reads, from: readers, to: stores, allow: [tcp/5432], crosses: "a test"%s}
`

const denyDocument = "segments: []\nrules: []\n"

// world is a mesh in memory: h1 has the control role, h2 carries the agent reader, h3 the agent store. It runs on
// the clock of a synctest bubble.
type world struct {
	t       *testing.T
	ca      *identitytest.CA
	signer  identitytest.Credential
	net     *overlaytest.Network
	members map[string]*member
	newest  *signed.VerifiedPolicy
}

// member is one host with doubles of what it acts through.
type member struct {
	*overlay.Mesh
	name  string
	self  overlay.Self
	store *overlaytest.Store
	stop  func()

	mu       sync.Mutex
	firewall overlay.FirewallConfig
	bindings overlay.BindingConfig
	tunnel   overlay.TunnelConfig
	fault    error    // what Apply of the firewall returns
	log      []string // in which order things were done
}

func (m *member) did(what string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.log = append(m.log, what)
}

type fakeFirewall struct{ *member }

func (f fakeFirewall) Apply(_ context.Context, c overlay.FirewallConfig) error {
	f.did(fmt.Sprintf("firewall %d", len(c.Allow)))
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fault == nil {
		f.member.firewall = c
	}
	return f.fault
}

type fakeBinder struct{ *member }

func (f fakeBinder) Apply(_ context.Context, c overlay.BindingConfig) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.member.bindings = c
	return nil
}

type fakeTunnel struct{ *member }

func (f fakeTunnel) Apply(_ context.Context, c overlay.TunnelConfig) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.member.tunnel = c
	return nil
}

func (fakeTunnel) Peers(context.Context) ([]overlay.PeerStatus, error) { return nil, nil }

// fakeGossip believes everyone alive and spreads nothing.
type fakeGossip struct {
	*member
	others []string
}

func (fakeGossip) Announce(overlay.Hint) {}
func (fakeGossip) Learned(string)        {}
func (g fakeGossip) Forget(host string)  { g.did("forget " + host) }
func (g fakeGossip) Alive() []string     { return g.others }
func (fakeGossip) Join([]string)         {}

func inWorld(t *testing.T, test func(t *testing.T, w *world)) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, ca: identitytest.NewAt(t, meshName, time.Now()), net: overlaytest.NewNetwork(), members: map[string]*member{}}
		w.signer = w.ca.Signer()
		defer func() {
			for _, m := range w.members {
				m.stop()
			}
			w.net.Close()
		}()
		w.enrol("h1", "", nil)
		w.enrol("h2", "reader", map[string]string{"function": "read"})
		w.enrol("h3", "store", map[string]string{"function": "store"})
		w.submit(w.policy(fmt.Sprintf(readsDocument, "")))
		w.introduce()
		test(t, w)
	})
}

// enrol gives a host its certificates and starts it.
func (w *world) enrol(name, agent string, labels map[string]string) {
	host := w.ca.Host(name)
	if agent == "" {
		host = w.ca.Control(name)
	}
	m := &member{name: name, store: &overlaytest.Store{}, self: overlay.Self{Key: host.Key, Record: signed.Record{
		Certificate: host.Chain, WireGuard: identitytest.WireGuard(name),
		Endpoints: []netip.AddrPort{netip.MustParseAddrPort("192.0.2." + name[1:] + ":51900")},
	}}}
	if agent != "" {
		chain := w.ca.Agent(agent, name, labels, netip.MustParseAddr("10.201.0."+name[1:])).Chain
		m.self.Record.Agents = []signed.AgentEntry{{Name: agent, Certificate: chain}}
	}
	w.members[name] = m
	w.start(m)
}

// start runs a member out of its store.
func (w *world) start(m *member) {
	w.t.Helper()
	mesh, err := overlay.New(overlay.Options{
		Mesh: meshName, Host: m.name, Roots: w.ca.Trust().Roots, Self: m.self, Store: m.store, Now: time.Now, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	m.Mesh = mesh
	node := w.net.Node(m.name)
	node.OnDatagram(overlay.KindHint, func(from string, payload []byte) {
		if h, err := overlay.ParseHint(payload); err == nil {
			mesh.Hint(from, h)
		}
	})
	node.OnStream(overlay.KindPull, mesh.ServePull)
	others := slices.DeleteFunc([]string{"h1", "h2", "h3"}, func(name string) bool { return name == m.name })
	ctx, cancel := context.WithCancel(w.t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := mesh.Run(ctx, overlay.Drivers{
			Tunnel: fakeTunnel{m}, Firewall: fakeFirewall{m}, Binder: fakeBinder{m}, Network: node, Gossip: fakeGossip{m, others}, Void: func() { m.did("void") },
		}); err != nil {
			w.t.Error(err)
		}
	})
	m.stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
	})
	synctest.Wait()
}

// introduce connects all hosts.
func (w *world) introduce() {
	for name, m := range w.members {
		for other := range w.members {
			if other != name {
				m.Connected(other)
			}
		}
	}
	w.pass(soon)
}

func (w *world) pass(d time.Duration) {
	<-time.After(d) // of the bubble's clock
	synctest.Wait()
}

// policy signs the successor of the newest.
func (w *world) policy(document string, revocations ...identity.Revocation) *signed.VerifiedPolicy {
	w.t.Helper()
	p := signed.Policy{Mesh: meshName, Version: 1, Issued: time.Now(), Author: "operator/ann", Document: document, Revocations: revocations}
	if w.newest != nil {
		p.Version, p.Parent = w.newest.Version+1, w.newest.Digest
	}
	return w.sign(p)
}

func (w *world) sign(p signed.Policy) *signed.VerifiedPolicy {
	w.t.Helper()
	raw, err := signed.SignPolicy(p, w.signer.Key, w.signer.Chain)
	if err != nil {
		w.t.Fatal(err)
	}
	v, err := signed.OpenPolicy(raw, w.ca.Trust(), time.Now())
	if err != nil {
		w.t.Fatal(err)
	}
	return v
}

// submit hands a policy to the control host.
func (w *world) submit(p *signed.VerifiedPolicy) {
	w.t.Helper()
	w.newest = p
	if err := w.members["h1"].SubmitPolicy(p.Raw); err != nil {
		w.t.Fatal(err)
	}
}

// enforced is the policy version that each host says is in its kernel.
func (w *world) enforced() map[string]uint64 {
	versions := map[string]uint64{}
	for name, m := range w.members {
		versions[name] = m.Snapshot().Enforced
	}
	return versions
}

func (w *world) wantEnforced(version uint64) {
	w.t.Helper()
	if got, want := w.enforced(), map[string]uint64{"h1": version, "h2": version, "h3": version}; !maps.Equal(got, want) {
		w.t.Errorf("enforced are %v, want %v", got, want)
	}
}

// grants is how many flows a host's kernel lets pass, and peers how many tunnels it has.
func (m *member) grants() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.firewall.Allow)
}

func (m *member) peers() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.tunnel.Peers)
}

func TestPolicyReachesEveryHost(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.wantEnforced(1)
		for name, want := range map[string]int{"h1": 0, "h2": 1, "h3": 1} {
			m := w.members[name]
			if m.grants() != want || m.peers() != want || !m.Known("h2") {
				t.Errorf("%s has %d grants and %d peers, want %d of each", name, m.grants(), m.peers(), want)
			}
		}
		w.submit(w.policy(denyDocument))
		w.pass(soon)
		w.wantEnforced(2)
		if w.members["h2"].grants()+w.members["h3"].grants() != 0 {
			t.Error("a withdrawn rule is still enforced")
		}
	})
}

func TestLostNewsIsToldAgain(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		lost := 0
		w.net.Drop(func(from, _ string, kind overlay.Kind, _ []byte) bool {
			drop := from == "h1" && kind == overlay.KindHint && lost < 5
			if drop {
				lost++
			}
			return drop
		})
		w.submit(w.policy(denyDocument))
		w.pass(time.Second)
		w.wantEnforced(2)
		if lost != 5 {
			t.Errorf("%d messages were lost, so nothing is shown", lost)
		}
	})
}

// What a host says itself counts more than what others say of it, which may be old or a lie.
func TestRumoursDoNotReplaceWhatAHostSaid(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		control := w.members["h1"]
		said := control.Snapshot().Hints["h2"]
		if said.Enforced != 1 {
			t.Fatalf("h2 said %+v", said)
		}
		lie := said
		lie.Enforced = 9
		control.Rumour("h2", lie)
		synctest.Wait()
		if got := control.Snapshot().Hints["h2"]; got != said {
			t.Errorf("control believes %+v", got)
		}
	})
}

func TestLostReportIsAskedForAgain(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		lost := 0
		w.net.Drop(func(from, to string, kind overlay.Kind, _ []byte) bool {
			drop := from == "h2" && to == "h1" && kind == overlay.KindHint && lost < 3
			if drop {
				lost++
			}
			return drop
		})
		w.submit(w.policy(denyDocument))
		w.pass(time.Second)
		if got := w.members["h1"].Snapshot().Hints["h2"].Enforced; got != 2 || lost != 3 {
			t.Errorf("control believes that h2 enforces %d, after %d lost reports", got, lost)
		}
	})
}

func TestFailedStoreKeepsThePolicy(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		reader := w.members["h2"]
		noSpace := errors.New("no space left on device")
		var full atomic.Bool
		full.Store(true)
		reader.stop()
		reader.store.OnCommit = func() (bool, error) {
			if full.Load() {
				return false, noSpace
			}
			return true, nil
		}
		w.start(reader)
		w.submit(w.policy(denyDocument))
		w.pass(soon)
		if s := reader.Snapshot(); s.Enforced != 1 || len(s.Problems) != 1 || !strings.Contains(s.Problems[0], noSpace.Error()) {
			t.Errorf("enforces %d, problems %q", s.Enforced, s.Problems)
		}
		reader.stop()
		w.start(reader)
		if got := reader.Snapshot().Enforced; got != 1 {
			t.Errorf("after the restart it enforces %d", got)
		}
		w.introduce()
		full.Store(false)
		w.pass(3 * time.Second) // without news or connections
		w.wantEnforced(2)
		if p := reader.Snapshot().Problems; len(p) != 0 {
			t.Errorf("problems %q remain", p)
		}
	})
}

func TestFailedFirewallIsTriedAgain(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		reader := w.members["h2"]
		reader.mu.Lock()
		reader.fault = errors.New("ipset: kernel error")
		reader.mu.Unlock()
		w.submit(w.policy(denyDocument))
		w.pass(soon)
		if s := reader.Snapshot(); s.Enforced != 1 || len(s.Problems) != 1 {
			t.Errorf("it says that it enforces %d, with problems %q", s.Enforced, s.Problems)
		}
		reader.mu.Lock()
		reader.fault = nil
		reader.mu.Unlock()
		w.pass(2 * time.Second)
		w.wantEnforced(2)
	})
}

func TestRestartEnforcesWithoutTheNetwork(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		store := w.members["h3"]
		store.stop()
		w.net.Partition([]string{"h3"}, []string{"h1", "h2"})
		store.firewall, store.tunnel = overlay.FirewallConfig{}, overlay.TunnelConfig{}
		w.start(store)
		if s := store.Snapshot(); s.Enforced != 1 || store.grants() != 1 || store.peers() != 1 || !store.Known("h2") {
			t.Errorf("enforces %d with %d grants and %d peers", s.Enforced, store.grants(), store.peers())
		}
		w.submit(w.policy(denyDocument))
		w.pass(time.Minute)
		if got := store.Snapshot().Enforced; got != 1 {
			t.Errorf("a host that is cut off enforces %d", got)
		}
		w.net.Heal()
		w.pass(time.Minute) // anti-entropy alone: nobody reconnects here
		w.wantEnforced(2)
	})
}

func TestGrantsEndByThemselves(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		end := time.Now().Add(time.Minute).Truncate(time.Second)
		w.submit(w.policy(fmt.Sprintf(readsDocument, ", until: "+end.UTC().Format(time.RFC3339))))
		w.net.Partition([]string{"h1"}, []string{"h2"}, []string{"h3"})
		w.net.Heal()
		w.pass(soon)
		if got := w.members["h2"].grants(); got != 1 {
			t.Fatalf("%d grants before the rule ends", got)
		}
		w.pass(time.Until(end) + 10*time.Millisecond)
		if a, b := w.members["h2"].grants(), w.members["h3"].grants(); a+b != 0 {
			t.Errorf("%d and %d grants after the rule ended", a, b)
		}
	})
}

func TestExpiredCertificatesEndTheirGrants(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.pass(identitytest.Life + time.Second)
		for name, m := range w.members {
			if m.grants()+m.peers() != 0 || m.Known("h2") && name != "h2" {
				t.Errorf("%s holds on to hosts whose certificates have ended", name)
			}
		}
	})
}

// A host whose state directory was restored from a copy repeats sequence numbers, until it hears itself.
func TestRestoredHostSpeaksLouder(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		reader := w.members["h2"]
		future := w.recordOf("h2", uint64(time.Now().Add(time.Hour).UnixMilli()))
		future.Endpoints = nil
		raw, err := signed.SignRecord(future, reader.self.Key)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.members["h3"].SubmitRecord(raw); err != nil {
			t.Fatal(err)
		}
		w.introduce()
		w.pass(2 * time.Second) // h3 was asked a moment ago
		got := w.members["h3"].Snapshot().Records["h2"]
		if got.Sequence <= future.Sequence || len(got.Endpoints) != 1 {
			t.Errorf("h3 holds sequence %d with endpoints %v", got.Sequence, got.Endpoints)
		}
	})
}

func TestSeedsGoUnderTheirNames(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		late := w.members["h3"].Snapshot()
		m := &member{name: "h3", store: &overlaytest.Store{}, self: w.members["h3"].self}
		if err := overlay.Seed(m.store, late.Policy.Raw, [][]byte{late.Records["h2"].Raw}); err != nil {
			t.Fatal(err)
		}
		w.members["h3"].stop()
		w.members["h3"] = m
		w.start(m)
		var keys []string
		if err := m.store.View(func(tx overlay.Tx) error {
			return tx.Each("records", func(key string, _ []byte) error {
				keys = append(keys, key)
				return nil
			})
		}); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(keys, []string{"h2", "h3"}) || m.grants() != 1 {
			t.Errorf("stored are %q, %d grants", keys, m.grants())
		}
	})
}
