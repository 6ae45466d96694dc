package authority_test

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-mesh/bulkhead/control/authority"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity/identitytest"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

func TestEnrollmentIsAllAHostNeeds(t *testing.T) {
	w := newWorld(t)
	w.now = w.now.Add(time.Hour)
	if _, err := w.EnrollLocal("h1", csr(t, identity.KindHost, "h1"), wireguard("h1"), nil); err != nil {
		t.Fatal(err)
	}
	e := w.join("h2", "plan1")
	host := w.mustVerify(e.HostChain, identity.KindHost)
	agent := w.mustVerify(e.Agents[0].Chain, identity.KindAgent)
	if host.Name != "h2" || host.Claims.Control || agent.Name != "plan1" || agent.Claims.Host != "h2" {
		t.Errorf("certificates for %+v and %+v", host, agent)
	}
	if diff := cmp.Diff(map[string]string(grant), map[string]string(agent.Claims.Labels)); diff != "" {
		t.Error(diff)
	}
	if got := host.NotAfter.Sub(w.now); got > 24*time.Hour || got < 23*time.Hour {
		t.Errorf("host certificate lasts %v", got)
	}
	for i, addr := range agent.Addresses {
		if !e.Prefixes[i].Contains(addr) {
			t.Errorf("address %v is outside %v", addr, e.Prefixes[i])
		}
	}
	if e.Prefixes[0] != authority.DefaultRange4 || e.Prefixes[1].Bits() != 48 || e.Prefixes[1].Addr().As16()[0] != 0xfd {
		t.Errorf("prefixes %v", e.Prefixes)
	}
	if diff := cmp.Diff([]string{"h1"}, e.ControlHosts); diff != "" {
		t.Error(diff)
	}
	if e.Mesh != mesh || string(e.Policy) != string(w.Policy().Raw) || len(e.Roots) != 1 {
		t.Errorf("enrollment of %s with %d roots", e.Mesh, len(e.Roots))
	}
	agents, err := w.PolicyAgents()
	if err != nil {
		t.Fatal(err)
	}
	want := []segment.Agent{{Name: "plan1", Host: "h2", Labels: grant, Addresses: agent.Addresses}}
	if diff := cmp.Diff(want, agents, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
}

func TestRefusedEnrolmentsConsumeNothing(t *testing.T) {
	w := newWorld(t)
	w.join("taken", "busy")
	good := w.token(authority.TokenRequest{Grant: grant})
	short := w.token(authority.TokenRequest{Grant: grant, TTL: time.Minute})
	used := w.token(authority.TokenRequest{Grant: grant})
	if _, err := w.Enroll("192.0.2.9:5", w.joining(used, "h8")); err != nil {
		t.Fatal(err)
	}
	gone := w.token(authority.TokenRequest{Grant: grant})
	if err := w.RevokeToken(admin, gone.ID); err != nil {
		t.Fatal(err)
	}
	api := w.token(authority.TokenRequest{Role: authority.RoleAdmin})
	w.now = w.now.Add(2 * time.Minute)
	flipped := good
	flipped.Secret = append([]byte{good.Secret[0] ^ 1}, good.Secret[1:]...)
	before := w.dump()
	for name, c := range map[string]struct {
		token authority.Token
		edit  func(*authority.EnrollRequest)
		code  authority.Code
	}{
		"expired":         {token: short, code: authority.CodeTokenExpired},
		"used up":         {token: used, code: authority.CodeTokenUsed},
		"revoked":         {token: gone, code: authority.CodeTokenUnknown},
		"unknown":         {token: authority.Token{ID: "0123456789abcdef", Secret: good.Secret}, code: authority.CodeTokenUnknown},
		"no secret":       {token: authority.Token{ID: good.ID}, code: authority.CodeTokenUnknown},
		"wrong secret":    {token: flipped, code: authority.CodeTokenUnknown},
		"API token":       {token: api, code: authority.CodeDenied},
		"host taken":      {edit: func(r *authority.EnrollRequest) { *r = w.joining(good, "taken", "a9") }, code: authority.CodeNameTaken},
		"agent taken":     {edit: func(r *authority.EnrollRequest) { *r = w.joining(good, "h9", "free", "busy") }, code: authority.CodeNameTaken},
		"agent twice":     {edit: func(r *authority.EnrollRequest) { r.Agents = append(r.Agents, r.Agents[0]) }, code: authority.CodeInvalid},
		"bad host name":   {edit: func(r *authority.EnrollRequest) { r.Host = "../h9" }, code: authority.CodeInvalid},
		"other value":     {edit: func(r *authority.EnrollRequest) { r.Agents[0].Labels = segment.Labels{"sensitivity": "restricted"} }, code: authority.CodeLabelOutsideGrant},
		"other key":       {edit: func(r *authority.EnrollRequest) { r.Agents[0].Labels = segment.Labels{"team": "x"} }, code: authority.CodeLabelOutsideGrant},
		"unknown level":   {edit: func(r *authority.EnrollRequest) { r.Agents[0].Labels = segment.Labels{"sensitivity": "cosmic"} }, code: authority.CodeInvalid},
		"clock ahead":     {edit: func(r *authority.EnrollRequest) { r.Time = w.now.Add(3 * time.Minute) }, code: authority.CodeClockSkew},
		"clock behind":    {edit: func(r *authority.EnrollRequest) { r.Time = w.now.Add(-3 * time.Minute) }, code: authority.CodeClockSkew},
		"no clock":        {edit: func(r *authority.EnrollRequest) { r.Time = time.Time{} }, code: authority.CodeClockSkew},
		"no CSR":          {edit: func(r *authority.EnrollRequest) { r.HostCSR = nil }, code: authority.CodeInvalid},
		"CSR of another":  {edit: func(r *authority.EnrollRequest) { r.HostCSR = csr(t, identity.KindHost, "h7") }, code: authority.CodeInvalid},
		"CSR of a policy": {edit: func(r *authority.EnrollRequest) { r.HostCSR = csr(t, identity.KindPolicy, "h9") }, code: authority.CodeInvalid},
		"agent's CSR":     {edit: func(r *authority.EnrollRequest) { r.Agents[0].CSR = csr(t, identity.KindAgent, "busy") }, code: authority.CodeInvalid},
		"key taken":       {edit: func(r *authority.EnrollRequest) { r.WireGuard = wireguard("taken") }, code: authority.CodeExists},
		"no key":          {edit: func(r *authority.EnrollRequest) { r.WireGuard = nil }, code: authority.CodeInvalid},
		"key of zeros":    {edit: func(r *authority.EnrollRequest) { r.WireGuard = make([]byte, 32) }, code: authority.CodeInvalid},
		"short key":       {edit: func(r *authority.EnrollRequest) { r.WireGuard = r.WireGuard[:31] }, code: authority.CodeInvalid},
		"long key":        {edit: func(r *authority.EnrollRequest) { r.WireGuard = append(r.WireGuard, 0) }, code: authority.CodeInvalid},
		"foreign mesh CSR": {edit: func(r *authority.EnrollRequest) {
			r.HostCSR = csrOf(t, identity.ID{Mesh: "other.test", Kind: identity.KindHost, Name: "h9"})
		}, code: authority.CodeInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			if c.token.ID == "" {
				c.token = good
			}
			r := w.joining(c.token, "h9", "a9")
			if c.edit != nil {
				c.edit(&r)
			}
			_, err := w.Enroll("192.0.2.66:1", r)
			wantCode(t, err, c.code)
			if diff := cmp.Diff(before, w.dump()); diff != "" {
				t.Errorf("a refused enrolment changed the registry: %s", diff)
			}
			host := r.Host
			if segment.ValidName(host) != nil { // the audit record is no place for what strangers say
				host = "(not a name)"
			}
			if got, want := w.audited(1)[0], fmt.Sprintf("token/%s 192.0.2.66:1 enroll host/%s %s", r.TokenID, host, c.code); got != want {
				t.Errorf("audited %q, want %q", got, want)
			}
			w.now = w.now.Add(time.Second) // refusals of strangers are recorded once a second in the long run
		})
	}
	if _, err := w.Enroll("192.0.2.9:5", w.joining(good, "h9", "a9")); err != nil {
		t.Errorf("the token is not as good as it was: %v", err)
	}
}

