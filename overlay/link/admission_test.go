package link

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quic-go/quic-go"
)

func info(ip string) *quic.ClientInfo {
	return &quic.ClientInfo{RemoteAddr: &net.UDPAddr{IP: net.ParseIP(ip), Port: 1}}
}

func TestAdmissionBoundsEachSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var refused atomic.Uint64
		a := newAdmission(&refused)
		ctx, cancel := context.WithCancel(t.Context())
		var one context.Context
		for range maxHandshakesSource {
			var err error
			if one, err = a.admit(ctx, info("2001:db8::1")); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := a.admit(ctx, info("2001:db8::2")); err == nil {
			t.Error("another address of the same /64 was admitted")
		}
		if _, err := a.admit(ctx, info("192.0.2.1")); err != nil {
			t.Errorf("another source: %v", err)
		}
		release(one)
		release(one) // counts once
		if _, err := a.admit(ctx, info("2001:db8::2")); err != nil {
			t.Errorf("after a release: %v", err)
		}
		if _, err := a.admit(ctx, info("2001:db8::2")); err == nil {
			t.Error("a release has freed two places")
		}
		if refused.Load() != 2 {
			t.Errorf("counted %d refused, want 2", refused.Load())
		}
		cancel()
		synctest.Wait()
		if a.total != 0 || len(a.bySource) != 0 {
			t.Errorf("after all have ended %d are counted, sources %v", a.total, a.bySource)
		}
	})
}

func TestAdmissionForgetsWhatNeverEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAdmission(new(atomic.Uint64))
		if _, err := a.admit(context.Background(), info("192.0.2.1")); err != nil {
			t.Fatal(err)
		}
		<-time.After(handshakeLimit)
		synctest.Wait()
		if a.total != 0 {
			t.Errorf("%d counted after the limit", a.total)
		}
	})
}

func TestAddressProofIsAskedForUnderLoad(t *testing.T) {
	a := newAdmission(new(atomic.Uint64))
	if a.needsRetry(nil) {
		t.Error("asked at rest")
	}
	for range freeHandshakes {
		if _, err := a.admit(t.Context(), info("192.0.2.1")); err != nil {
			t.Fatal(err)
		}
	}
	if !a.needsRetry(nil) {
		t.Error("not asked with many handshakes under way")
	}
	b := newAdmission(new(atomic.Uint64))
	asked := false
	for range 1000 {
		asked = asked || b.needsRetry(nil)
	}
	if !asked {
		t.Error("not asked after a thousand in a moment")
	}
}
