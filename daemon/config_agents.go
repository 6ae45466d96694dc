package daemon

import (
	"net/netip"
	"path/filepath"

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
			fault("containerSockets", "[%d]: %q is no absolute path of a Unix socket", i, path)
		}
	}
	if _, err := c.upstream(); err != nil {
		fault("dnsUpstream", "%w (fix: write 192.0.2.53 or 192.0.2.53:53)", err)
	}
	names := map[string]bool{}
	hosts := 0
	for i, a := range c.Agents {
		at := func(format string, args ...any) { fault("agents", "[%d]: "+format, append([]any{i}, args...)...) }
		if err := segment.ValidName(a.Name); err != nil {
			at("name: %w", err)
		}
		if names[a.Name] {
			at("name: %q is declared twice", a.Name)
		}
		names[a.Name] = true
		if err := segment.ValidLabels(a.Labels); err != nil {
			at("labels: %w", err)
		}
		if err := a.Match.Validate(); err != nil {
			at("%w", err)
		}
		if a.Match.Host {
			hosts++
		}
	}
	if hosts > 1 {
		fault("agents", "%d of them are {host: true}, and what nobody else claims can be one agent's only", hosts)
	}
}

// upstream are the DNS servers that DNSUpstream names.
func (c *Config) upstream() ([]netip.AddrPort, error) {
	var out []netip.AddrPort
	for _, s := range c.DNSUpstream {
		ap, err := netip.ParseAddrPort(s)
		if err != nil {
			addr, err := netip.ParseAddr(s)
			if err != nil {
				return nil, err
			}
			ap = netip.AddrPortFrom(addr, 53)
		}
		out = append(out, ap)
	}
	return out, nil
}
