package daemon

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/bulkhead-mesh/bulkhead/overlay"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

// What Config.Enforcement may be.
const (
	EnforceWhatWorks = "auto"
	EnforceAll       = "required"
)

// AgentConfig declares an agent of this host.
type AgentConfig struct {
	Name   string         `yaml:"name"`
	Labels segment.Labels `yaml:"labels"`
	Match  overlay.Match  `yaml:"match"`
	Run    []string       `yaml:"run"` // users that may `bulkhead run` as this agent, beside root
}

func (c *Config) validateAgents(fault func(key, format string, args ...any)) {
	if c.Enforcement != EnforceWhatWorks && c.Enforcement != EnforceAll {
		fault("enforcement", "%q is unknown (fix: %s or %s)", c.Enforcement, EnforceWhatWorks, EnforceAll)
	}
	if c.CgroupRoot != "" && !filepath.IsAbs(c.CgroupRoot) {
		fault("cgroupRoot", "%q is not absolute (fix: write it like /sys/fs/cgroup)", c.CgroupRoot)
	}
	for i, path := range c.ContainerSockets {
		if !filepath.IsAbs(path) {
			fault(fmt.Sprintf("containerSockets[%d]", i), "%q is no absolute path (fix: write it like /run/podman/podman.sock)", path)
		}
	}
	if _, err := c.upstream(); err != nil {
		fault("dnsUpstream", "%w (fix: write 192.0.2.53 or 192.0.2.53:53)", err)
	}
	for i := range c.Agents {
		c.validateAgent(i, fault)
	}
}

// validateAgent looks at one agent, and at what it has in common with those before it.
func (c *Config) validateAgent(i int, fault func(key, format string, args ...any)) {
	a, at := c.Agents[i], fmt.Sprintf("agents[%d].", i)
	if err := segment.ValidName(a.Name); err != nil {
		fault(at+"name", "%w (fix: write it like retriever)", err)
	}
	if err := segment.ValidLabels(a.Labels); err != nil {
		fault(at+"labels", "%w (fix: write them like {function: retrieval})", err)
	}
	if err := a.Match.Validate(); err != nil {
		field, fix, _ := strings.Cut(err.Error(), ": ") // match, or match.unit
		fault(at+field, "%s", fix)
		return
	}
	for j, user := range a.Run {
		if !overlay.ValidUser(user) {
			fault(fmt.Sprintf("%srun[%d]", at, j), "%.64q is no user (fix: write a name, or a number)", user)
		}
	}
	for _, before := range c.Agents[:i] {
		if before.Name == a.Name {
			fault(at+"name", "%q is declared twice (fix: give one of them another name)", a.Name)
		}
		if before.Name != a.Name && before.Match.SharedWith(a.Match) {
			fault(at+"match", "%s is agent %q already (fix: give one of them another match)", a.Match, before.Name)
		}
	}
}

// upstream are the DNS servers that DNSUpstream names.
func (c *Config) upstream() ([]netip.AddrPort, error) {
	var out []netip.AddrPort
	for i, s := range c.DNSUpstream {
		ap, err := netip.ParseAddrPort(s)
		if err != nil {
			addr, err := netip.ParseAddr(s)
			if err != nil {
				return nil, fmt.Errorf("%q, number %d of the list, is no address of a DNS server", s, i)
			}
			ap = netip.AddrPortFrom(addr, 53)
		}
		out = append(out, ap)
	}
	return out, nil
}
