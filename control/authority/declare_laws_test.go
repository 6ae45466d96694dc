package authority_test

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/bulkhead-mesh/bulkhead/control/authority"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
	"github.com/bulkhead-mesh/bulkhead/overlay/overlaytest"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

// No sequence of declarations, ends, approvals and revocations leaves two believed certificates of one name, or two
// agents with one address, or certifies what no operator approved and no grant has.
func TestDeclarationsKeepTheirLaws(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		w := &world{t: t, store: new(overlaytest.Store), now: start, auditAt: filepath.Join(t.TempDir(), "audit")}
		if _, err := authority.Init(w.store, authority.InitOptions{Mesh: mesh, Host: "h1", Now: w.now}); err != nil {
			t.Fatal(err)
		}
		w.open()
		defer w.Close()
		m := &declarations{w: w, hosts: []*identity.Certificate{w.host("h2"), w.host("h3")}, approved: map[string]bool{}}
		r.Repeat(map[string]func(*rapid.T){
			"declare": m.declare, "withdraw": m.withdraw, "approve": m.approve, "revoke": m.revoke,
			"restart": func(*rapid.T) { w.reopen() }, "": m.check,
		})
	})
}

type declarations struct {
	w        *world
	hosts    []*identity.Certificate
	chains   [][][]byte
	approved map[string]bool // host/name: beyond the grant
}

var (
	someName   = rapid.SampledFrom([]string{"a1", "a2", "a3"})
	someLabels = rapid.SampledFrom([]segment.Labels{nil, grant, beyond})
)

func (m *declarations) declare(r *rapid.T) {
	host, name, labels := rapid.SampledFrom(m.hosts).Draw(r, "host"), someName.Draw(r, "name"), someLabels.Draw(r, "labels")
	m.w.now = m.w.now.Add(time.Duration(rapid.IntRange(0, 3).Draw(r, "seconds")) * time.Second)
	d, err := m.w.Declare(host, declaring(m.w.t, labels, name))
	if err != nil {
		return
	}
	for _, a := range d.Agents {
		m.chains = append(m.chains, a.Chain)
		cert := m.w.mustVerify(a.Chain, identity.KindAgent)
		if cert.Claims.Labels["sensitivity"] == "restricted" && !m.approved[host.Name+"/"+name] {
			r.Fatalf("%s was certified, and nobody approved it", a.Name)
		}
	}
}

func (m *declarations) withdraw(r *rapid.T) {
	host, name := rapid.SampledFrom(m.hosts).Draw(r, "host"), someName.Draw(r, "name")
	m.w.withdraw(host, name)
	delete(m.approved, host.Name+"/"+name)
}

func (m *declarations) approve(r *rapid.T) {
	if info, err := m.w.Approve(operator, someName.Draw(r, "name"), authority.ApproveRequest{}, 0); err == nil {
		m.approved[info.Host+"/"+info.Name] = true
	}
}

func (m *declarations) revoke(r *rapid.T) {
	name := someName.Draw(r, "name")
	if _, err := m.w.RevokeAgent(operator, name, ""); err == nil {
		for _, h := range m.hosts {
			delete(m.approved, h.Name+"/"+name)
		}
	}
}

func (m *declarations) check(r *rapid.T) {
	hostOf, agentOf := map[string]string{}, map[netip.Addr]string{}
	believed := m.chains[:0]
	for _, chain := range m.chains {
		cert, err := m.w.verify(chain, identity.KindAgent)
		if err != nil {
			continue
		}
		believed = append(believed, chain)
		is := cert.Claims.Host + fmt.Sprint(cert.Claims.Labels)
		if other, ok := hostOf[cert.Name]; ok && other != is {
			r.Fatalf("%s is believed to be %s and %s", cert.Name, other, is)
		}
		hostOf[cert.Name] = is
		for _, addr := range cert.Addresses {
			if other, ok := agentOf[addr]; ok && other != cert.Name {
				r.Fatalf("%s and %s have %v", other, cert.Name, addr)
			}
			agentOf[addr] = cert.Name
		}
	}
	m.chains = believed
}
