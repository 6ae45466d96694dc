package daemon

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestExampleConfigIsTheDefaults(t *testing.T) {
	c, err := LoadConfig("../deploy/config.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	want := DefaultConfig()
	want.Advertise = []string{}
	if err := want.Validate(); err != nil { // which names the sockets
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, c); diff != "" {
		t.Errorf("the example differs from the defaults (-default +example):\n%s", diff)
	}
}

func TestConfigFaultsNameTheKey(t *testing.T) {
	for text, want := range map[string]string{
		"mtu: 100":                             "config: mtu: 100 is outside 1280 to 65000",
		"listen: 0":                            "config: listen: is 0",
		"listen: 70000":                        "listen",
		"lisen: 51900":                         "unknown field \"lisen\"",
		"mtu: 1420\nmtu: 1420":                 "mtu",
		"interface: a-name-that-is-long":       "config: interface: \"a-name-that-is-long\" must have 1 to 15",
		"stateDir: ''":                         "config: stateDir: is empty",
		"socket: /" + strings.Repeat("x", 120): "config: socket: path has 121 bytes",
		"controlListen: '7443'":                "config: controlListen: \"7443\" is not host:port",
		"metricsListen: ':0'":                  "config: metricsListen: \":0\" is not host:port",
		"advertise: [host.example]":            "config: advertise[0]: \"host.example\" is not an IP address",
		"advertise: [192.0.2.1, 127.0.0.1]":    "config: advertise[1]: no other host can reach \"127.0.0.1\"",
		"advertise: ['[fe80::1%eth0]:1']":      "config: advertise[0]: no other host can reach",
		"advertise: ['192.0.2.1:0']":           "config: advertise[0]: no other host can reach",
		"advertise: [1.1.1.1, 1.1.1.2, 1.1.1.3, 1.1.1.4, 1.1.1.5, 1.1.1.6, 1.1.1.7, 1.1.1.8, 1.1.1.9]": "config: advertise: 9 addresses, at most 8",
		"logLevel: loud": "config: logLevel: \"loud\" is unknown",
		"logFormat: xml": "config: logFormat: \"xml\" is unknown",
		"- a list":       "config.yaml",

		"enforcement: maybe":                                                                     "config: enforcement: \"maybe\" is unknown",
		"cgroupRoot: cgroup":                                                                     "config: cgroupRoot: \"cgroup\" is not absolute",
		"containerSockets: [/a, b.sock]":                                                         "config: containerSockets[1]: \"b.sock\" is no absolute path (fix:",
		"dnsUpstream: [192.0.2.53, dns.example]":                                                 "config: dnsUpstream: \"dns.example\", number 1 of the list, is no address",
		"socket: /a.sock\nagentSocket: /a.sock":                                                  "config: agentSocket: /a.sock is socket, too (fix:",
		"agentSocket: /a.sock\nspiffeSocket: /./a.sock":                                          "config: spiffeSocket: /a.sock is agentSocket, too (fix:",
		"agents: [{name: A_, match: {run: true}}]":                                               "config: agents[0].name: name \"A_\" may have only",
		"agents: [{name: a}]":                                                                    "config: agents[0].match: give exactly one of",
		"agents: [{name: a, match: {unit: web}}]":                                                "config: agents[0].match.unit: \"web\" is no service",
		"agents: [{name: a, match: {run: true}, labels: {b: ' '}}]":                              "config: agents[0].labels: label b",
		"agents: [{name: a, match: {run: true}, run: [alice, '']}]":                              "config: agents[0].run[1]: \"\" is no user",
		"agents: [{name: a, match: {run: true}}, {name: a, match: {host: true}}]":                "config: agents[1].name: \"a\" is declared twice",
		"agents: [{name: a, match: {host: true}}, {name: b, match: {host: true}}]":               "config: agents[1].match: host is agent \"a\" already",
		"agents: [{name: a, match: {unit: web.service}}, {name: b, match: {unit: web.service}}]": "config: agents[1].match: unit=web.service is agent \"a\" already",
	} {
		path := filepath.Join(t.TempDir(), "config.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadConfig(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want it to say %q", text, err, want)
		}
	}
}

// Who looks for the daemon finds it, whatever else is wrong in the file since it started.
func TestPathsAreFoundBesideFaults(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.yaml")
	for text, want := range map[string]string{
		"socket: /srv/b.sock\nmtu: 1\nagents: [{name: A_}]\nlogLevel: loud": "",
		"socket: ''":  "config: socket: is empty",
		"soket: /srv": "unknown field",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := LoadPaths(path)
		if want == "" && (err != nil || c.Socket != "/srv/b.sock" || c.AgentSocket != "/srv/b-agent.sock") {
			t.Errorf("%q: got %+v, %v", text, c, err)
		}
		if want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: got %v, want it to say %q", text, err, want)
		}
	}
}

func TestAllConfigFaultsAreToldAtOnce(t *testing.T) {
	c := DefaultConfig()
	c.MTU, c.Listen, c.LogLevel = 1, 0, "loud"
	err := c.Validate()
	for _, key := range []string{"mtu", "listen", "logLevel"} {
		if err == nil || !strings.Contains(err.Error(), "config: "+key+":") {
			t.Errorf("%s is missing in: %v", key, err)
		}
	}
}

func TestOverridesGoOverTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte("mtu: 1300\nlogLevel: warn\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := LoadConfig(path, func(c *Config) error { c.MTU = 1400; return nil })
	if err != nil || c.MTU != 1400 || c.LogLevel != "warn" || c.Listen != DefaultConfig().Listen {
		t.Errorf("got %+v, %v", c, err)
	}
	if _, err := LoadConfig(path + ".absent"); err == nil {
		t.Error("a named file that is absent is taken for an empty one")
	}
}

func TestFixedKeysAreNamed(t *testing.T) {
	a, b := DefaultConfig(), DefaultConfig()
	b.MTU, b.LogLevel, b.Advertise = 1400, "debug", []string{"192.0.2.1"}
	if got := a.fixed(b); !cmp.Equal(got, []string{"mtu"}) {
		t.Errorf("got %q: the level and addresses can change, the MTU cannot", got)
	}
}

func TestSeveralAgentsMayBeWhatIsRunAsThem(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.yaml")
	text := "agents: [{name: a, match: {run: true}, run: [alice, '1001']}, {name: b, match: {run: true}}]"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadConfig(path); err != nil {
		t.Error(err)
	}
}
