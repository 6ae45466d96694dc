package authority

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/bulkhead-mesh/bulkhead/overlay"
)

const (
	maxAuditLine  = 32 << 10 // more than seven clipped texts, each byte escaped
	maxAuditField = 512      // bytes of a text that came from outside
	auditKept     = 100_000  // entries in the store; the file has all
	resultDone    = "done"
)

// ErrAudit is returned when an audit file is not the unbroken chain that was written.
var ErrAudit = errors.New("audit record is broken")

var errForked = fmt.Errorf("%w: file and store do not continue each other (fix: was one restored without the other? Keep the file as evidence under another name; it is written again from the store)", ErrAudit)

// AuditEntry is one line of the audit record. Each carries the hash of the line before it.
type AuditEntry struct {
	Time    time.Time `json:"time"`
	Seq     uint64    `json:"seq"` // from 1, without gaps
	Who     string    `json:"who"`
	Role    Role      `json:"role,omitempty"`
	From    string    `json:"from,omitempty"`
	Action  string    `json:"action"`
	Target  string    `json:"target,omitempty"`
	Version uint64    `json:"version,omitempty"` // the policy version that the change made
	Result  string    `json:"result"`            // done, or the code of the refusal
	Detail  string    `json:"detail,omitempty"`
	Prev    string    `json:"prev"` // SHA-256 of the line before, hex; of nothing for the first
}

// ParseAuditLine decodes one line without its newline; what this package would not write is ErrAudit.
func ParseAuditLine(line []byte) (AuditEntry, error) {
	var e AuditEntry
	if len(line) > maxAuditLine {
		return e, fmt.Errorf("%w: line of %d bytes", ErrAudit, len(line))
	}
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(&e); err != nil {
		return AuditEntry{}, fmt.Errorf("%w: %v", ErrAudit, err)
	}
	if again, err := json.Marshal(e); err != nil || !bytes.Equal(again, line) {
		return AuditEntry{}, fmt.Errorf("%w: line %d is not in the form it was written", ErrAudit, e.Seq)
	}
	return e, nil
}

// lineHash is what the next line carries as Prev.
func lineHash(line []byte) string {
	sum := sha256.Sum256(line)
	return hex.EncodeToString(sum[:])
}

// VerifyAudit reads an audit file and returns its last entry and that line's hash. An unfinished last line,
// as a crash leaves it, is not an error; whole is the length of what stands before it.
func VerifyAudit(r io.Reader) (last AuditEntry, hash string, whole int64, err error) {
	hash = lineHash(nil)
	lines := bufio.NewReaderSize(r, maxAuditLine+1)
	for {
		line, err := lines.ReadSlice('\n')
		if errors.Is(err, io.EOF) {
			return last, hash, whole, nil
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return last, hash, whole, fmt.Errorf("read audit: %w", err)
		}
		e, err := ParseAuditLine(bytes.TrimSuffix(line, []byte("\n")))
		if err != nil {
			return last, hash, whole, fmt.Errorf("after line %d: %w", last.Seq, err)
		}
		first := last.Seq == 0 && e.Seq > 1 // the lines before are in a file that was moved away
		if !first && (e.Seq != last.Seq+1 || e.Prev != hash) {
			return last, hash, whole, fmt.Errorf("%w: line %d does not follow line %d", ErrAudit, e.Seq, last.Seq)
		}
		last, hash = e, lineHash(line[:len(line)-1])
		whole += int64(len(line))
	}
}

// record adds an entry to the transaction.
func (t *txn) record(p Principal, action, target string, version uint64, result, detail string) error {
	t.AuditSeq++
	if t.AuditHash == "" {
		t.AuditHash = lineHash(nil)
	}
	line, err := json.Marshal(AuditEntry{
		Time: t.now.UTC().Round(0), Seq: t.AuditSeq, Who: clip(p.Name), Role: Role(clip(string(p.Role))), From: clip(p.From),
		Action: clip(action), Target: clip(target), Version: version, Result: clip(result), Detail: clip(detail), Prev: t.AuditHash,
	})
	if err != nil {
		return fmt.Errorf("record %s: %w", action, err)
	}
	t.AuditHash = lineHash(line)
	if kept := t.a.options.AuditKept; t.AuditSeq > kept && t.AuditSeq-kept <= t.filed {
		if _, err := t.Delete(bucketAudit, number(t.AuditSeq-kept)); err != nil {
			return err
		}
	}
	return t.Put(bucketAudit, number(t.AuditSeq), line)
}

