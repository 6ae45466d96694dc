package bind

import "fmt"

// reasons are the kernel's, in its order. Append only: status shows them.
var reasons = []string{"foreign-bind", "foreign-source", "foreign-receive", "no-agent", "neighbour", "egress", "control-api"}

// Drops is how often each reason refused a call or dropped a packet.
func (b *Binding) Drops() (map[string]uint64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make(map[string]uint64)
	for i, reason := range reasons {
		var perCPU []uint64
		if err := b.objects.Drops.Lookup(uint32(i), &perCPU); err != nil {
			return nil, fmt.Errorf("read drops: %w", err)
		}
		for _, n := range perCPU {
			if n > 0 {
				out[reason] += n
			}
		}
	}
	return out, nil
}
