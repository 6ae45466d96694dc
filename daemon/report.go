package daemon

import (
	"fmt"

	"github.com/bulkhead-mesh/bulkhead/control/api"
	"github.com/bulkhead-mesh/bulkhead/overlay"
)

// report tells listeners what happened between two snapshots.
func (d *daemon) report(before, after *overlay.Snapshot) {
	if after.Enforced != before.Enforced {
		d.events.emit(api.Event{
			Kind: api.EventPolicyApplied, Host: d.credentials.get().Host, Version: after.Enforced,
			Message: fmt.Sprintf("policy version %d is enforced", after.Enforced),
		})
	}
	for host := range after.Records {
		if before.Records[host] == nil {
			d.events.emit(api.Event{Kind: api.EventHostJoined, Host: host, Message: "host is known now"})
		}
	}
	for host := range before.Records {
		if after.Records[host] == nil {
			d.events.emit(api.Event{Kind: api.EventRevoked, Host: host, Message: "the host's certificate is revoked or has ended"})
		}
	}
	for reason, n := range after.Refused {
		if n > before.Refused[reason] {
			d.events.emit(api.Event{Kind: api.EventRefused, Message: fmt.Sprintf("refused %s: %d so far", reason, n)})
		}
	}
}
