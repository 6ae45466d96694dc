package lab

import (
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bulkhead-mesh/bulkhead/control/authority"
)

// newToken makes a token on the control host.
func newToken(t *testing.T, m *Mesh, flags ...string) string {
	t.Helper()
	out, err := m.Hosts[0].Run(t.Context(), append([]string{"token", "create", "-o", "json"}, flags...)...)
	if err != nil {
		t.Fatal(err)
	}
	var created struct{ Token string }
	if err := json.Unmarshal(out, &created); err != nil {
		t.Fatal(err)
	}
	return created.Token
}

// tokenID is the id of the token that was made last.
func tokenID(t *testing.T, m *Mesh) string {
	t.Helper()
	var tokens []authority.TokenInfo
	out, err := m.Hosts[0].Run(t.Context(), "token", "list", "-o", "json")
	if err == nil {
		err = json.Unmarshal(out, &tokens)
	}
	if err != nil {
		t.Fatal(err)
	}
	newest := slices.MaxFunc(tokens, func(a, b authority.TokenInfo) int { return a.Created.Compare(b.Created) })
	return newest.ID
}

// newcomer is a host that is in no mesh yet.
func newcomer(t *testing.T, m *Mesh, name string, number int) *Node {
	t.Helper()
	host, err := m.World.AddHost(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Switch.Connect(host, hostPrefixes(number)...); err != nil {
		t.Fatal(err)
	}
	return &Node{Host: host, mesh: m}
}

func (n *Node) left(t *testing.T) []os.DirEntry {
	t.Helper()
	entries, err := os.ReadDir(n.StateDir())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return entries
}

// TestJoinRefuses: each fault has an error and exit code of its own, and leaves nothing behind. (A clock that is off is
// tried in control/authority: namespaces share one clock.)
func TestJoinRefuses(t *testing.T) {
	m := newTestMesh(t, Spec{}, Spec{Agent: "plan1", Labels: labels("plan", "internal")})
	late := newcomer(t, m, "late", 9)
	good := newToken(t, m, "--grant", "function=plan", "--uses", "100")
	used := newToken(t, m, "--uses", "1")
	if _, err := newcomer(t, m, "first", 10).Run(t.Context(), "join", used, "--name", "first"); err != nil {
		t.Fatal(err)
	}
	revoked := newToken(t, m)
	if _, err := m.Hosts[0].Run(t.Context(), "token", "revoke", tokenID(t, m)); err != nil {
		t.Fatal(err)
	}
	const damaged = "the token is damaged or was changed"
	expired := newToken(t, m, "--ttl", "1s")
	<-time.After(time.Second) // the error would be another before
	said := map[string]string{}
	for name, c := range map[string]struct {
		args []string
		code int
		says string
	}{
		"used up":             {[]string{used, "--name", "late"}, 1, "used up"},
		"expired":             {[]string{expired, "--name", "late"}, 1, "expired"},
		"revoked":             {[]string{revoked, "--name", "late"}, 1, "no such token"},
		"tampered":            {[]string{tamper(good), "--name", "late"}, 1, damaged},
		"cut off":             {[]string{good[:len(good)/2], "--name", "late"}, 1, damaged},
		"no token":            {[]string{"bh1.", "--name", "late"}, 1, damaged},
		"name taken":          {[]string{good, "--name", "h2"}, 1, `host "h2"`},
		"agent taken":         {[]string{good, "--name", "late", "--agent", "plan1", "--label", "function=plan"}, 1, `agent "plan1"`},
		"outside the grant":   {[]string{good, "--name", "late", "--agent", "x", "--label", "function=store"}, 1, "does not grant function=store"},
		"no such name":        {[]string{good, "--name", "LATE_1"}, 1, "--name"},
		"label without a =":   {[]string{good, "--name", "late", "--agent", "x", "--label", "plan"}, 2, `label "plan" has no value`},
		"label without agent": {[]string{good, "--name", "late", "--label", "function=plan"}, 2, "--label"},
	} {
		_, err := late.Run(t.Context(), append([]string{"join"}, c.args...)...)
		failed, ok := errors.AsType[*ExitError](err)
		if !ok || failed.Code != c.code || !strings.Contains(failed.Stderr, c.says) {
			t.Errorf("%s: got %v, want exit code %d and %q", name, err, c.code, c.says)
			continue
		}
		if other := said[failed.Stderr]; other != "" && c.says != damaged {
			t.Errorf("%s and %s are told the same: %s", name, other, failed.Stderr)
		}
		said[failed.Stderr] = name
		if left := late.left(t); len(left) != 0 {
			t.Errorf("%s: left %v", name, left)
		}
	}
	t.Run("control is away", func(t *testing.T) {
		if err := m.Hosts[0].Daemon.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		_, err := late.Run(t.Context(), "join", good, "--name", "late")
		if failed, ok := errors.AsType[*ExitError](err); !ok || failed.Code != 3 || len(late.left(t)) != 0 {
			t.Errorf("got %v, left %v", err, late.left(t))
		}
		if err := m.Hosts[0].StartDaemon(); err != nil {
			t.Fatal(err)
		}
		if err := m.Hosts[0].Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
	if _, err := late.Run(t.Context(), "join", good, "--name", "late", "--agent", "x", "--label", "function=plan"); err != nil {
		t.Errorf("after all that: %v", err)
	}
	if _, err := late.Run(t.Context(), "join", good, "--name", "later"); err == nil || !strings.Contains(err.Error(), "already holds a host") {
		t.Errorf("a second join: %v", err)
	}
}

// tamper changes a character in the middle.
func tamper(token string) string {
	b := []byte(token)
	if i := len(b) * 3 / 4; b[i] == 'A' {
		b[i] = 'B'
	} else {
		b[i] = 'A'
	}
	return string(b)
}

// TestJoinTwoAtOnce: of two that want one name, or the last use of a token, one gets it.
func TestJoinTwoAtOnce(t *testing.T) {
	m := newTestMesh(t, Spec{})
	for i, c := range []struct {
		what  string
		token string
		names [2]string
	}{
		{"one use", newToken(t, m, "--uses", "1"), [2]string{"one", "two"}},
		{"one name", newToken(t, m, "--uses", "9"), [2]string{"same", "same"}},
	} {
		var joining sync.WaitGroup
		var errs [2]error
		for k := range errs {
			n := newcomer(t, m, c.names[k]+strings.Repeat("x", 2*i+k), 20+2*i+k)
			joining.Go(func() { _, errs[k] = n.Run(t.Context(), "join", c.token, "--name", c.names[k]) })
		}
		joining.Wait()
		if (errs[0] == nil) == (errs[1] == nil) {
			t.Errorf("%s: got %v and %v", c.what, errs[0], errs[1])
		}
	}
}
