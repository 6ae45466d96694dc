package bind

import (
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-mesh/bulkhead/overlay"
)

const connects = 200 // of one round

// BenchmarkConnect opens connections in turn from cgroups that the programs see and from one that they do not: over the
// overlay as two agents, and over lo as two programs of the host that are none. What the programs take of it themselves is
// measured after that, as the kernel counts it.
func BenchmarkConnect(b *testing.B) {
	w := newWorld(b)
	server, client := w.group("server"), w.group("client")
	w.group("elsewhere")
	w.apply(
		overlay.Binding{Agent: "server", Addresses: addresses(1), Workload: overlay.Workload{Cgroups: []uint64{server}}},
		overlay.Binding{Agent: "client", Addresses: addresses(2), Workload: overlay.Workload{Cgroups: []uint64{client}}},
	)
	unseen := &world{t: b, root: w.root + "unseen", netns: w.netns}
	unseen.group("")
	for name, load := range map[string]struct {
		on, off       *actor
		remote, local string
		ports         [2]string
	}{
		"overlay":  {w.start("client", 0), unseen.start("", 0), "10.201.0.1", "10.201.0.2:0", [2]string{":5001", ":5002"}},
		"loopback": {w.start("elsewhere", 0), unseen.start("", 0), "127.0.0.1", "127.0.0.1:0", [2]string{":6001", ":6002"}},
	} {
		inside := map[string]string{"overlay": "server", "loopback": "elsewhere"}[name]
		w.start(inside, 0).must(order{Do: "serve", Network: "tcp", Local: load.remote + load.ports[0]})
		unseen.start("", 0).must(order{Do: "serve", Network: "tcp", Local: load.remote + load.ports[1]})
		on, off := order{Do: "connect", Remote: load.remote + load.ports[0]}, order{Do: "connect", Remote: load.remote + load.ports[1], Local: load.local}
		b.Run(name, func(b *testing.B) {
			var ratios []float64
			for b.Loop() {
				begin := time.Now()
				load.on.must(on)
				middle := time.Now()
				load.off.must(off)
				ratios = append(ratios, float64(time.Since(middle))/float64(middle.Sub(begin)))
			}
			slices.Sort(ratios)
			b.ReportMetric(ratios[len(ratios)/2], "rate/off")
			b.ReportMetric(w.programTime(b, func() { load.on.must(on) })/connects, "program-ns/conn")
		})
	}
}

// programTime is how long the world's programs ran while fn did, ns.
func (w *world) programTime(b *testing.B, fn func()) float64 {
	stats, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		b.Fatal(err)
	}
	defer stats.Close()
	total := func() (sum time.Duration) {
		for name, h := range w.binding.hooks() {
			s, err := h.program.Stats()
			if err != nil {
				b.Fatalf("%s: %v", name, err)
			}
			sum += s.Runtime
		}
		return sum
	}
	before := total()
	fn()
	return float64(total() - before)
}
