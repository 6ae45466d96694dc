package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/bulkhead-mesh/bulkhead/control/authority"
)

// used is how many hosts have joined with the token.
func used(t *testing.T, m *Mesh, token string) int {
	t.Helper()
	id := parsedToken(t, token).ID
	var tokens []authority.TokenInfo
	out, err := m.Hosts[0].Run(t.Context(), "token", "list", "-o", "json")
	must(t, err)
	must(t, json.Unmarshal(out, &tokens))
	i := slices.IndexFunc(tokens, func(info authority.TokenInfo) bool { return info.ID == id })
	if i < 0 {
		t.Fatalf("control does not know token %s", id)
	}
	return tokens[i].Used
}

func parsedToken(t *testing.T, token string) authority.Token {
	t.Helper()
	parsed, err := authority.ParseToken(token)
	must(t, err)
	return parsed
}

// edited is the token with something else in it, and the checksum that belongs to that.
func edited(t *testing.T, token string, edit func(*authority.Token)) string {
	t.Helper()
	parsed := parsedToken(t, token)
	edit(&parsed)
	return parsed.String()
}

// TestForgedTokens: a token that was changed in any part, even by someone who knows its form, lets nobody in, says why,
// and is as good as before.
func TestForgedTokens(t *testing.T) {
	m := newTestMesh(t, Spec{}, Spec{})
	late := newcomer(t, m, "late", 9)
	shell(t, m.node("h2").Host, "iptables -A INPUT -p tcp --dport 7444 -j DROP")
	good := newToken(t, m)
	at := func(addresses ...string) string {
		return edited(t, good, func(k *authority.Token) { k.Addresses = addresses })
	}
	said := map[string]string{}
	refused := func(what, token string, code int, says string) {
		t.Helper()
		_, err := late.Run(t.Context(), "join", token, "--name", "late")
		failed, ok := errors.AsType[*ExitError](err)
		if !ok || failed.Code != code || !strings.Contains(failed.Stderr, says) || !strings.Contains(failed.Stderr, "(fix: ") {
			t.Errorf("%s: got %v, want exit code %d, %q and how to mend it", what, err, code, says)
			return
		}
		if other := said[failed.Stderr]; other != "" {
			t.Errorf("%s and %s are told the same: %s", what, other, failed.Stderr)
		}
		said[failed.Stderr] = what
		if strings.Contains(failed.Stderr, token[len(token)/2:]) {
			t.Errorf("%s: the error shows the token: %s", what, failed.Stderr)
		}
		if left := late.left(t); len(left) != 0 {
			t.Errorf("%s: left %v", what, left)
		}
	}
	refused("the id", edited(t, good, func(k *authority.Token) { k.ID = "00" + k.ID[2:] }), 1, "no such token")
	clear(said) // nobody may learn which ids there are
	refused("the secret", edited(t, good, func(k *authority.Token) { k.Secret[31] ^= 1 }), 1, "no such token")
	refused("the root", edited(t, good, func(k *authority.Token) { k.Root[0] ^= 1 }), 1, "not control of this mesh")
	refused("the mesh", edited(t, good, func(k *authority.Token) { k.Mesh = "other.test" }), 1, "not control of this mesh")
	refused("no address", at(), 1, "names no address")
	refused("an address without a host", at("192.168.77.250:7443"), 3, "192.168.77.250:7443")
	refused("an address without a server", at("192.168.77.2:7443"), 3, "connection refused")
	refused("an address that is silent", at("192.168.77.2:7444"), 3, "192.168.77.2:7444")
	refused("a token for programs", newToken(t, m, "--role", "viewer"), 4, "API token")
	for i := 0; i < len(good); i += 11 { // that each character counts is shown beside the parser
		b := []byte(good)
		b[i] ^= 1
		clear(said)
		refused(fmt.Sprintf("character %d", i), string(b), 1, "damaged")
	}
	if n := used(t, m, good); n != 0 {
		t.Errorf("the token counts %d uses after none", n)
	}
	real := parsedToken(t, good).Addresses[0]
	if _, err := late.Run(t.Context(), "join", at("192.168.77.2:7443", real), "--name", "late"); err != nil {
		t.Errorf("with a second address that is right: %v", err)
	}
	if n := used(t, m, good); n != 1 {
		t.Errorf("the token counts %d uses after one", n)
	}
}

// TestRacingJoins: of several that want the last use of a token, or one name, one gets it, at once; the others are told
// that, and neither side keeps anything of them.
func TestRacingJoins(t *testing.T) {
	m := newTestMesh(t, Spec{})
	var racers []*Node
	for i := range 4 {
		racers = append(racers, newcomer(t, m, fmt.Sprint("racer", i), 20+i))
	}
	rounds := 3
	if soaking {
		rounds = 50
	}
	for round := range rounds {
		race(t, m, racers, newToken(t, m, "--uses", "1"), "used up", func(i int) string { return fmt.Sprintf("r%d-%d", round, i) })
		race(t, m, racers, newToken(t, m, "--uses", "9"), "there is a host", func(int) string { return fmt.Sprint("same", round) })
	}
}

func race(t *testing.T, m *Mesh, racers []*Node, token, says string, name func(i int) string) {
	t.Helper()
	before := hostCount(t, m)
	errs := make([]error, len(racers))
	var racing sync.WaitGroup
	for i, n := range racers {
		racing.Go(func() { _, errs[i] = n.Run(t.Context(), "join", token, "--name", name(i)) })
	}
	racing.Wait()
	won := 0
	for i, n := range racers {
		if errs[i] == nil {
			won++
			must(t, os.RemoveAll(n.StateDir()))
		} else if failed, ok := errors.AsType[*ExitError](errs[i]); !ok || failed.Code != 1 || !strings.Contains(failed.Stderr, says) {
			t.Errorf("%s was told %v, want %q", name(i), errs[i], says)
		}
		if left := n.left(t); len(left) != 0 {
			t.Errorf("%s left %v", name(i), left)
		}
	}
	if hosts := hostCount(t, m) - before; won != 1 || hosts != 1 || used(t, m, token) != 1 {
		t.Errorf("%d joined, control has %d more hosts, and the token counts %d uses; want 1 of each: %v", won, hosts, used(t, m, token), errs)
	}
}

// hostCount is how many hosts control has given a name to.
func hostCount(t *testing.T, m *Mesh) int {
	t.Helper()
	out, err := m.Hosts[0].Run(t.Context(), "host", "list", "-o", "json")
	must(t, err)
	var hosts []struct{ Name string }
	must(t, json.Unmarshal(out, &hosts))
	return len(hosts)
}
