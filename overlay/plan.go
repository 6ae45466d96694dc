package overlay

import (
	"bytes"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/bulkhead-mesh/bulkhead/overlay/signed"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

// HostPlan is all that a host shall do now. It is a value: two equal states give equal plans.
type HostPlan struct {
	PolicyVersion uint64
	Local         []segment.Agent // this host's, sorted by name
	Addresses     []netip.Addr    // theirs, for the interface
	Tunnel        TunnelConfig
	Firewall      FirewallConfig
	Bindings      BindingConfig
	Rules         *segment.Ruleset
	NextChange    time.Time // when a grant or certificate in the plan ends; zero if none does
}

// Inputs are what a plan follows from. Agents and records are verified and unexpired at Now.
type Inputs struct {
	Host    string
	Local   []AgentState
	Found   map[string]Workload    // where the agents' processes are, by name
	Policy  *signed.VerifiedPolicy // nil: nothing is allowed
	Records map[string]*signed.VerifiedRecord
	Now     time.Time
}

// AgentState is an agent with the time its certificate ends.
type AgentState struct {
	segment.Agent
	Expires time.Time
}

// Planner makes plans. It remembers what it compiled last, so that one changed record costs one
// record's work; the plan is the same as that of a new Planner.
type Planner struct {
	compiler *segment.Compiler
	policy   [32]byte
	agents   map[string]segment.Agent
}

// Plan is the plan for in.
func (p *Planner) Plan(in Inputs) HostPlan {
	agents, nextExpiry := liveAgents(in)
	plan := HostPlan{NextChange: nextExpiry}
	for _, a := range in.Local {
		plan.Local = append(plan.Local, a.Agent)
		plan.Addresses = append(plan.Addresses, a.Addresses...)
	}
	slices.SortFunc(plan.Addresses, netip.Addr.Compare)
	plan.Bindings = bindings(in)
	plan.Firewall.Local = hostFirst(plan.Bindings)
	if in.Policy == nil {
		p.compiler = nil
		return plan
	}
	plan.PolicyVersion = in.Policy.Version
	plan.Rules = p.compile(in, agents)
	plan.NextChange = earlier(plan.NextChange, plan.Rules.NextExpiry)
	plan.Tunnel = tunnelConfig(in, plan.Rules)
	plan.Firewall.Allow = allows(plan.Rules)
	return plan
}

// liveAgents are all agents that certificates vouch for at in.Now, by name, and when the first of them ends.
// Of two hosts that carry one name, the newer certificate counts; of two of one second, the first by name.
func liveAgents(in Inputs) (map[string]segment.Agent, time.Time) {
	agents := make(map[string]segment.Agent, len(in.Records)+len(in.Local))
	issued := make(map[string]time.Time, len(in.Records))
	var next time.Time
	for _, r := range in.Records {
		if r.Host == in.Host {
			continue
		}
		for _, c := range r.AgentCerts {
			if !in.Now.Before(c.NotAfter) || !in.Now.Before(r.HostCert.NotAfter) {
				continue
			}
			next = earlier(next, earlier(c.NotAfter, r.HostCert.NotAfter))
			if seen, ok := issued[c.Name]; ok && (c.Issued.Before(seen) || c.Issued.Equal(seen) && agents[c.Name].Host < r.Host) {
				continue
			}
			issued[c.Name] = c.Issued
			agents[c.Name] = segment.Agent{Name: c.Name, Host: r.Host, Labels: segment.Labels(c.Labels), Addresses: c.Addresses}
		}
	}
	for _, a := range in.Local {
		agents[a.Name] = a.Agent
		next = earlier(next, a.Expires)
	}
	return agents, next
}

func (p *Planner) compile(in Inputs, agents map[string]segment.Agent) *segment.Ruleset {
	if p.compiler == nil || p.policy != in.Policy.Digest {
		p.compiler = segment.NewCompiler(in.Policy.Parsed, in.Host)
		p.policy, p.agents = in.Policy.Digest, nil
	}
	var put []segment.Agent
	var removed []string
	for name, a := range agents {
		if old, ok := p.agents[name]; !ok || !sameAgent(old, a) {
			put = append(put, a)
		}
	}
	for name := range p.agents {
		if _, ok := agents[name]; !ok {
			removed = append(removed, name)
		}
	}
	p.agents = agents
	return p.compiler.Update(put, removed, in.Now)
}

func sameAgent(a, b segment.Agent) bool {
	if a.Host != b.Host || len(a.Labels) != len(b.Labels) || !slices.Equal(a.Addresses, b.Addresses) {
		return false
	}
	for k, v := range a.Labels {
		if b.Labels[k] != v {
			return false
		}
	}
	return true
}

// bindings ties each agent here to its processes. What is the whole host is not guarded: it is the daemon and the system
// that everything runs on, too.
func bindings(in Inputs) BindingConfig {
	var c BindingConfig
	for _, a := range in.Local {
		b := Binding{Agent: a.Name, Addresses: a.Addresses, Workload: in.Found[a.Name]}
		if in.Policy != nil && !b.Host {
			egress := in.Policy.Parsed.EgressOf(a.Agent)
			b.Guarded, b.Egress = egress.Guarded, egressAllows(egress.Rules)
		}
		c.Agents = append(c.Agents, b)
	}
	return c
}

// hostFirst are the agents' addresses, those of the one that is the whole host first: where programs cannot be told apart,
// the kernel takes the first as the source of what leaves.
func hostFirst(c BindingConfig) []netip.Addr {
	var first, rest []netip.Addr
	for _, b := range c.Agents {
		if b.Host {
			first = append(first, b.Addresses...)
		} else {
			rest = append(rest, b.Addresses...)
		}
	}
	slices.SortFunc(rest, netip.Addr.Compare)
	return append(first, rest...)
}

// tunnelConfig has a peer for each other host with an approved pair, allowed to use just those agents' addresses.
func tunnelConfig(in Inputs, rules *segment.Ruleset) TunnelConfig {
	allowed := make(map[string][]netip.Addr)
	for _, pair := range rules.Pairs {
		if pair.Remote.Host != in.Host {
			allowed[pair.Remote.Host] = append(allowed[pair.Remote.Host], pair.Remote.Addresses...)
		}
	}
	config := TunnelConfig{Peers: make([]TunnelPeer, 0, len(allowed))}
	for host, ips := range allowed {
		record := in.Records[host]
		if record == nil {
			continue
		}
		slices.SortFunc(ips, netip.Addr.Compare)
		config.Peers = append(config.Peers, TunnelPeer{
			Host:       host,
			PublicKey:  record.WireGuard,
			AllowedIPs: slices.Compact(ips),
			Endpoints:  record.Endpoints,
		})
	}
	slices.SortFunc(config.Peers, func(a, b TunnelPeer) int { return strings.Compare(a.Host, b.Host) })
	return dropSharedKeys(config, in.Records[in.Host])
}

// dropSharedKeys leaves out every peer whose WireGuard key another peer, or this host, also has: which of them
// the tunnel would reach is open, so neither is. The authority certifies no key twice; this is in case it did.
func dropSharedKeys(c TunnelConfig, own *signed.VerifiedRecord) TunnelConfig {
	count := make(map[[32]byte]int, len(c.Peers)+1)
	if own != nil {
		count[own.WireGuard]++
	}
	for _, p := range c.Peers {
		count[p.PublicKey]++
	}
	c.Peers = slices.DeleteFunc(c.Peers, func(p TunnelPeer) bool { return count[p.PublicKey] > 1 })
	return c
}

// allows turns the pairs into address-level grants, one family at a time.
func allows(rules *segment.Ruleset) []Allow {
	var out []Allow
	for _, pair := range rules.Pairs {
		for _, local := range pair.Local.Addresses {
			for _, remote := range pair.Remote.Addresses {
				if local.Is4() != remote.Is4() {
					continue
				}
				out = appendGrants(out, In, remote, local, pair.In)
				out = appendGrants(out, Out, remote, local, pair.Out)
			}
		}
	}
	return out
}

func appendGrants(out []Allow, d Direction, remote, local netip.Addr, grants []segment.Grant) []Allow {
	for _, g := range grants {
		out = append(out, Allow{
			Direction: d, Remote: remote, Local: local,
			Proto: uint8(g.Ports.Proto), First: g.Ports.First, Last: g.Ports.Last, Until: g.Until,
		})
	}
	return out
}

// earlier is the earlier of two times, where zero means never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || (!b.IsZero() && b.Before(a)) {
		return b
	}
	return a
}

// Equal reports whether two configurations name the same peers in the same way.
func (c TunnelConfig) Equal(d TunnelConfig) bool {
	return slices.EqualFunc(c.Peers, d.Peers, func(a, b TunnelPeer) bool {
		return a.Host == b.Host && bytes.Equal(a.PublicKey[:], b.PublicKey[:]) &&
			slices.Equal(a.AllowedIPs, b.AllowedIPs) && slices.Equal(a.Endpoints, b.Endpoints)
	})
}
