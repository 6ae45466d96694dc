package segment_test

import (
	"net/netip"
	"os"
	"testing"

	"github.com/bulkhead-mesh/bulkhead/segment"
)

func sameAddrs(a, b netip.Addr) bool { return a == b }

// example is the policy of the manual, with its agents.
func example(t testing.TB) (*segment.Policy, []segment.Agent) {
	t.Helper()
	text, err := os.ReadFile("testdata/example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	policy, err := segment.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	agent := func(name, host, function, sensitivity string) segment.Agent {
		return segment.Agent{Name: name, Host: host, Labels: segment.Labels{segment.LabelFunction: function, segment.LabelSensitivity: sensitivity}}
	}
	return policy, []segment.Agent{
		agent("scout", "h1", "research", "internal"),
		agent("vec1", "h2", "storage", "confidential"),
		agent("vec2", "h3", "storage", "confidential"),
		agent("vault", "h3", "storage", "restricted"),
		agent("idler", "h1", "idle", "public"),
	}
}

func named(t testing.TB, agents []segment.Agent, name string) segment.Agent {
	t.Helper()
	for _, a := range agents {
		if a.Name == name {
			return a
		}
	}
	t.Fatalf("no agent %s", name)
	return segment.Agent{}
}

func port(t testing.TB, text string) segment.Port {
	t.Helper()
	p, err := segment.ParsePort(text)
	if err != nil {
		t.Fatal(err)
	}
	return p
}
