package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"
)

// DefaultConfigPath is read when no other file is named; it may be absent.
const DefaultConfigPath = "/etc/bulkhead/config.yaml"

// Config is the daemon's configuration. Flags go over environment over file over these defaults.
type Config struct {
	StateDir      string   `yaml:"stateDir"`      // keys, certificates and the last good policy; 0700
	Socket        string   `yaml:"socket"`        // local API, Unix socket
	Interface     string   `yaml:"interface"`     // name of the overlay interface
	MTU           int      `yaml:"mtu"`           // of the overlay interface, bytes
	Listen        uint16   `yaml:"listen"`        // UDP port for WireGuard and QUIC
	ControlListen string   `yaml:"controlListen"` // TCP address of the control API, on control hosts
	MetricsListen string   `yaml:"metricsListen"` // TCP address of the metrics; empty: none
	Advertise     []string `yaml:"advertise"`     // addresses at which others reach this host; empty: its own
	LogLevel      string   `yaml:"logLevel"`      // debug, info, warn, error
	LogFormat     string   `yaml:"logFormat"`     // auto, text, json

	Agents           []AgentConfig `yaml:"agents"`           // of this host, beside those that `bulkhead agent add` declared
	Enforcement      string        `yaml:"enforcement"`      // auto, or required: refuse to start where agents cannot be told apart
	CgroupRoot       string        `yaml:"cgroupRoot"`       // cgroup v2 directory whose processes are this host's; empty: where it is mounted
	ContainerSockets []string      `yaml:"containerSockets"` // APIs of Podman and Docker; those that are not there are waited for
	AgentSocket      string        `yaml:"agentSocket"`      // what agents and `bulkhead run` may ask; empty: socket with -agent
	SpiffeSocket     string        `yaml:"spiffeSocket"`     // SPIFFE Workload API; empty: socket with -spiffe
	DNSUpstream      []string      `yaml:"dnsUpstream"`      // for names that egress lists name; empty: those of /etc/resolv.conf
}

// DefaultConfig is what an absent or empty file means.
func DefaultConfig() Config {
	return Config{
		StateDir:      "/var/lib/bulkhead",
		Socket:        "/run/bulkhead/bulkhead.sock",
		Interface:     "bulkhead0",
		MTU:           1420,
		Listen:        51900,
		ControlListen: ":7443",
		MetricsListen: "127.0.0.1:9464",
		LogLevel:      "info",
		LogFormat:     "auto",

		Agents:           []AgentConfig{},
		Enforcement:      EnforceWhatWorks,
		ContainerSockets: []string{"/run/podman/podman.sock", "/run/docker.sock"},
		DNSUpstream:      []string{},
	}
}

// LoadConfig reads the file at path, if there is one, over the defaults. Overrides (flags, environment) are
// applied before the whole is validated. A path other than the default must exist.
func LoadConfig(path string, overrides ...func(*Config) error) (Config, error) {
	return load(path, overrides, (*Config).Validate)
}

// LoadPaths is LoadConfig for those who want nothing but to find the daemon, which goes on when a reload is refused:
// keys that are not paths may have faults.
func LoadPaths(path string, overrides ...func(*Config) error) (Config, error) {
	return load(path, overrides, func(c *Config) error {
		var f faults
		c.validatePaths(f.add)
		return errors.Join(f...)
	})
}

func load(path string, overrides []func(*Config) error, validate func(*Config) error) (Config, error) {
	c := DefaultConfig()
	if path == "" {
		path = DefaultConfigPath
	}
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && path == DefaultConfigPath:
	case err != nil:
		return Config{}, fmt.Errorf("read config: %w", err)
	default:
		if err := yaml.UnmarshalWithOptions(data, &c, yaml.Strict()); err != nil {
			return Config{}, fmt.Errorf("%s: %s", path, yaml.FormatError(err, false, true))
		}
	}
	for _, override := range overrides {
		if err := override(&c); err != nil {
			return Config{}, err
		}
	}
	if err := validate(&c); err != nil {
		return Config{}, err
	}
	return c, nil
}

// faults are all that is wrong, each with its key and the fix.
type faults []error

func (f *faults) add(key, format string, args ...any) {
	*f = append(*f, fmt.Errorf("config: "+key+": "+format, args...))
}