// A token for one host, raced by a thousand, lets exactly one in.
func TestOneUseOfATokenIsOneEvenWhenRaced(t *testing.T) {
	w := newWorld(t)
	token := w.token(authority.TokenRequest{Grant: grant})
	const racers = 1000
	requests := make([]authority.EnrollRequest, racers)
	for i := range requests {
		requests[i] = w.joining(token, fmt.Sprintf("h%d", i), fmt.Sprintf("a%d", i))
	}
	errs := make([]error, racers)
	begin := make(chan struct{})
	var wg sync.WaitGroup
	for i := range racers {
		wg.Go(func() {
			<-begin
			_, errs[i] = w.Enroll("192.0.2.9:5", requests[i])
		})
	}
	close(begin)
	wg.Wait()
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
			continue
		}
		wantCode(t, err, authority.CodeTokenUsed)
	}
	hosts, err := w.Hosts()
	if won != 1 || len(hosts) != 1 || err != nil {
		t.Errorf("%d enrolments succeeded, %d hosts are registered: %v", won, len(hosts), err)
	}
}

// Of hosts that race for one WireGuard key, under names and with tokens of their own, one gets it.
func TestOneWireGuardKeyIsOneHostsEvenWhenRaced(t *testing.T) {
	w := newWorld(t)
	requests := make([]authority.EnrollRequest, 20)
	for i := range requests {
		requests[i] = w.joining(w.token(authority.TokenRequest{}), fmt.Sprintf("h%d", i))
		requests[i].WireGuard = wireguard("one")
	}
	errs := make([]error, len(requests))
	begin := make(chan struct{})
	var wg sync.WaitGroup
	for i := range requests {
		wg.Go(func() {
			<-begin
			_, errs[i] = w.Enroll("192.0.2.9:5", requests[i])
		})
	}
	close(begin)
	wg.Wait()
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
			continue
		}
		wantCode(t, err, authority.CodeExists)
		if refusal, ok := errors.AsType[*authority.Error](err); !ok || refusal.Field != "wireguard" || refusal.Fix == "" {
			t.Errorf("the refusal %+v does not name the field and the fix", err)
		}
	}
	if won != 1 {
		t.Errorf("%d hosts have one WireGuard key", won)
	}
}