// clip bounds a text from outside and makes it valid UTF-8.
func clip(s string) string {
	return strings.ToValidUTF8(s[:min(len(s), maxAuditField)], "\uFFFD")
}

// auditFile is the append-only file. Its lines are those of the store, in order.
type auditFile struct {
	f    *os.File
	size int64  // bytes of whole lines
	seq  uint64 // of the last line
	hash string
}

// openAudit opens or creates the file, verifies its chain and cuts an unfinished last line off.
func openAudit(path string) (_ *auditFile, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open audit file: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	last, hash, whole, err := VerifyAudit(f)
	if err != nil {
		return nil, fmt.Errorf("verify %s: %w (fix: keep it as evidence under another name; it is written again from the store)", path, err)
	}
	if err := f.Truncate(whole); err != nil {
		return nil, fmt.Errorf("cut audit file: %w", err)
	}
	return &auditFile{f: f, size: whole, seq: last.Seq, hash: hash}, nil
}

// append writes whole lines durably, or none.
func (a *auditFile) append(lines []byte, seq uint64, hash string) error {
	_, err := a.f.Write(lines)
	if err == nil {
		err = a.f.Sync()
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write audit file: %w", err), a.f.Truncate(a.size))
	}
	a.size, a.seq, a.hash = a.size+int64(len(lines)), seq, hash
	return nil
}

func (a *auditFile) close() error { return a.f.Close() }

// complete appends the lines that the store has and the file has not, a thousand at a time.
func (a *auditFile) complete(store overlay.Store, kept uint64) error {
	for {
		var lines []byte
		var seq uint64
		var hash string
		err := store.View(func(tx overlay.Tx) (err error) {
			lines, seq, hash, err = a.missing(tx, kept)
			return err
		})
		if err != nil || len(lines) == 0 {
			return err
		}
		if err := a.append(lines, seq, hash); err != nil {
			return err
		}
	}
}

// missing returns the next lines to append; none when the file is complete.
func (a *auditFile) missing(tx overlay.Tx, kept uint64) (lines []byte, seq uint64, hash string, err error) {
	var c counters
	if _, err := get(tx, bucketMeta, keyCounters, &c); err != nil {
		return nil, 0, "", err
	}
	seq, hash = a.seq, a.hash
	fresh := seq == 0
	if fresh && c.AuditSeq > kept {
		seq = c.AuditSeq - kept
	}
	for n := 0; seq < c.AuditSeq && n < 1000; n++ {
		line := tx.Get(bucketAudit, number(seq+1))
		e, err := ParseAuditLine(line)
		if err != nil {
			return nil, 0, "", fmt.Errorf("line %d in the store: %w", seq+1, err)
		}
		if e.Prev != hash && !(fresh && n == 0) {
			return nil, 0, "", errForked
		}
		lines = append(append(lines, line...), '\n')
		seq, hash = seq+1, lineHash(line)
	}
	if seq > c.AuditSeq || seq == c.AuditSeq && hash != c.AuditHash {
		return nil, 0, "", errForked
	}
	return lines, seq, hash, nil
}

// Audit returns the newest entries, at most limit, oldest first.
func (a *Authority) Audit(limit int) ([]AuditEntry, error) {
	var entries []AuditEntry
	err := a.store.View(func(tx overlay.Tx) error {
		var c counters
		if _, err := get(tx, bucketMeta, keyCounters, &c); err != nil {
			return err
		}
		for seq := c.AuditSeq; seq > 0 && len(entries) < limit; seq-- {
			line := tx.Get(bucketAudit, number(seq))
			if line == nil {
				break
			}
			e, err := ParseAuditLine(line)
			if err != nil {
				return err
			}
			entries = append(entries, e)
		}
		slices.Reverse(entries)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read audit: %w", err)
	}
	return entries, nil
}
