package platform

import (
	"context"
	"fmt"
	"maps"
)

// Drops is how many packets were dropped since NewFirewall, or since rules were put in before it, by reason.
func (f *Firewall) Drops(ctx context.Context) (map[string]uint64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	total := maps.Clone(f.counts)
	if err := f.addCounts(total); err != nil {
		return nil, fmt.Errorf("read drop counters: %w", err)
	}
	return total, nil
}

// keepCounts saves the counters of rules that are about to be replaced. Counting must not stop a change of rules.
func (f *Firewall) keepCounts() {
	total := maps.Clone(f.counts)
	if err := f.addCounts(total); err != nil {
		f.options.Logger.Warn("drop counters are lost", "error", err)
		return
	}
	f.counts = total
}

func (f *Firewall) addCounts(total map[string]uint64) error {
	for _, x := range f.tables {
		for _, c := range f.chains(x.family, nil) {
			lines, err := x.listCounters(c.table, c.name)
			if err != nil {
				return err
			}
			for _, line := range lines {
				if reason, packets, ok := parseCounter(line); ok {
					total[reason] += packets
				}
			}
		}
	}
	return nil
}
