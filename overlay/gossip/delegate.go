package gossip

import (
	"sync/atomic"

	"github.com/hashicorp/memberlist"

	"github.com/bulkhead-mesh/bulkhead/overlay"
)

// delegate gives memberlist our encoded hint as meta, and nothing else: no user messages, no user state.
type delegate struct {
	meta atomic.Pointer[[]byte]
}

var _ memberlist.Delegate = (*delegate)(nil)

func (d *delegate) set(h overlay.Hint) error {
	meta, err := h.AppendBinary(nil)
	if err != nil {
		return err
	}
	d.meta.Store(&meta)
	return nil
}

// NodeMeta returns nil until the first hint.
func (d *delegate) NodeMeta(int) []byte {
	if meta := d.meta.Load(); meta != nil {
		return *meta
	}
	return nil
}

func (d *delegate) NotifyMsg([]byte)                {}
func (d *delegate) GetBroadcasts(int, int) [][]byte { return nil }
func (d *delegate) LocalState(bool) []byte          { return nil }
func (d *delegate) MergeRemoteState([]byte, bool)   {}
