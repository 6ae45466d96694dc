package platform

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-mesh/bulkhead/overlay"
)

// limit is 2 s, and more where reading all back, else some 60 ms, shows that this machine is overloaded.
func (w *world) limit(t *testing.T) time.Duration {
	t.Helper()
	start := time.Now()
	for range 3 {
		if err := w.check(t); err != nil {
			t.Fatal(err)
		}
	}
	return 2*time.Second + 10*max(0, time.Since(start)-3*60*time.Millisecond)
}

func TestGuardPutsBackWhatOthersTakeAway(t *testing.T) {
	w := newWorld(t)
	w.here.sh(t, foreign)
	w.fence(t)
	w.apply(t, append(grant(overlay.In, protoTCP, 443, 443), grant(overlay.In, protoUDP, 4000, 6000)...)...)
	drift := w.guard(t)
	wide := ""
	for _, name := range strings.Fields(w.here.sh(t, "ipset list -n")) {
		if strings.HasPrefix(name, "bulkhead-i4u") {
			wide = name
		}
	}
	for _, damage := range []string{
		"iptables -t mangle -F",
		"ip6tables -t mangle -F",
		"iptables -F; iptables -t raw -F; ip6tables -t raw -F",
		"iptables -t mangle -F BULKHEAD-OUT",
		"iptables -t mangle -D BULKHEAD-IN 2",
		"iptables -t mangle -I BULKHEAD-IN 1 -j RETURN",
		"iptables -t mangle -I PREROUTING 1 -j ACCEPT; ip6tables -t raw -I PREROUTING 1 -j ACCEPT",
		"ipset flush bulkhead-in4",
		"ipset flush " + wide,
		"ipset add bulkhead-in4 10.201.0.2,tcp:22,10.201.0.1",
		"ipset flush",
		"nft flush ruleset",
		"nft flush ruleset; ipset destroy",
		"ip route del unreachable 10.201.0.0/16 metric 4294967280",
		"ip -6 route flush type unreachable",
	} {
		t.Run(damage, func(t *testing.T) {
			for len(drift) > 0 {
				<-drift
			}
			limit := w.limit(t)
			w.here.sh(t, damage)
			start := time.Now()
			select {
			case err := <-drift:
				if !errors.Is(err, ErrDrift) {
					t.Errorf("reported %v", err)
				}
			case <-time.After(limit):
				t.Errorf("not noticed within %s", limit)
			}
			eventually(t, limit-time.Since(start), "put back", func() bool { return w.check(t) == nil })
		})
	}
}

func TestGuardCutsWhatAFlushLetIn(t *testing.T) {
	w := newWorld(t)
	w.fence(t)
	limit := w.limit(t)
	w.here.sh(t, "nft flush ruleset")
	s := openStream(t, "tcp", w.there, w.here, there4, here4, 443)
	w.guard(t)
	eventually(t, limit, "the connection is closed", func() bool { _, _, errs := s.state(); return errs[1] != nil })
	s.silent(t)
}

func TestOthersMayEditAtTheSameTime(t *testing.T) {
	w := newWorld(t)
	w.fence(t)
	drift := w.guard(t)
	done := make(chan error)
	const edits = 60
	go func() {
		done <- w.here.do(func() error {
			for i := range edits {
				for _, edit := range []string{"-I PREROUTING -p tcp --dport %d -j RETURN", "-D PREROUTING -p tcp --dport %d -j RETURN", "-A POSTROUTING -p tcp --dport %d -j RETURN"} {
					if err := shell("iptables -w -t mangle " + fmt.Sprintf(edit, 1000+i)); err != nil {
						return err
					}
				}
			}
			return nil
		})
	}()
	for i := uint16(0); ; i++ {
		w.apply(t, append(grant(overlay.In, protoTCP, 443, 443+i%3), grant(overlay.Out, protoTCP, 1000, 2000+i)...)...)
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			eventually(t, expected, "in order again", func() bool { return w.check(t) == nil })
			if got := strings.Count(w.here.sh(t, "iptables -t mangle -S POSTROUTING"), "--dport"); got != edits {
				t.Errorf("%d of the other program's %d rules are left", got, edits)
			}
			for len(drift) > 0 {
				if err := <-drift; !errors.Is(err, ErrDrift) {
					t.Error(err)
				}
			}
			return
		default:
		}
	}
}