// Validate reports every fault of c, each with its key and the fix.
func (c *Config) Validate() error {
	var f faults
	fault := f.add
	c.validatePaths(fault)
	if n := len(c.Interface); n == 0 || n > 15 {
		fault("interface", "%q must have 1 to 15 characters, like bulkhead0", c.Interface)
	}
	if c.MTU < 1280 || c.MTU > 65000 {
		fault("mtu", "%d is outside 1280 to 65000 (fix: 1420 suits an underlay of 1500)", c.MTU)
	}
	if c.Listen == 0 {
		fault("listen", "is 0 (fix: name a UDP port, like 51900)")
	}
	for key, addr := range map[string]string{"controlListen": c.ControlListen, "metricsListen": c.MetricsListen} {
		if addr == "" && key == "metricsListen" {
			continue
		}
		if _, port, err := net.SplitHostPort(addr); err != nil || !isPort(port) {
			fault(key, "%q is not host:port (fix: write it like 0.0.0.0:7443)", addr)
		}
	}
	if _, err := endpoints(c.Advertise, c.Listen); err != nil {
		f = append(f, err)
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.LogLevel)); err != nil {
		fault("logLevel", "%q is unknown (fix: debug, info, warn or error)", c.LogLevel)
	}
	switch c.LogFormat {
	case "auto", "text", "json":
	default:
		fault("logFormat", "%q is unknown (fix: auto, text or json)", c.LogFormat)
	}
	c.validateAgents(fault)
	return errors.Join(f...)
}

// validatePaths makes them absolute, and names the sockets that the file does not.
func (c *Config) validatePaths(fault func(key, format string, args ...any)) {
	base := strings.TrimSuffix(c.Socket, ".sock") // several daemons of one machine have sockets in one directory
	if c.AgentSocket == "" {
		c.AgentSocket = base + "-agent.sock"
	}
	if c.SpiffeSocket == "" {
		c.SpiffeSocket = base + "-spiffe.sock"
	}
	for key, path := range map[string]*string{"stateDir": &c.StateDir, "socket": &c.Socket, "agentSocket": &c.AgentSocket, "spiffeSocket": &c.SpiffeSocket} {
		if *path == "" {
			fault(key, "is empty (fix: give a path)")
			continue
		}
		abs, err := filepath.Abs(*path)
		if err != nil {
			fault(key, "%w", err)
		}
		*path = abs
	}
	for key, path := range map[string]string{"socket": c.Socket, "agentSocket": c.AgentSocket, "spiffeSocket": c.SpiffeSocket} {
		if n := len(path); n > 107 {
			fault(key, "path has %d bytes, a Unix socket's may have 107 (fix: choose a shorter path)", n)
		}
	}
	for _, pair := range [][4]string{{"agentSocket", c.AgentSocket, "socket", c.Socket}, {"spiffeSocket", c.SpiffeSocket, "socket", c.Socket}, {"spiffeSocket", c.SpiffeSocket, "agentSocket", c.AgentSocket}} {
		if pair[1] != "" && pair[1] == pair[3] {
			fault(pair[0], "%s is %s, too (fix: give each a path of its own)", pair[1], pair[2])
		}
	}
}

func isPort(s string) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n > 0
}

// endpoints parses addresses with or without port.
func endpoints(addrs []string, port uint16) ([]netip.AddrPort, error) {
	if len(addrs) > maxEndpoints {
		return nil, fmt.Errorf("config: advertise: %d addresses, at most %d may be told", len(addrs), maxEndpoints)
	}
	var out []netip.AddrPort
	for i, s := range addrs {
		ap, err := netip.ParseAddrPort(s)
		if err != nil {
			addr, err := netip.ParseAddr(s)
			if err != nil {
				return nil, fmt.Errorf("config: advertise[%d]: %q is not an IP address (fix: write 192.0.2.1 or 192.0.2.1:51900)", i, s)
			}
			ap = netip.AddrPortFrom(addr, port)
		}
		if a := ap.Addr(); !a.IsGlobalUnicast() || a.Is4In6() || a.Zone() != "" || ap.Port() == 0 {
			return nil, fmt.Errorf("config: advertise[%d]: no other host can reach %q (fix: give a unicast address that is not loopback or link-local, and a port above 0)", i, s)
		}
		out = append(out, ap)
	}
	return out, nil
}

// fixed names the keys in which next differs and which a running daemon cannot change.
func (c *Config) fixed(next Config) []string {
	var keys []string
	for _, k := range []struct {
		key     string
		differs bool
	}{
		{"stateDir", c.StateDir != next.StateDir}, {"socket", c.Socket != next.Socket},
		{"interface", c.Interface != next.Interface}, {"mtu", c.MTU != next.MTU}, {"listen", c.Listen != next.Listen},
		{"controlListen", c.ControlListen != next.ControlListen}, {"metricsListen", c.MetricsListen != next.MetricsListen},
		{"logFormat", c.LogFormat != next.LogFormat},
		{"enforcement", c.Enforcement != next.Enforcement}, {"cgroupRoot", c.CgroupRoot != next.CgroupRoot},
		{"containerSockets", !slices.Equal(c.ContainerSockets, next.ContainerSockets)}, {"agentSocket", c.AgentSocket != next.AgentSocket},
		{"spiffeSocket", c.SpiffeSocket != next.SpiffeSocket},
	} {
		if k.differs {
			keys = append(keys, k.key)
		}
	}
	return keys
}
