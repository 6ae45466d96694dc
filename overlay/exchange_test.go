package overlay

import (
	"bytes"
	"errors"
	"io"
	"testing"
)

func TestFrameRoundTrip(t *testing.T) {
	var buf bytes.Buffer
	if err := writeFrame(&buf, []byte{frameRecord}, []byte("record")); err != nil {
		t.Fatal(err)
	}
	got, err := readFrame(&buf, 100)
	if err != nil || string(got) != "Rrecord" {
		t.Fatalf("readFrame = %q, %v", got, err)
	}
	if _, err := readFrame(&buf, 100); !errors.Is(err, io.EOF) {
		t.Fatalf("at the end: %v, want io.EOF", err)
	}
}

func TestReadFrameRefuses(t *testing.T) {
	for name, in := range map[string]struct {
		bytes []byte
		want  error
	}{
		"empty frame": {[]byte{0, 0, 0, 0}, errFrame},
		"too long":    {[]byte{0, 0, 0, 11, 'x'}, errFrame},
		"cut short":   {[]byte{0, 0, 0, 5, 'x'}, io.ErrUnexpectedEOF},
		"half a head": {[]byte{0, 0}, io.ErrUnexpectedEOF},
	} {
		if got, err := readFrame(bytes.NewReader(in.bytes), 10); !errors.Is(err, in.want) || got != nil {
			t.Errorf("%s: %q, %v; want %v", name, got, err, in.want)
		}
	}
}

// FuzzReadFrame: a frame that is read is within the limit and is what was sent.
func FuzzReadFrame(f *testing.F) {
	f.Add([]byte{0, 0, 0, 1, 'P'})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 'P'})
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := readFrame(bytes.NewReader(b), 64)
		if err == nil && (len(got) == 0 || len(got) > 64 || !bytes.Equal(got, b[4:4+len(got)])) {
			t.Fatalf("readFrame(%x) = %x", b, got)
		}
	})
}

// FuzzPullRequest: foreign questions parse or are refused, and answering one of them never fails on an empty mesh.
func FuzzPullRequest(f *testing.F) {
	f.Add([]byte(`{"want":["h1"],"policyVersion":1}`))
	f.Add([]byte(`{"have":{"h1":18446744073709551615}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		req, err := parsePullRequest(b)
		if err != nil {
			return
		}
		var out bytes.Buffer
		if err := answerPull(&out, req, &Snapshot{}); err != nil || out.Len() != 0 {
			t.Fatalf("answer of an empty mesh: %d bytes, %v", out.Len(), err)
		}
	})
}