// A host keeps its WireGuard key as long as it is in the mesh; after its revocation another may have it.
func TestAWireGuardKeyIsOneHostsUntilItIsRevoked(t *testing.T) {
	w := newWorld(t)
	host := w.mustVerify(w.join("h2").HostChain, identity.KindHost)
	w.reopen()
	renewed, err := w.Renew(host, w.renewing("h2"))
	if err != nil {
		t.Fatal(err)
	}
	for _, cert := range []*identity.Certificate{host, w.mustVerify(renewed.HostChain, identity.KindHost)} {
		if cert.WireGuard != identitytest.WireGuard("h2") {
			t.Errorf("the certificate names the WireGuard key %x", cert.WireGuard)
		}
	}
	thief := func() error {
		r := w.joining(w.token(authority.TokenRequest{}), "h3")
		r.WireGuard = wireguard("h2")
		_, err := w.Enroll("192.0.2.66:1", r)
		return err
	}
	wantCode(t, thief(), authority.CodeExists)
	if _, err := w.RevokeHost(admin, "h2", ""); err != nil {
		t.Fatal(err)
	}
	if err := thief(); err != nil {
		t.Errorf("the key of a revoked host is refused: %v", err)
	}
}

func TestATokenIsGoodForItsUses(t *testing.T) {
	w := newWorld(t)
	token := w.token(authority.TokenRequest{Uses: 2, Control: true})
	for _, host := range []string{"c1", "c2"} {
		e, err := w.Enroll("", w.joining(token, host))
		if err != nil {
			t.Fatal(err)
		}
		if !w.mustVerify(e.HostChain, identity.KindHost).Claims.Control {
			t.Errorf("%s is no control host", host)
		}
	}
	_, err := w.Enroll("", w.joining(token, "c3"))
	wantCode(t, err, authority.CodeTokenUsed)
}

