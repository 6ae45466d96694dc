package overlay_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bulkhead-mesh/bulkhead/overlay"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity/identitytest"
	"github.com/bulkhead-mesh/bulkhead/overlay/overlaytest"
	"github.com/bulkhead-mesh/bulkhead/overlay/signed"
)

func TestRefusals(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		store, old := w.members["h3"], w.newest
		w.submit(w.policy(denyDocument))
		w.pass(soon)
		forked := w.newest.Policy
		forked.Author = "operator/eve"
		orphan := forked
		orphan.Version++
		orphan.Parent = old.Digest
		foreign := identitytest.NewAt(t, meshName, time.Now())
		sign := func(r signed.Record, key identity.Key) []byte {
			raw, err := signed.SignRecord(r, key)
			if err != nil {
				t.Fatal(err)
			}
			return raw
		}
		stranger := foreign.Host("h2")
		strange := w.recordOf("h2", 1<<60)
		strange.Certificate, strange.Agents = stranger.Chain, nil
		sequence := store.Snapshot().Records["h2"].Sequence
		for _, c := range []struct {
			reason string
			submit func() error
		}{
			{"policy-replayed", func() error { return store.SubmitPolicy(old.Raw) }},
			{"policy-forked", func() error { return store.SubmitPolicy(w.sign(forked).Raw) }},
			{"policy-forked", func() error { return store.SubmitPolicy(w.sign(orphan).Raw) }},
			{"policy-malformed", func() error { return store.SubmitPolicy([]byte("{}")) }},
			{"record-replayed", func() error {
				return store.SubmitRecord(sign(w.recordOf("h2", sequence-1), w.members["h2"].self.Key))
			}},
			{"record-forked", func() error {
				return store.SubmitRecord(sign(w.recordOf("h2", sequence), w.members["h2"].self.Key))
			}},
			{"record-forged", func() error {
				return store.SubmitRecord(sign(w.recordOf("h2", 1<<60), w.members["h3"].self.Key))
			}},
			{"record-foreign", func() error { return store.SubmitRecord(sign(strange, stranger.Key)) }},
		} {
			before := store.Snapshot()
			err := c.submit()
			synctest.Wait()
			after := store.Snapshot()
			if err == nil || after.Refused[c.reason] != before.Refused[c.reason]+1 {
				t.Errorf("%s: error %v, counted %v", c.reason, err, after.Refused)
			}
			if after.Enforced != before.Enforced || after.Records["h2"] != before.Records["h2"] {
				t.Errorf("%s has changed something", c.reason)
			}
		}
	})
}

// Nothing to bring is what a quiet host has, for hours: it is no reason to ask it late when it has something.
func TestQuietHostsAreAskedAtOnce(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.net.Partition([]string{"h1"}, []string{"h2", "h3"})
		w.pass(30 * time.Minute)
		reader, store := w.members["h2"], w.members["h3"]
		w.newest = w.policy(denyDocument)
		if err := reader.SubmitPolicy(w.newest.Raw); err != nil {
			t.Fatal(err)
		}
		w.pass(time.Second)
		if got := store.Snapshot().Enforced; got != w.newest.Version {
			t.Errorf("h3 enforces %d a second after h2 had version %d", got, w.newest.Version)
		}
	})
}

// hostile is a member that says that it has news, and answers as it likes.
func (w *world) hostile(name string, answer func(overlay.Stream)) *overlaytest.Node {
	w.t.Helper()
	w.enrol(name, "agent-"+name, map[string]string{"function": "read"})
	w.introduce()
	w.pass(2 * time.Second)
	w.members[name].stop()
	node := w.net.Node(name)
	node.OnStream(overlay.KindPull, func(_ context.Context, _ string, s overlay.Stream) { answer(s) })
	return node
}

