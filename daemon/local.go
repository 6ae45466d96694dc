package daemon

import (
	"context"
	"encoding/hex"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/bulkhead-mesh/bulkhead/control/api"
	"github.com/bulkhead-mesh/bulkhead/overlay"
	"github.com/bulkhead-mesh/bulkhead/overlay/signed"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

const (
	askKernel = 2 * time.Second
	newcomer  = 10 * time.Second // a host whose record is younger is taken for alive
)

// local answers the API's questions about this host out of what it has verified.
type local struct{ *daemon }

var _ api.Local = local{}

// Status is what this host says about itself now.
func (l local) Status() api.Status {
	s := l.mesh.Snapshot()
	own := l.credentials.get()
	status := api.Status{
		Mesh: own.Mesh, Host: own.Host, Version: l.options.Version,
		PolicyVersion: s.Enforced,
		Agents:        l.agents(s), Peers: l.peers(s),
		Hosts:   api.HostCount{Known: len(s.Records), Alive: len(l.gossip.Alive()) + 1},
		Drops:   l.drops(),
		Refused: l.refused(s), NotEnforced: append([]string{}, l.binder.Limits(s.Plan.Bindings)...),
	}
	phase, reason := l.lifecycle.now()
	status.Phase, status.Reason = string(phase), reason
	if s.Policy != nil {
		status.PolicyDigest = hex.EncodeToString(s.Policy.Digest[:])
		status.PolicyIssued = &s.Policy.Issued
		status.PolicyAge = int64(time.Since(s.Policy.Issued).Seconds())
	}
	if r := s.Records[own.Host]; r != nil {
		status.CertificateExpires = r.HostCert.NotAfter
	}
	if l.authority != nil {
		status.Control = &api.ControlStatus{Listen: l.config.ControlListen, Authority: true, Version: l.authority.Policy().Version}
	}
	return status
}

func (l local) agents(s *overlay.Snapshot) []api.StatusAgent {
	out := []api.StatusAgent{}
	for _, a := range s.Agents() {
		if a.Host != l.credentials.get().Host {
			continue
		}
		agent := api.StatusAgent{Name: a.Name, Addresses: a.Addresses, Labels: a.Labels, Sensitivity: a.Labels[segment.LabelSensitivity], Segments: []string{}}
		agent.Segments = append(agent.Segments, segmentsOf(s, a)...)
		out = append(out, agent)
	}
	return out
}

func (l local) peers(s *overlay.Snapshot) []api.Peer {
	out := []api.Peer{}
	ctx, cancel := context.WithTimeout(context.Background(), askKernel)
	defer cancel()
	peers, err := l.tunnel.Peers(ctx)
	if err != nil {
		l.log.Warn("read peers", "error", err)
	}
	agents := map[string][]string{}
	if s.Plan.Rules != nil {
		for _, p := range s.Plan.Rules.Pairs {
			agents[p.Remote.Host] = append(agents[p.Remote.Host], p.Remote.Name)
		}
	}
	for _, p := range peers {
		names := slices.Clone(agents[p.Host])
		slices.Sort(names)
		peer := api.Peer{Name: p.Host, Path: p.Path, RxBytes: p.RxBytes, TxBytes: p.TxBytes, Agents: slices.Compact(names)}
		if !p.LastHandshake.IsZero() {
			peer.LastHandshake = &p.LastHandshake
		}
		out = append(out, peer)
	}
	slices.SortFunc(out, func(a, b api.Peer) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func (l local) drops() map[string]uint64 {
	ctx, cancel := context.WithTimeout(context.Background(), askKernel)
	defer cancel()
	drops, err := l.firewall.Drops(ctx)
	if err != nil {
		l.log.Warn("read drop counters", "error", err)
		return map[string]uint64{}
	}
	return drops
}

// refused adds what each part refused, under the part's name.
func (l local) refused(s *overlay.Snapshot) map[string]uint64 {
	out := maps.Clone(s.Refused)
	for part, stats := range map[string]map[string]uint64{"gossip": l.gossip.Stats(), "udp": l.tunnel.Stats()} {
		for reason, n := range stats {
			if n > 0 {
				out[part+"-"+reason] = n
			}
		}
	}
	return out
}

// Agents are all that verified records carry.
func (l local) Agents() []segment.Agent { return l.mesh.Snapshot().Agents() }

// Policy is the newest verified policy; nil before the first.
func (l local) Policy() *signed.VerifiedPolicy { return l.mesh.Snapshot().Policy }

// SeedRecords are the signed records that a joining host needs to find the mesh: those of control hosts.
func (l local) SeedRecords() [][]byte {
	var out [][]byte
	for _, r := range l.mesh.Snapshot().Records {
		if r.HostCert.Control {
			out = append(out, r.Raw)
		}
	}
	return out
}

// alive are the hosts to wait for: this one, those that gossip believes alive or that are connected, and those
// that have just come.
func (l local) alive(s *overlay.Snapshot) map[string]bool {
	alive := map[string]bool{l.credentials.get().Host: true}
	for _, host := range l.gossip.Alive() {
		alive[host] = true
	}
	for host := range l.link.Connected() {
		alive[host] = s.Records[host] != nil
	}
	for host, r := range s.Records {
		if age := time.Since(r.Issued); age >= 0 && age < newcomer {
			alive[host] = true
		}
	}
	return alive
}

// Rollout is what hosts say that they enforce.
func (l local) Rollout(version uint64) api.Rollout {
	s := l.mesh.Snapshot()
	own := l.credentials.get().Host
	alive := l.alive(s)
	rollout := api.Rollout{Version: version, Hosts: []api.RolloutHost{}, Done: true}
	for host, r := range s.Records {
		h := api.RolloutHost{Name: host, Enforced: s.Hints[host].Enforced, Alive: alive[host], Control: r.HostCert.Control}
		if host == own {
			h.Enforced = s.Enforced
		}
		if h.Alive && h.Enforced < version {
			rollout.Done = false
		}
		rollout.Hosts = append(rollout.Hosts, h)
	}
	slices.SortFunc(rollout.Hosts, func(a, b api.RolloutHost) int { return strings.Compare(a.Name, b.Name) })
	return rollout
}

// Events gives what happens from now on, until ctx ends.
func (l local) Events(ctx context.Context) <-chan api.Event { return l.events.listen(ctx) }
