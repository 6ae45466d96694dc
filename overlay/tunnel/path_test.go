package tunnel

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.zx2c4.com/wireguard/conn"
)

func targets(h *hostEndpoint, now time.Time) []string {
	var addrs []string
	for _, e := range h.initiationTargets(now) {
		addrs = append(addrs, e.AddrPort.String())
	}
	return addrs
}

func TestInitiationGoesEverywhereUntilPathIsVerified(t *testing.T) {
	table := newPathTable()
	table.setCandidates("h", []netip.AddrPort{netip.MustParseAddrPort("[::ffff:192.0.2.1]:1"), netip.MustParseAddrPort("192.0.2.2:2")})
	h := table.lookup("h")
	now := time.Unix(1000, 0)
	all := []string{"192.0.2.1:1", "192.0.2.2:2"}
	if d := cmp.Diff(all, targets(h, now)); d != "" {
		t.Errorf("without a verified path: %s", d)
	}
	table.verify("h", netip.MustParseAddrPort("192.0.2.2:2"))
	if d := cmp.Diff([]string{"192.0.2.2:2"}, targets(h, now.Add(2*time.Minute))); d != "" {
		t.Errorf("to a verified path: %s", d)
	}
	if d := cmp.Diff([]string{"192.0.2.2:2", "192.0.2.1:1"}, targets(h, now.Add(2*time.Minute+5*time.Second))); d != "" {
		t.Errorf("retry after five seconds: %s", d)
	}
}

func TestVerifiedPathOutlivesCandidates(t *testing.T) {
	table := newPathTable()
	table.verify("h", netip.MustParseAddrPort("192.0.2.9:9"))
	table.setCandidates("h", []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:1")})
	h := table.lookup("h")
	if got := h.best().AddrPort.String(); got != "192.0.2.9:9" {
		t.Errorf("best path is %s, want the verified one", got)
	}
	table.setCandidates("h", nil)
	if got := h.DstIP().String(); got != "192.0.2.9" {
		t.Errorf("best path is %s, want the verified one", got)
	}
}

func TestEndpointOfUnknownHostIsRefused(t *testing.T) {
	b := newSplitBind(conn.NewStdNetBind(), newPathTable())
	for _, s := range []string{"host:nobody", "192.0.2.1:51900", ""} {
		if e, err := b.ParseEndpoint(s); err == nil || e != nil {
			t.Errorf("%q: got %v, %v; want an error and no endpoint", s, e, err)
		}
	}
}

func TestSendToHostWithoutAddressIsError(t *testing.T) {
	table := newPathTable()
	table.setCandidates("h", nil)
	b := newSplitBind(conn.NewStdNetBind(), table)
	if err := b.Send([][]byte{make([]byte, 148)}, table.lookup("h")); err == nil {
		t.Error("data to a host without an address was sent somewhere")
	}
	if err := b.Send([][]byte{append([]byte{1}, make([]byte, 147)...)}, table.lookup("h")); err == nil {
		t.Error("an initiation to a host without an address was sent somewhere")
	}
}