// lie sends hints to everyone until the test ends.
func (w *world) lie(ctx context.Context, node *overlaytest.Node) {
	payload, err := overlay.Hint{RecordSequence: 1 << 62, PolicyVersion: 1 << 40}.AppendBinary(nil)
	if err != nil {
		w.t.Error(err)
	}
	for tick := time.NewTicker(50 * time.Millisecond); ctx.Err() == nil; {
		for _, victim := range []string{"h1", "h2", "h3"} {
			_ = node.Send(victim, overlay.KindHint, payload)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// Members that promise news and are silent, or flood, hold up nobody's policy.
func TestHostileMembersDelayNoPolicy(t *testing.T) {
	for name, answer := range map[string]func(raw []byte, s overlay.Stream){
		"silent": func(_ []byte, s overlay.Stream) { _, _ = io.Copy(io.Discard, s); <-time.After(time.Minute) },
		"flooding": func(raw []byte, s overlay.Stream) {
			frame := append(binary.BigEndian.AppendUint32(nil, uint32(1+len(raw))), 'R')
			for {
				if _, err := s.Write(append(frame, raw...)); err != nil {
					return
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				ctx, cancel := context.WithCancel(t.Context())
				var lying sync.WaitGroup
				defer lying.Wait()
				defer cancel()
				for i := range 8 {
					host := fmt.Sprint("h", i+4)
					var raw []byte
					node := w.hostile(host, func(s overlay.Stream) { answer(raw, s) })
					raw = w.members["h1"].Snapshot().Records[host].Raw
					lying.Go(func() { w.lie(ctx, node) })
				}
				for range 5 {
					w.pass(7 * time.Second)
					w.submit(w.policy(fmt.Sprintf(readsDocument, "")))
					w.pass(soon)
					for _, host := range []string{"h1", "h2", "h3"} {
						if got := w.members[host].Snapshot().Enforced; got != w.newest.Version {
							t.Errorf("%s enforces %d of %d", host, got, w.newest.Version)
						}
					}
				}
				if refused := w.members["h2"].Snapshot().Refused; name == "flooding" && (refused["record-useless"] == 0 || refused["event-overflow"] > 0) {
					t.Errorf("refused were %v", refused)
				}
			})
		})
	}
}

func TestRevokedHostIsCutBeforeItsConnectionsAre(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		store := w.members["h3"]
		store.mu.Lock()
		store.log = nil
		store.mu.Unlock()
		w.pass(time.Second) // a certificate of this second would be newer than the revocation
		w.submit(w.policy(fmt.Sprintf(readsDocument, ""), identity.Revocation{ID: "host/h2", Before: time.Now()}))
		w.pass(soon)
		if got := strings.Join(store.log, ", "); got != "firewall 0, forget h2, void" { // the kernel first
			t.Errorf("h3 did: %s", got)
		}
		if store.peers() != 0 || store.Known("h2") {
			t.Error("h3 still knows the revoked host")
		}
		// A policy that has lost the revocation does not undo it.
		w.submit(w.policy(fmt.Sprintf(readsDocument, "")))
		w.pass(soon)
		if store.Snapshot().Enforced != w.newest.Version || store.Known("h2") {
			t.Error("the revocation is forgotten")
		}
		// What it signs from now on is refused, and a restart does not bring it back.
		raw, err := signed.SignRecord(w.recordOf("h2", 1<<60), w.members["h2"].self.Key)
		if err != nil {
			t.Fatal(err)
		}
		if err := store.SubmitRecord(raw); !errors.Is(err, identity.ErrRevoked) {
			t.Errorf("the record of a revoked host: %v", err)
		}
		w.submit(w.policy(fmt.Sprintf(readsDocument, ""), identity.Revocation{ID: "host/h2", Before: time.Now()}))
		w.pass(soon)
		store.stop()
		w.start(store)
		if store.Known("h2") || store.grants() != 0 || store.Snapshot().Refused["record-revoked"] != 0 {
			t.Error("the revoked host is back, or was still stored")
		}
	})
}

// recordOf is what a host could sign now.
func (w *world) recordOf(host string, sequence uint64) signed.Record {
	r := w.members[host].self.Record
	r.Mesh, r.Host, r.Sequence, r.Issued, r.Expires = meshName, host, sequence, time.Now(), time.Now().Add(time.Hour)
	return r
}
