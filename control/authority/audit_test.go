package authority_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/bulkhead-mesh/bulkhead/control/authority"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

func (w *world) auditFile() []byte {
	w.t.Helper()
	b, err := os.ReadFile(w.auditAt)
	if err != nil {
		w.t.Fatal(err)
	}
	return b
}

func (w *world) fileEntries() []authority.AuditEntry {
	w.t.Helper()
	var all []authority.AuditEntry
	for line := range bytes.Lines(w.auditFile()) {
		e, err := authority.ParseAuditLine(bytes.TrimSuffix(line, []byte("\n")))
		if err != nil {
			w.t.Fatal(err)
		}
		all = append(all, e)
	}
	return all
}

// sameAudit fails unless the file is an unbroken chain of what the store has.
func (w *world) sameAudit() {
	w.t.Helper()
	if _, _, _, err := authority.VerifyAudit(bytes.NewReader(w.auditFile())); err != nil {
		w.t.Fatal(err)
	}
	stored, err := w.Audit(1 << 20)
	if err != nil {
		w.t.Fatal(err)
	}
	if diff := cmp.Diff(stored, w.fileEntries()); diff != "" {
		w.t.Fatalf("store and file differ: %s", diff)
	}
}

func TestEachChangeIsOneLine(t *testing.T) {
	w := newWorld(t)
	w.join("h2", "a2")
	w.put(document)
	if _, err := w.Relabel(operator, "a2", segment.Labels{"function": "other"}, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := w.PutPolicy(viewer, 0, ""); err == nil {
		t.Fatal("a viewer changed the policy")
	}
	if _, err := w.RevokeHost(admin, "h2", "lost <at> \"sea\"\n"); err != nil {
		t.Fatal(err)
	}
	w.sameAudit()
	var got []string
	for _, e := range w.fileEntries() {
		who, _, _ := strings.Cut(e.Who, "/")
		what, _, _ := strings.Cut(e.Target, "/")
		got = append(got, fmt.Sprintf("%d %s %s %s %d %s", e.Seq, who, e.Action, what, e.Version, e.Result))
	}
	want := []string{
		"1 local init mesh 1 done",
		"2 local create token 0 done",
		"3 token enroll host 0 done",
		"4 operator put policy 2 done",
		"5 operator relabel agent 3 done",
		"6 operator put policy 0 denied",
		"7 local revoke host 4 done",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	last, err := w.Audit(2)
	if err != nil || len(last) != 2 || last[1].Seq != 7 || last[1].Detail != "lost <at> \"sea\"\n" {
		t.Errorf("the last two: %+v, %v", last, err)
	}
}

func TestAuditFileIsCompletedAfterACrash(t *testing.T) {
	w := newWorld(t)
	w.join("h2", "a2")
	w.put(document)
	whole := w.auditFile()
	for cut := 0; cut < len(whole); cut += 7 {
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(w.auditAt, whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		w.open()
		if diff := cmp.Diff(string(whole), string(w.auditFile())); diff != "" {
			t.Fatalf("cut at %d: %s", cut, diff)
		}
	}
}

func TestABrokenAuditFileIsRefused(t *testing.T) {
	w := newWorld(t)
	w.join("h2", "a2")
	w.put(document)
	whole := w.auditFile()
	lines := bytes.SplitAfter(whole, []byte("\n"))
	later := bytes.Clone(whole)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{
		"changed":   bytes.Replace(whole, []byte(`"enroll"`), []byte(`"enrolL"`), 1),
		"dropped":   bytes.Join([][]byte{lines[0], lines[2], lines[3]}, nil),
		"swapped":   bytes.Join([][]byte{lines[0], lines[2], lines[1]}, nil),
		"forged":    bytes.Replace(whole, []byte(`"done"`), []byte(`"gone"`), 4),
		"last line": bytes.Replace(whole, []byte(`"action":"put"`), []byte(`"action":"pat"`), 1),
		"not JSON":  []byte("hello\n"),
		"long line": append(bytes.Repeat([]byte("x"), 1<<20), '\n'),
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(w.auditAt, content, 0o600); err != nil {
				t.Fatal(err)
			}
			a, err := authority.Open(w.store, w.options())
			if err == nil {
				err = errors.Join(errors.New("opened"), a.Close())
			}
			if !errors.Is(err, authority.ErrAudit) || !strings.Contains(err.Error(), "fix:") {
				t.Errorf("got %v, want ErrAudit with a fix", err)
			}
			if left, err := os.ReadFile(w.auditAt); err != nil || !bytes.Equal(left, content) {
				t.Errorf("the evidence was changed: %v", err)
			}
		})
	}
	if err := os.WriteFile(w.auditAt, later, 0o600); err != nil {
		t.Fatal(err)
	}
	w.open()
}

// A file from after the store was saved: an old store was restored.
func TestAnOldStoreDoesNotFitItsAuditFile(t *testing.T) {
	w := newWorld(t)
	old := w.store.Clone()
	w.put(document)
	_, err := authority.Open(old, w.options())
	if !errors.Is(err, authority.ErrAudit) {
		t.Errorf("got %v, want ErrAudit", err)
	}
}

// The audit file fails; the change stands, and its line is written once the file is back.
func TestAChangeOutlivesItsAuditFile(t *testing.T) {
	w := newWorld(t)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if change := w.put(document); change.Version != 2 {
		t.Errorf("%+v", change)
	}
	w.open()
	w.sameAudit()
}

// The store keeps the newest entries; a file that was moved away goes on with those.
func TestTheStoreKeepsTheNewestEntries(t *testing.T) {
	w := newWorld(t)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	w.kept = 5
	w.open()
	for range 20 {
		w.token(authority.TokenRequest{})
	}
	if entries, err := w.Audit(100); err != nil || len(entries) != 5 || len(w.fileEntries()) != 21 {
		t.Fatalf("%d entries in the store, %d in the file, %v", len(entries), len(w.fileEntries()), err)
	}
	w.reopen()
	if err := os.Rename(w.auditAt, w.auditAt+".1"); err != nil {
		t.Fatal(err)
	}
	w.reopen()
	w.token(authority.TokenRequest{})
	w.reopen()
	if entries := w.fileEntries(); len(entries) != 6 || entries[0].Seq != 17 || entries[5].Seq != 22 {
		t.Errorf("the new file has %+v", entries)
	}
}

func TestRefusalsOfStrangersAreBounded(t *testing.T) {
	w := newWorld(t)
	for range 500 {
		if _, err := w.Bearer("guess"); err == nil {
			t.Fatal("guessed a token")
		}
	}
	entries, err := w.Audit(1000)
	if err != nil || len(entries) < 10 || len(entries) > 40 {
		t.Fatalf("%d entries for 500 guesses, %v", len(entries), err)
	}
	w.now = w.now.Add(time.Minute)
	if _, err := w.Bearer("guess"); err == nil {
		t.Fatal("guessed a token")
	}
	last, err := w.Audit(1)
	if want := fmt.Sprintf("%d refusals", 500-(len(entries)-1)); err != nil || !strings.Contains(last[0].Detail, want) {
		t.Errorf("%q does not count the %s that were left out", last[0].Detail, want)
	}
}

// Texts from outside are bounded and cannot break a line.
func TestAuditTakesAnyText(t *testing.T) {
	w := newWorld(t)
	rapid.Check(t, func(r *rapid.T) {
		w.now = w.now.Add(time.Minute)
		p := authority.Principal{Name: text(r), From: text(r), Role: authority.Role(text(r))}
		if _, err := w.RevokeHost(p, text(r), text(r)); err == nil {
			t.Fatal("nobody revoked a host")
		}
	})
	w.sameAudit()
}

func text(r *rapid.T) string {
	return string(rapid.SliceOfN(rapid.Byte(), 0, 2000).Draw(r, "text"))
}

// What parses is exactly what would be written.
func FuzzParseAuditLine(f *testing.F) {
	line, err := json.Marshal(authority.AuditEntry{Time: start, Seq: 7, Who: "operator/alice", Role: authority.RoleOperator,
		From: "192.0.2.1:4", Action: "put", Target: "policy", Version: 3, Result: "done", Detail: "<&>", Prev: strings.Repeat("ab", 32)})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(line)
	f.Add([]byte(`{}`))
	f.Add(append(line, line...))
	f.Add(bytes.Replace(line, []byte(`"seq":7`), []byte(`"seq":7,"seq":8`), 1))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := authority.ParseAuditLine(b)
		if err != nil {
			if !errors.Is(err, authority.ErrAudit) {
				t.Fatalf("%v is not ErrAudit", err)
			}
			return
		}
		if again, err := json.Marshal(e); err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%s is written as %s, %v", b, again, err)
		}
	})
}

// Whatever a file holds, what VerifyAudit accepts is a chain without gaps that ends at whole.
func FuzzVerifyAudit(f *testing.F) {
	w := newWorld(f)
	w.put(document)
	file := w.auditFile()
	f.Add(file)
	f.Add(file[:len(file)-5])
	f.Add(file[bytes.IndexByte(file, '\n')+1:])
	f.Fuzz(func(t *testing.T, b []byte) {
		last, _, whole, err := authority.VerifyAudit(bytes.NewReader(b))
		if err != nil {
			return
		}
		lines := bytes.Count(b[:whole], []byte("\n"))
		if bytes.ContainsRune(b[whole:], '\n') || uint64(lines) > last.Seq {
			t.Fatalf("%d lines end at entry %d", lines, last.Seq)
		}
	})
}
