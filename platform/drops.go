package platform

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
)

// dropsAge is how old an answer of Drops may be. Reading counters runs several programs: whoever asks often must not
// keep a change of rules waiting.
const dropsAge = time.Second

// drops are the counters of rules.
type drops struct {
	reading singleflight.Group

	mu   sync.Mutex
	kept map[string]uint64 // of rules that are gone
	last map[string]uint64 // the last answer
	at   time.Time
}

// Drops is how many packets were dropped since NewFirewall, or since rules were put in before it, by reason; at most
// a second ago.
func (f *Firewall) Drops(ctx context.Context) (map[string]uint64, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	d := &f.drops
	d.mu.Lock()
	if d.last != nil && f.now().Sub(d.at) < dropsAge {
		defer d.mu.Unlock()
		return maps.Clone(d.last), nil
	}
	d.mu.Unlock()
	total, err, _ := d.reading.Do("", func() (any, error) {
		d.mu.Lock()
		total := maps.Clone(d.kept)
		d.mu.Unlock()
		if err := f.addCounts(total); err != nil {
			return nil, fmt.Errorf("read drop counters: %w", err)
		}
		d.mu.Lock()
		d.last, d.at = total, f.now()
		d.mu.Unlock()
		return total, nil
	})
	if err != nil {
		return nil, err
	}
	return maps.Clone(total.(map[string]uint64)), nil
}

// keepCounts saves the counters of rules that are about to be replaced. Counting must not stop a change of rules.
func (f *Firewall) keepCounts() {
	d := &f.drops
	d.mu.Lock()
	total := maps.Clone(d.kept)
	d.mu.Unlock()
	if err := f.addCounts(total); err != nil {
		f.options.Logger.Warn("drop counters are lost", "error", err)
		return
	}
	d.mu.Lock()
	d.kept, d.last = total, nil
	d.mu.Unlock()
}

func (f *Firewall) addCounts(total map[string]uint64) error {
	for _, x := range f.tables {
		for _, c := range f.chains(x.family, ruleData{owners: []Owner{}}) {
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
