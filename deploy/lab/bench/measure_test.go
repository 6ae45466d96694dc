package main

import (
	"math"
	"testing"
	"time"

	"github.com/bulkhead-mesh/bulkhead/segment"
)

func TestQuantileAndMedian(t *testing.T) {
	values := []float64{5, 1, 4, 2, 3}
	for q, want := range map[float64]float64{0.01: 1, 0.5: 3, 0.99: 5, 1: 5} {
		if got := quantile(values, q); got != want {
			t.Errorf("quantile %v is %v, want %v", q, got, want)
		}
	}
	if got := median([]float64{4, 1, 2, 3}); got != 2.5 {
		t.Errorf("median of an even number is %v, want 2.5", got)
	}
	if quantile[float64](nil, 0.5) != 0 || median(nil) != 0 {
		t.Error("of no values both are 0")
	}
}

// The ratio is that of each round, so a round in which the machine was slow for both does not count against either.
func TestRatioIsOfOneRound(t *testing.T) {
	of := func(rate float64) sample {
		return sample{received: received{amount: 1, rate: rate}, cpu: time.Second}
	}
	r := summarise(loads[0], []pair{{of(2), of(2)}, {of(1), of(1)}, {of(0.1), of(0.1)}})
	if r.Ratio.Median != 1 || r.Ratio.Min != 1 || r.Ratio.Max != 1 || !r.Met || r.CostRatio.Median != 1 {
		t.Errorf("equal planes give %+v", r)
	}
	if r := summarise(loads[0], []pair{{of(1), of(0.96)}}); r.Met {
		t.Error("0.96 meets the target")
	}
}

func TestIperfAnswer(t *testing.T) {
	answer := []byte(`{"start":{},"end":{"sum_sent":{"bytes":99},"sum_received":{"seconds":2,"bytes":128000,"packets":2500,"lost_packets":500}}}`)
	udp, err := parseIperf(answer, loads[2])
	if err != nil || udp.amount != 2 || udp.rate != 1 {
		t.Errorf("got %+v, %v; want 2 thousand packets of 64 bytes in 2 s", udp, err)
	}
	tcp, err := parseIperf(answer, loads[0])
	if err != nil || math.Abs(tcp.rate-0.000512) > 1e-9 {
		t.Errorf("got %+v, %v", tcp, err)
	}
	for _, bad := range []string{`{"error":"unable to connect"}`, `{}`, `no JSON`, `{"end":{"sum_received":{"seconds":2,"bytes":0}}}`} {
		if _, err := parseIperf([]byte(bad), loads[0]); err == nil {
			t.Errorf("%s is no error", bad)
		}
	}
}

func TestProcessTime(t *testing.T) {
	const stat = "12 (a ) b) S 1 12 12 0 -1 4194560 9 0 0 0 150 75 0 0 20 0 9 0 100 1 2"
	if got, err := parseProcessTime([]byte(stat)); err != nil || got != 2250*time.Millisecond {
		t.Errorf("got %v, %v; want 2.25 s", got, err)
	}
	for _, bad := range []string{"", "12 (x) S", "no parenthesis at all 1 2 3 4 5 6 7 8 9 10 11 12 13"} {
		if _, err := parseProcessTime([]byte(bad)); err == nil {
			t.Errorf("%q is no error", bad)
		}
	}
}

// Every rule must cost the measured hosts something, or they would not be "in force" there.
func TestCrowdPolicyConcernsTheMeasuredAgents(t *testing.T) {
	p := crowdPolicy()
	text, err := p.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if p, err = segment.Parse(text); err != nil {
		t.Fatal(err)
	}
	if len(p.Rules) != crowdRules {
		t.Errorf("%d rules, want %d", len(p.Rules), crowdRules)
	}
	directions := map[string]int{}
	for _, r := range p.Rules {
		switch {
		case r.From == measured[0], r.From == measured[1]:
			directions["from "+r.From]++
		case r.To == measured[0], r.To == measured[1]:
			directions["to "+r.To]++
		default:
			t.Errorf("rule %s is between %s and %s", r.Name, r.From, r.To)
		}
	}
	for way, n := range directions {
		if n < crowdRules/5 {
			t.Errorf("only %d rules %s", n, way)
		}
	}
}
