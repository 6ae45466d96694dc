package daemon

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/bulkhead-mesh/bulkhead/overlay"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

// directory is what each agent here may know of names. It answers by the plan in force.
type directory struct{ *daemon }

// Asker is the agent whose address a question comes from. This host's own programs, which ask from the resolver's
// address, are the agent that the host is, if it is one.
func (d directory) Asker(addr netip.Addr) (agent string, ok bool) {
	bindings := d.mesh.Snapshot().Plan.Bindings
	for _, b := range bindings.Agents {
		if slices.Contains(b.Addresses, addr) {
			return b.Agent, true
		}
	}
	if slices.Contains(overlay.ResolverAddrs(d.credentials.get().Prefixes), addr) {
		agent = bindings.HostAgent()
	}
	return agent, agent != ""
}

// Reach are the agent itself and those to which it may open something.
func (d directory) Reach(agent string) []segment.Agent {
	s := d.mesh.Snapshot()
	var out []segment.Agent
	for _, a := range s.Plan.Local {
		if a.Name == agent {
			out = append(out, a)
		}
	}
	if s.Plan.Rules == nil {
		return out
	}
	for _, p := range s.Plan.Rules.Pairs {
		if p.Local.Name == agent && len(p.Out) > 0 {
			out = append(out, p.Remote)
		}
	}
	return out
}

// Egress reports whether the agent's egress list names a DNS name.
func (d directory) Egress(agent, name string) bool { return len(d.egressTo(agent, name)) > 0 }

// Private reports whether the agent's egress list names an address by a prefix.
func (d directory) Private(agent string, addr netip.Addr) bool {
	for _, b := range d.mesh.Snapshot().Plan.Bindings.Agents {
		if b.Agent == agent {
			return slices.ContainsFunc(b.Egress, func(a overlay.EgressAllow) bool { return a.Prefix.Contains(addr) && a.Prefix.Bits() > 0 })
		}
	}
	return false
}

// egressTo are the ports that the agent's egress list opens at a DNS name.
func (d directory) egressTo(agent, name string) []segment.Ports {
	s := d.mesh.Snapshot()
	if s.Policy == nil {
		return nil
	}
	var ports []segment.Ports
	for _, a := range s.Plan.Local {
		if a.Name != agent {
			continue
		}
		for _, r := range s.Policy.Parsed.EgressOf(a).Rules {
			if segment.NamesMatch(r.To, name) {
				ports = append(ports, r.Allow...)
			}
		}
	}
	return ports
}

// learn opens what a name was resolved to, for as long as the answer counts, before the agent hears it.
func (d directory) learn(agent, name string, addrs []netip.Addr, ttl time.Duration) error {
	var allow []overlay.EgressAllow
	until := time.Now().Add(ttl)
	ports := d.egressTo(agent, name)
	for _, addr := range addrs {
		for _, a := range overlay.EgressTo(netip.PrefixFrom(addr, addr.BitLen()), ports) {
			a.Until = until
			allow = append(allow, a)
		}
	}
	if err := d.binder.Learn(agent, name, allow); err != nil {
		return err
	}
	if !slices.Equal(ports, d.egressTo(agent, name)) { // the policy changed meanwhile
		return d.binder.Review(d.keeps)
	}
	return nil
}

// keeps reports whether the agent's egress list still opens what a name was resolved to. What an earlier daemon learned
// counts until the policy changes.
func (d directory) keeps(agent, name string, a overlay.EgressAllow) bool {
	if name == "" {
		return d.mesh.Snapshot().Policy == d.firstPolicy
	}
	return slices.ContainsFunc(d.egressTo(agent, name), func(p segment.Ports) bool {
		return uint8(p.Proto) == a.Proto && p.First == a.First && p.Last == a.Last
	})
}

// reviewNames closes what names were resolved to as soon as policy does not name them any more, until ctx ends.
func (d *daemon) reviewNames(ctx context.Context) error {
	for {
		changed := d.mesh.Changed()
		if err := d.binder.Review(directory{d}.keeps); err != nil {
			d.log.Error("close what policy does not name any more", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}
