package bind

import (
	"errors"
	"fmt"
	"net/netip"
)

// SetDenied replaces the control APIs of other hosts, which agents may not reach.
func (b *Binding) SetDenied(addrs []netip.AddrPort) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	want := make(map[kernelEndpoint]uint8, len(addrs))
	for _, a := range addrs {
		want[kernelEndpoint{Addr: addrOf(a.Addr()), Port: a.Port()}] = 1
	}
	m := b.objects.Control
	if err := errors.Join(putOthers(m, b.denied, want), removeGone(m, b.denied, want)); err != nil {
		return fmt.Errorf("deny control APIs: %w", err)
	}
	b.denied = want
	return nil
}
