package overlay

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Match says which processes of a host are an agent: exactly one of its fields is set. What is more specific goes
// first: the innermost cgroup, then the user, then the host.
type Match struct {
	Cgroup    string          `json:"cgroup,omitempty" yaml:"cgroup,omitempty"`       // path below the cgroup v2 root, like /agents/planner
	Unit      string          `json:"unit,omitempty" yaml:"unit,omitempty"`           // systemd unit of the system manager; worker@*.service is every instance
	Container *ContainerMatch `json:"container,omitempty" yaml:"container,omitempty"` // Podman or Docker
	User      string          `json:"user,omitempty" yaml:"user,omitempty"`           // name, or numeric ID
	Run       bool            `json:"run,omitempty" yaml:"run,omitempty"`             // only what `bulkhead run --agent` starts, which is the agent's in any case
	Host      bool            `json:"host,omitempty" yaml:"host,omitempty"`           // everything that no other agent claims
}

// ContainerMatch chooses containers; all fields that are set must fit.
type ContainerMatch struct {
	Name  string `json:"name,omitempty" yaml:"name,omitempty"`
	Label string `json:"label,omitempty" yaml:"label,omitempty"` // key=value
	Image string `json:"image,omitempty" yaml:"image,omitempty"` // as it was named, with or without tag
}

