package main

import (
	"encoding/json"
	"fmt"
	"io"
	"time"
)

// report is all that was measured; a part that was not is absent.
type report struct {
	Throughput *throughput   `json:"throughput,omitempty"`
	Change     *change       `json:"change,omitempty"`
	Idle       *idle         `json:"idle,omitempty"`
	Agents     *agents       `json:"agents,omitempty"`
	Machine    machine       `json:"machine"`
	Took       time.Duration `json:"took"` // nanoseconds, as all durations here
}

// throughput holds Bulkhead beside bare wireguard-go.
type throughput struct {
	Known    known        `json:"known"`
	Shared   bool         `json:"shared"` // the baseline ran on the same hosts, and its packets met the rules too
	Rounds   int          `json:"rounds"`
	Slice    float64      `json:"slice"` // seconds of each load on each plane in each round
	Loads    []loadResult `json:"loads"`
	Peak     uint64       `json:"peakMemory"` // resident, of the worse end, bytes
	BarePeak uint64       `json:"barePeakMemory"`
}

// loadResult is one load over all rounds. Ratios are Bulkhead's figure by bare wireguard-go's of the same round.
type loadResult struct {
	Name      string `json:"name"`
	Unit      string `json:"unit"`
	Bare      spread `json:"bare"`
	Ours      spread `json:"bulkhead"`
	Ratio     spread `json:"ratio"`
	CostUnit  string `json:"costUnit"` // CPU time of both ends' processes
	BareCost  spread `json:"bareCost"`
	OursCost  spread `json:"bulkheadCost"`
	CostRatio spread `json:"costRatio"`
	Met       bool   `json:"met"`
}

// change is how long after the call to the API the last host enforced the change.
type change struct {
	Hosts      int           `json:"hosts"`
	Changes    int           `json:"changes"`
	Median     time.Duration `json:"median"`
	P99        time.Duration `json:"p99"`
	Worst      time.Duration `json:"worst"`
	WaitMedian time.Duration `json:"waitMedian"` // until `--wait` would have ended
	WaitP99    time.Duration `json:"waitP99"`
	Met        bool          `json:"met"`
}

// idle is what a daemon costs that has nothing to do: the worst of all.
type idle struct {
	Hosts   int          `json:"hosts"`
	Seconds float64      `json:"seconds"`
	Memory  uint64       `json:"memory"` // resident, bytes
	Share   float64      `json:"cpu"`    // of one core
	Binary  uint64       `json:"binary"` // bytes
	Daemons []idleDaemon `json:"daemons"`
	Met     bool         `json:"met"`
}

type idleDaemon struct {
	Host   string  `json:"host"`
	Memory uint64  `json:"memory"`
	Share  float64 `json:"cpu"`
}

func (r *report) print(out io.Writer, format string) error {
	if format == "json" {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	t := &table{}
	if r.Throughput != nil {
		r.Throughput.print(t)
	}
	if r.Change != nil {
		r.Change.print(t)
	}
	if r.Idle != nil {
		r.Idle.print(t)
	}
	if r.Agents != nil {
		r.Agents.print(t)
	}
	r.Machine.print(t, r.Took)
	return t.flush(out)
}

func (r *throughput) print(t *table) {
	t.title("Throughput beside bare wireguard-go: %d agents known, %d rules in force, %d entries in the kernel's sets",
		r.Known.Agents, r.Known.Rules, r.Known.Entries)
	t.row("LOAD", "UNIT", "BARE", "BULKHEAD", "RATIO", "MIN–MAX", "TARGET", "CPU", "BARE", "BULKHEAD", "RATIO", "MIN–MAX")
	for _, l := range r.Loads {
		t.row(l.Name, l.Unit, figure(l.Bare.Median), figure(l.Ours.Median), ratio(l.Ratio.Median), span(l.Ratio),
			mark(l.Met)+fmt.Sprintf(" ≥ %.2f", targetRatio),
			l.CostUnit, figure(l.BareCost.Median), figure(l.OursCost.Median), ratio(l.CostRatio.Median), span(l.CostRatio))
	}
	t.row("Peak memory", "MB", megabytes(r.BarePeak), megabytes(r.Peak), ratio(float64(r.Peak)/float64(r.BarePeak)))
	t.note("Medians of %d rounds, %g s for each load on each of the two in turn; ratios are of one round. Packets as received.", r.Rounds, r.Slice)
	if r.Shared {
		t.note("Bare wireguard-go ran on the same two hosts, so its packets, too, passed Bulkhead's rules for foreign ones.")
	} else {
		t.note("Bare wireguard-go ran on two hosts of its own on the same switch, without any firewall.")
	}
	t.note("CPU and memory are of the two processes that carry the packets: both ends' time together, and the worse end's peak.")
}

func (r *change) print(t *table) {
	t.title("A change of policy, from the call to the API until all of %d hosts enforce it", r.Hosts)
	t.row("", "MEDIAN", "P99", "WORST", "TARGET")
	t.row("enforced, by each host's own event", milliseconds(r.Median), milliseconds(r.P99), milliseconds(r.Worst),
		mark(r.Met)+fmt.Sprintf(" ≤ %s and %s", milliseconds(targetMedian), milliseconds(targetP99)))
	t.row("`--wait` ends", milliseconds(r.WaitMedian), milliseconds(r.WaitP99))
	t.note("%d changes: a rule between all hosts is created and deleted in turn.", r.Changes)
}

func (r *idle) print(t *table) {
	t.title("A daemon without load, the worst of %d in one mesh, over %.0f s", r.Hosts, r.Seconds)
	t.row("", "MEASURED", "TARGET")
	t.row("resident memory", megabytes(r.Memory)+" MB", mark(float64(r.Memory) <= targetIdleMemory)+" ≤ 40 MB")
	t.row("CPU of one core", fmt.Sprintf("%.2f %%", r.Share*100), mark(r.Share < targetIdleShare)+" < 0.5 %")
	t.row("size of the binary", megabytes(r.Binary)+" MB", mark(float64(r.Binary) <= targetBinary)+" ≤ 30 MB")
	for _, d := range r.Daemons {
		t.note("%s: %s MB, %.2f %%.", d.Host, megabytes(d.Memory), d.Share*100)
	}
}

func (m machine) print(t *table, took time.Duration) {
	t.title("%d processors, Linux %s, %s; load average %s at the end, %.1f %% of the time stolen; took %.0f s.",
		m.Processors, m.Kernel, m.BenchVersion, m.LoadAverage, m.StolenShare*100, took.Seconds())
}
