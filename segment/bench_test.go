package segment_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/bulkhead-mesh/bulkhead/segment"
)

// bigMesh has 10,000 agents on 1,000 hosts, 200 segments and 1,000 rules. Each agent is in one to three segments.
func bigMesh() (*segment.Policy, []segment.Agent) {
	p := &segment.Policy{}
	levels := segment.DefaultScale
	until := noon.Add(time.Hour)
	for i := range 200 {
		match := segment.Selector{segment.LabelFunction: {Values: []string{fmt.Sprintf("f%d", i%50)}}}
		switch i / 50 {
		case 0:
			match[segment.LabelSensitivity] = segment.Condition{Op: "<=", Values: levels[1:2]}
		case 1:
			match[segment.LabelSensitivity] = segment.Condition{Values: levels[2:]}
		case 2:
			match[segment.LabelSensitivity] = segment.Condition{Values: levels[i%4 : i%4+1]}
		default:
			match["zone"] = segment.Condition{Values: []string{fmt.Sprintf("z%d", i%3)}}
		}
		p.Segments = append(p.Segments, segment.Segment{Name: fmt.Sprintf("s%d", i), Match: match})
	}
	for i := range 1000 {
		r := segment.Rule{
			Name: fmt.Sprintf("r%d", i), From: p.Segments[i%200].Name, To: p.Segments[(i*7+i/200)%200].Name, Crosses: "measured",
			Allow: []segment.Ports{{Proto: segment.TCP, First: uint16(1000 + i), Last: uint16(1000 + i)}, {Proto: segment.ICMP}},
		}
		if i%10 == 0 {
			r.Until = &until
		}
		p.Rules = append(p.Rules, r)
	}
	agents := make([]segment.Agent, 10_000)
	for i := range agents {
		agents[i] = segment.Agent{
			Name: fmt.Sprintf("agent%d", i), Host: fmt.Sprintf("host%d", i%1000),
			Labels: segment.Labels{
				segment.LabelFunction: fmt.Sprintf("f%d", i%47), segment.LabelSensitivity: levels[i%4], "zone": fmt.Sprintf("z%d", i%3),
			},
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 201, byte(i >> 8), byte(i)}), netip.AddrFrom16([16]byte{0: 0xfd, 14: byte(i >> 8), 15: byte(i)})},
		}
	}
	return p, agents
}

// BenchmarkCompile makes the rules of one host from scratch.
func BenchmarkCompile(b *testing.B) {
	policy, agents := bigMesh()
	if err := policy.Validate(); err != nil {
		b.Fatal(err)
	}
	var r *segment.Ruleset
	for b.Loop() {
		r = segment.Compile(policy, "host7", agents, noon)
	}
	b.ReportMetric(float64(len(r.Pairs)), "pairs")
}

// BenchmarkUpdateOne changes the record of one host, which carries ten agents: of another host, of the host itself
// where one agent is relabelled, and of the host itself where all are, which makes each of its pairs anew.
func BenchmarkUpdateOne(b *testing.B) {
	for _, test := range []struct {
		name, host string
		relabelled int
	}{{"remote", "host8", 10}, {"local", "host7", 1}, {"local-all", "host7", 10}} {
		b.Run(test.name, func(b *testing.B) {
			policy, agents := bigMesh()
			c := segment.NewCompiler(policy, "host7")
			c.Update(agents, nil, noon)
			var records [2][]segment.Agent // that differ
			for _, a := range agents {
				if a.Host != test.host {
					continue
				}
				records[0] = append(records[0], a)
				if len(records[0]) <= test.relabelled {
					a.Labels = segment.Labels{segment.LabelFunction: "f1", segment.LabelSensitivity: "internal"}
				}
				records[1] = append(records[1], a)
			}
			var r *segment.Ruleset
			for i := 0; b.Loop(); i++ {
				r = c.Update(records[i%2], nil, noon)
			}
			b.ReportMetric(float64(len(r.Pairs)), "pairs")
		})
	}
}

// BenchmarkDiff compares two policies of the same mesh that differ in one rule.
func BenchmarkDiff(b *testing.B) {
	policy, agents := bigMesh()
	fewer := *policy
	fewer.Rules = policy.Rules[1:]
	for b.Loop() {
		segment.Diff(policy, &fewer, agents, noon)
	}
}

// BenchmarkParse reads a policy of 200 segments and 1,000 rules.
func BenchmarkParse(b *testing.B) {
	policy, _ := bigMesh()
	text, err := policy.Marshal()
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		if _, err := segment.Parse(text); err != nil {
			b.Fatal(err)
		}
	}
}