func TestAddressesAreNotReused(t *testing.T) {
	w := newWorld(t)
	seen := map[netip.Addr]string{}
	for i := range 5 {
		host := fmt.Sprintf("h%d", i+2)
		var names []string
		for j := range 60 {
			names = append(names, fmt.Sprintf("a%d-%d", i, j))
		}
		e := w.join(host, names...)
		for _, a := range e.Agents {
			for _, addr := range w.mustVerify(a.Chain, identity.KindAgent).Addresses {
				if other := seen[addr]; other != "" {
					t.Fatalf("%s and %s share %v", a.Name, other, addr)
				}
				seen[addr] = a.Name
				if last := addr.As16()[15]; addr.Is4() && (last == 0 || last == 255) {
					t.Errorf("%s has %v", a.Name, addr)
				}
			}
		}
		if _, err := w.RevokeHost(admin, host, "test"); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAddressesWrapToFreeOnes(t *testing.T) {
	w := newWorldIn(t, netip.MustParsePrefix("10.9.8.0/24"))
	stay := w.mustVerify(w.join("stay", "stay").Agents[0].Chain, identity.KindAgent).Addresses[0]
	for i := range 5 { // 300 agents through a range of 254
		host := fmt.Sprintf("h%d", i)
		var names []string
		for j := range 60 {
			names = append(names, fmt.Sprintf("a%d-%d", i, j))
		}
		for _, a := range w.join(host, names...).Agents {
			if w.mustVerify(a.Chain, identity.KindAgent).Addresses[0] == stay {
				t.Fatalf("%s has the address of a living agent", a.Name)
			}
		}
		if _, err := w.RevokeHost(admin, host, "test"); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	for i := 0; err == nil && i < 10; i++ {
		var names []string
		for j := range 60 {
			names = append(names, fmt.Sprintf("b%d-%d", i, j))
		}
		_, err = w.Enroll("", w.joining(w.token(authority.TokenRequest{Grant: grant}), fmt.Sprintf("g%d", i), names...))
	}
	wantCode(t, err, authority.CodeExhausted)
}

func TestRenewalTakesLabelsAndAddressesFromTheRegistry(t *testing.T) {
	w := newWorld(t)
	e := w.join("h2", "a1", "a2")
	w.join("h3", "a3")
	host := w.mustVerify(e.HostChain, identity.KindHost)
	old := w.mustVerify(e.Agents[0].Chain, identity.KindAgent)
	w.now = w.now.Add(16 * time.Hour)
	r := w.renewing("h2", "a1")
	r.Agents[0].Labels = segment.Labels{"sensitivity": "restricted"}
	renewed, err := w.Renew(host, r)
	if err != nil {
		t.Fatal(err)
	}
	agent := w.mustVerify(renewed.Agents[0].Chain, identity.KindAgent)
	if diff := cmp.Diff(old.Claims.Labels, agent.Claims.Labels); diff != "" {
		t.Errorf("a host chose its agent's labels: %s", diff)
	}
	if fmt.Sprint(agent.Addresses) != fmt.Sprint(old.Addresses) || agent.PublicKey.Equal(old.PublicKey) {
		t.Errorf("renewal gave %v and the same key: %v", agent.Addresses, agent.PublicKey.Equal(old.PublicKey))
	}
	if got := w.mustVerify(renewed.HostChain, identity.KindHost).NotAfter.Sub(w.now); got > 24*time.Hour || got < 23*time.Hour {
		t.Errorf("renewed host certificate lasts %v", got)
	}

	_, err = w.Renew(host, w.renewing("h3"))
	wantCode(t, err, authority.CodeInvalid)
	_, err = w.Renew(agent, w.renewing("h2"))
	wantCode(t, err, authority.CodeDenied)
	theirs, err := w.Renew(host, w.renewing("h2", "a1", "a3", "nobody"))
	if err != nil || len(theirs.Agents) != 1 || theirs.Agents[0].Name != "a1" {
		t.Errorf("h2 asked for h3's agent, and nobody's, and got %+v, %v", theirs, err)
	}
}

func TestRevokedAgentsAreLeftOutOfRenewals(t *testing.T) {
	w := newWorld(t)
	e := w.join("h2", "a1", "a2")
	host := w.mustVerify(e.HostChain, identity.KindHost)
	if _, err := w.RevokeAgent(operator, "a1", "stolen"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.verify(e.Agents[0].Chain, identity.KindAgent); !errors.Is(err, identity.ErrRevoked) {
		t.Errorf("the certificate of a revoked agent: %v", err)
	}
	w.mustVerify(e.Agents[1].Chain, identity.KindAgent)
	renewed, err := w.Renew(host, w.renewing("h2", "a1", "a2"))
	if err != nil || len(renewed.Agents) != 1 || renewed.Agents[0].Name != "a2" {
		t.Fatalf("renewal after a revocation: %+v, %v", renewed, err)
	}
	// The name may be taken by another host; what was void stays void, what is new is good.
	again := w.join("h3", "a1")
	w.mustVerify(again.Agents[0].Chain, identity.KindAgent)
	if _, err := w.verify(e.Agents[0].Chain, identity.KindAgent); err == nil {
		t.Error("the old certificate came back with the name")
	}
}

func TestRevokedHostsGetNothing(t *testing.T) {
	w := newWorld(t)
	e := w.join("h2", "a1")
	host := w.mustVerify(e.HostChain, identity.KindHost)
	change, err := w.RevokeHost(admin, "h2", "lost")
	if err != nil || change.Version != 2 {
		t.Fatalf("%+v, %v", change, err)
	}
	if _, err := w.verify(e.HostChain, identity.KindHost); !errors.Is(err, identity.ErrRevoked) {
		t.Errorf("the certificate of a revoked host: %v", err)
	}
	if _, err := w.verify(e.Agents[0].Chain, identity.KindAgent); !errors.Is(err, identity.ErrRevoked) {
		t.Errorf("the certificate of a revoked host's agent: %v", err)
	}
	_, err = w.Renew(host, w.renewing("h2", "a1"))
	wantCode(t, err, authority.CodeRevoked)
	_, err = w.Enroll("", w.joining(w.token(authority.TokenRequest{}), "h2"))
	wantCode(t, err, authority.CodeNameTaken)
	if again, err := w.RevokeHost(admin, "h2", "lost"); err != nil || !again.Unchanged || again.Version != 2 {
		t.Errorf("revoked twice: %+v, %v", again, err)
	}
	hosts, err := w.Hosts()
	if err != nil || len(hosts) != 1 || hosts[0].Revoked == nil || len(hosts[0].Agents) != 0 {
		t.Errorf("hosts %+v, %v", hosts, err)
	}
	all, err := w.Agents()
	if err != nil || len(all) != 1 || all[0].Revoked == nil || all[0].Host != "h2" {
		t.Errorf("agents %+v, %v", all, err)
	}
	if agents, err := w.PolicyAgents(); err != nil || len(agents) != 0 {
		t.Errorf("agents of a revoked host: %v, %v", agents, err)
	}
	_, err = w.RevokeHost(admin, "h5", "")
	wantCode(t, err, authority.CodeNotFound)
}

func TestTheLastControlHostStays(t *testing.T) {
	w := newWorld(t)
	if _, err := w.EnrollLocal("h1", csr(t, identity.KindHost, "h1"), wireguard("h1"), nil); err != nil {
		t.Fatal(err)
	}
	_, err := w.RevokeHost(admin, "h1", "")
	wantCode(t, err, authority.CodeInvalid)
	if _, err := w.Enroll("", w.joining(w.token(authority.TokenRequest{Control: true}), "h2")); err != nil {
		t.Fatal(err)
	}
	if _, err := w.RevokeHost(admin, "h1", ""); err != nil {
		t.Error(err)
	}
}
