package segment_test

import (
	"encoding/json"
	"testing"

	"github.com/bulkhead-mesh/bulkhead/segment"
)

func TestParsePorts(t *testing.T) {
	for text, want := range map[string]segment.Ports{
		"tcp/443":       {Proto: segment.TCP, First: 443, Last: 443},
		"tcp/6333-6334": {Proto: segment.TCP, First: 6333, Last: 6334},
		"udp/1-65535":   {Proto: segment.UDP, First: 1, Last: 65535},
		"icmp":          {Proto: segment.ICMP},
	} {
		if got, err := segment.ParsePorts(text); err != nil || got != want {
			t.Errorf("%q is %v, %v, want %v", text, got, err, want)
		}
	}
	for _, text := range []string{
		"", "tcp", "tcp/", "tcp/0", "tcp/65536", "tcp/-1", "tcp/+1", "tcp/01", "tcp/1-", "tcp/-", "tcp/2-1", "tcp/1-1", "tcp/1-2-3",
		"TCP/1", "icmp/", "icmp/8", "sctp/1", "/1", " tcp/1", "tcp/1 ", "tcp/1,2", "tcp/1_0", "tcp/0x1",
	} {
		if got, err := segment.ParsePorts(text); err == nil {
			t.Errorf("%q is taken for %v", text, got)
		}
	}
}

func TestParsePort(t *testing.T) {
	if got, err := segment.ParsePort("icmp"); err != nil || got != (segment.Port{Proto: segment.ICMP}) {
		t.Errorf("icmp is %v, %v", got, err)
	}
	for _, text := range []string{"tcp/1-2", "tcp", "443"} {
		_, err := segment.ParsePort(text)
		if err == nil {
			t.Errorf("%q is taken for a port", text)
		}
	}
}

func TestPortsContain(t *testing.T) {
	for _, test := range []struct {
		ports, port string
		want        bool
	}{
		{"tcp/10-20", "tcp/10", true}, {"tcp/10-20", "tcp/20", true}, {"tcp/10-20", "tcp/9", false}, {"tcp/10-20", "tcp/21", false},
		{"tcp/10-20", "udp/15", false}, {"icmp", "icmp", true}, {"icmp", "tcp/1", false}, {"tcp/1-65535", "icmp", false},
	} {
		ports, err := segment.ParsePorts(test.ports)
		if err != nil {
			t.Fatal(err)
		}
		if got := ports.Contains(port(t, test.port)); got != test.want {
			t.Errorf("%s contains %s: %v", test.ports, test.port, got)
		}
	}
}

// FuzzParsePorts checks that what is accepted has one text only, and survives JSON.
func FuzzParsePorts(f *testing.F) {
	for _, seed := range []string{"tcp/443", "tcp/6333-6334", "udp/53", "icmp", "tcp/065", "tcp/1-1", "icmp/8"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		ports, err := segment.ParsePorts(text)
		if err != nil {
			return
		}
		if ports.String() != text {
			t.Fatalf("%q is written %q", text, ports)
		}
		data, err := json.Marshal(ports)
		if err != nil {
			t.Fatal(err)
		}
		var again segment.Ports
		if err := json.Unmarshal(data, &again); err != nil || again != ports {
			t.Fatalf("%s read back is %v, %v", data, again, err)
		}
		one, err := segment.ParsePort(text)
		if (err == nil) != (ports.First == ports.Last) {
			t.Fatalf("%q as one port: %v, %v", text, one, err)
		}
		if err == nil && (one.String() != text || !ports.Contains(one)) {
			t.Fatalf("%q as one port is %q", text, one)
		}
	})
}