var (
	unitName = regexp.MustCompile(`^[A-Za-z0-9:_.\\-]+(@(\*|[A-Za-z0-9:_.\\-]*))?\.(service|slice|scope)$`)
	userName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]{0,31}\$?$|^[0-9]{1,10}$`)
)

const maxMatchText = 255

// Validate says which field is wrong, and what it may be.
func (m Match) Validate() error {
	set := 0
	for _, is := range []bool{m.Cgroup != "", m.Unit != "", m.Container != nil, m.User != "", m.Run, m.Host} {
		if is {
			set++
		}
	}
	if set != 1 {
		return errors.New("match: give exactly one of cgroup, unit, container, user, run or host (fix: write it like {unit: retriever.service})")
	}
	switch {
	case m.Cgroup != "" && (!path.IsAbs(m.Cgroup) || path.Clean(m.Cgroup) != m.Cgroup || m.Cgroup == "/" || len(m.Cgroup) > 1024 || strings.ContainsAny(m.Cgroup, "\n\x00")):
		return fmt.Errorf("match.cgroup: %.64q is no path below the cgroup root (fix: write it like /agents/planner)", m.Cgroup)
	case m.Unit != "" && (!unitName.MatchString(m.Unit) || len(m.Unit) > maxMatchText || m.Unit == "-.slice"):
		return fmt.Errorf("match.unit: %.64q is no service, slice or scope (fix: write it like retriever.service or worker@*.service)", m.Unit)
	case m.User != "" && !ValidUser(m.User):
		return fmt.Errorf("match.user: %.64q is no user (fix: write a name, or a number)", m.User)
	case m.User == "root" || m.User == "0":
		return errors.New("match.user: root is the host itself, with its daemon (fix: give the agent a user of its own, or match its unit or cgroup)")
	case m.Container != nil:
		return m.Container.validate()
	}
	return nil
}

func (c *ContainerMatch) validate() error {
	if c.Name == "" && c.Label == "" && c.Image == "" {
		return errors.New("match.container: is empty (fix: give name, label or image)")
	}
	if key, _, ok := strings.Cut(c.Label, "="); c.Label != "" && (!ok || key == "") {
		return fmt.Errorf("match.container.label: %.64q is not key=value", c.Label)
	}
	for field, value := range map[string]string{"name": c.Name, "label": c.Label, "image": c.Image} {
		if len(value) > maxMatchText || strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return fmt.Errorf("match.container.%s: more than %d characters, or one that does not print", field, maxMatchText)
		}
	}
	return nil
}

// String is the match in the form of the command line, like unit=retriever.service.
func (m Match) String() string {
	switch {
	case m.Cgroup != "":
		return "cgroup=" + m.Cgroup
	case m.Unit != "":
		return "unit=" + m.Unit
	case m.User != "":
		return "user=" + m.User
	case m.Run:
		return "run"
	case m.Host:
		return "host"
	case m.Container != nil:
		return m.Container.String()
	}
	return ""
}

func (c *ContainerMatch) String() string {
	var parts []string
	for _, p := range []struct{ key, value string }{{"name", c.Name}, {"label", c.Label}, {"image", c.Image}} {
		if p.value != "" {
			parts = append(parts, "container."+p.key+"="+p.value)
		}
	}
	return strings.Join(parts, ",")
}

// ValidUser reports whether a text can name a user: a name, or a number.
func ValidUser(s string) bool { return userName.MatchString(s) }

// SharedWith reports whether two agents with these matches would always be the same processes, of which one gets none.
func (m Match) SharedWith(n Match) bool { return !m.Run && m.Equal(n) }

// Equal reports whether two matches are of the same processes.
func (m Match) Equal(n Match) bool { return m.String() == n.String() }

// ParseMatch is the inverse of String.
func ParseMatch(s string) (Match, error) {
	var m Match
	for part := range strings.SplitSeq(s, ",") {
		key, value, _ := strings.Cut(part, "=")
		if strings.HasPrefix(key, "container.") && m.Container == nil {
			m.Container = &ContainerMatch{}
		}
		field := map[string]*string{"cgroup": &m.Cgroup, "unit": &m.Unit, "user": &m.User}[key]
		if c := m.Container; c != nil && field == nil {
			field = map[string]*string{"container.name": &c.Name, "container.label": &c.Label, "container.image": &c.Image}[key]
		}
		switch {
		case part == "host":
			m.Host = true
		case part == "run":
			m.Run = true
		case field == nil || value == "" || *field != "":
			return Match{}, fmt.Errorf("match: %.64q is not understood (fix: unit=NAME, cgroup=/PATH, user=NAME, container.name=NAME, container.label=KEY=VALUE, container.image=IMAGE, run or host)", part)
		default:
			*field = value
		}
	}
	return m, m.Validate()
}

// Workload is where an agent's processes are now, as the platform found them.
type Workload struct {
	Cgroups []uint64 // IDs in the cgroup v2 hierarchy, sorted; what is below belongs to them
	UIDs    []uint32 // sorted
	Host    bool
}

// Equal reports whether two workloads are the same processes.
func (w Workload) Equal(v Workload) bool {
	return w.Host == v.Host && slices.Equal(w.Cgroups, v.Cgroups) && slices.Equal(w.UIDs, v.UIDs)
}

// Binder ties the agents' addresses to their processes, in the kernel. Apply takes the whole desired state.
type Binder interface {
	Apply(context.Context, BindingConfig) error
}

// BindingConfig is every agent of this host. An overlay address that is none of them is nobody's.
type BindingConfig struct {
	Agents []Binding // sorted by name
}

// Binding is one agent: its processes have its addresses, and nobody else has.
type Binding struct {
	Agent     string
	Addresses []netip.Addr // overlay IPv4, then IPv6
	Workload
	Guarded bool          // outside the overlay it may reach what Egress says, and nothing else
	Egress  []EgressAllow // sorted
}

// EgressAllow lets an agent reach a destination outside the overlay.
type EgressAllow struct {
	Prefix      netip.Prefix
	Proto       uint8     // IP protocol number: 6 TCP, 17 UDP, 1 ICMP (echo, both families)
	First, Last uint16    // destination ports, inclusive; 0, 0 for ICMP
	Until       time.Time // the kernel ends it then; zero: never
}

// resolverNumber is the number in the overlay's ranges that no agent gets: the resolver has it on every host.
const resolverNumber = 53

// ResolverAddrs are the addresses at which each host answers its agents' DNS queries: number 53 of each range that
// has more than one byte for hosts.
func ResolverAddrs(prefixes []netip.Prefix) []netip.Addr {
	var out []netip.Addr
	for _, p := range prefixes {
		if p.Addr().BitLen()-p.Bits() < 8 {
			continue
		}
		b := p.Masked().Addr().AsSlice()
		b[len(b)-1] = resolverNumber
		a, _ := netip.AddrFromSlice(b)
		out = append(out, a)
	}
	return out
}

// Owner is the agent that a process is: that of the innermost claimed cgroup of those that it is in, outermost first,
// else that of its user, else the host's. Empty: none.
func (c BindingConfig) Owner(cgroups []uint64, uid uint32) string {
	for _, id := range slices.Backward(cgroups) {
		for _, b := range c.Agents {
			if slices.Contains(b.Cgroups, id) {
				return b.Agent
			}
		}
	}
	for _, b := range c.Agents {
		if slices.Contains(b.UIDs, uid) {
			return b.Agent
		}
	}
	return c.HostAgent()
}

// HostAgent is the agent that everything is that no other claims; empty if there is none.
func (c BindingConfig) HostAgent() string {
	for _, b := range c.Agents {
		if b.Host {
			return b.Agent
		}
	}
	return ""
}
