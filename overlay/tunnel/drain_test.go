package tunnel

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.zx2c4.com/wireguard/tun"
)

// scriptedTUN gives what the test says: each read one group of packets, at the end an error.
type scriptedTUN struct {
	tun.Device
	reads [][]string
}

var errScriptEnds = errors.New("no more packets")

func (s *scriptedTUN) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	if len(s.reads) == 0 {
		return 0, errScriptEnds
	}
	for i, packet := range s.reads[0] {
		sizes[i] = copy(bufs[i][offset:], packet)
	}
	n := len(s.reads[0])
	s.reads = s.reads[1:]
	return n, nil
}

func drainAll(t *testing.T, batch int, reads ...[]string) (batches [][]string) {
	t.Helper()
	script := &scriptedTUN{reads: reads}
	d := &drainingTUN{Device: script, readable: func() bool { return len(script.reads) > 0 }}
	d.packets, d.sizes = make([][]byte, 8), make([]int, 8)
	for i := range d.packets {
		d.packets[i] = make([]byte, 32)
	}
	const offset = 4
	bufs, sizes := make([][]byte, batch), make([]int, batch)
	for i := range bufs {
		bufs[i] = make([]byte, 32)
	}
	for {
		n, err := d.Read(bufs, sizes, offset)
		var got []string
		for i := range n {
			got = append(got, string(bufs[i][offset:offset+sizes[i]]))
		}
		if n > 0 {
			batches = append(batches, got)
		}
		if err != nil {
			return batches
		}
	}
}

func TestDrainReadsWhatWaitsTogether(t *testing.T) {
	for name, c := range map[string]struct {
		batch int
		reads [][]string
		want  [][]string
	}{
		"single packets together":          {8, [][]string{{"a"}, {"bb"}, {"ccc"}}, [][]string{{"a", "bb", "ccc"}}},
		"a full batch ends":                {2, [][]string{{"a"}, {"b"}, {"c"}}, [][]string{{"a", "b"}, {"c"}}},
		"a segmented packet goes alone":    {8, [][]string{{"a", "b", "c"}, {"d"}}, [][]string{{"a", "b", "c"}, {"d"}}},
		"segments end the batch they join": {8, [][]string{{"a"}, {"b", "c"}, {"d"}}, [][]string{{"a", "b", "c"}, {"d"}}},
		"segments that do not fit come next, and none is lost": {
			3, [][]string{{"a"}, {"b", "c", "d", "e", "f", "g"}, {"h"}}, [][]string{{"a", "b", "c"}, {"d", "e", "f"}, {"g"}, {"h"}},
		},
	} {
		if d := cmp.Diff(c.want, drainAll(t, c.batch, c.reads...)); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
}

func TestDrainReturnsPacketsWithTheError(t *testing.T) {
	script := &scriptedTUN{reads: [][]string{{"a"}}}
	d := &drainingTUN{Device: script, readable: func() bool { return true }, packets: [][]byte{make([]byte, 8)}, sizes: make([]int, 1)}
	n, err := d.Read([][]byte{make([]byte, 8), make([]byte, 8)}, make([]int, 2), 0)
	if n != 1 || !errors.Is(err, errScriptEnds) {
		t.Errorf("got %d packets and %v, want the packet and the error", n, err)
	}
}
