package lab

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var (
	counters = regexp.MustCompile(`\[\d+:\d+\]`)
	comments = regexp.MustCompile(`(?m)^#.*\n`)
	lifetime = regexp.MustCompile(`timeout [1-9]\d*`)
	metadata = regexp.MustCompile(`(expires|users|valid_lft|preferred_lft) \S+|tentative`)
	position = regexp.MustCompile(`(?m)^\d+: `)
)

// kernelState is everything of a host's kernel that a firewall or a route may change, in an order of its own.
func kernelState(t *testing.T, h *Host) string {
	t.Helper()
	return netfilterState(t, h) + withoutLinkLocal(
		list(t, h, "ip", "-4", "route", "show", "table", "all")+list(t, h, "ip", "-6", "route", "show", "table", "all")+
			list(t, h, "ip", "rule")+list(t, h, "ip", "-6", "rule")+list(t, h, "ip", "-o", "address"))
}

// withoutLinkLocal leaves out what the kernel changes by itself after an interface comes up.
func withoutLinkLocal(state string) string {
	var lines []string
	for line := range strings.Lines(state) {
		if !strings.Contains(line, "fe80:") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "")
}

// netfilterState is the part that decides about packets.
func netfilterState(t *testing.T, h *Host) string {
	t.Helper()
	sets := strings.Split(list(t, h, "ipset", "save"), "\n")
	for i, line := range sets {
		if strings.HasPrefix(line, "create") { // its sizes follow the number of entries
			sets[i] = strings.Join(strings.Fields(line)[:3], " ")
		}
	}
	slices.Sort(sets)
	return list(t, h, "iptables-save") + list(t, h, "ip6tables-save") + strings.Join(sets, "\n") + "\n"
}

func list(t *testing.T, h *Host, program string, args ...string) string {
	t.Helper()
	out, err := h.Run(context.WithoutCancel(t.Context()), program, args...)
	if err == nil {
		err = out.Err()
	}
	if err != nil {
		t.Fatalf("%s on %s: %v", program, h.Name, err)
	}
	text := comments.ReplaceAllString(out.Stdout, "")
	for re, with := range map[*regexp.Regexp]string{counters: "[]", lifetime: "timeout N", metadata: "", position: ""} {
		text = re.ReplaceAllString(text, with)
	}
	return text
}

// shell runs a shell command on a host.
func shell(t *testing.T, h *Host, command string) {
	t.Helper()
	out, err := h.Run(t.Context(), "sh", "-ec", command)
	if err == nil {
		err = out.Err()
	}
	if err != nil {
		t.Fatalf("%s on %s: %v", command, h.Name, err)
	}
}

// becomes waits until read gives one of wanted.
func becomes(t *testing.T, read func() string, wanted ...string) error {
	t.Helper()
	return Eventually(t.Context(), patient, func() error {
		got := read()
		if slices.Contains(wanted, got) {
			return nil
		}
		return fmt.Errorf("the kernel holds something else (-want +got):\n%s", cmp.Diff(wanted[0], got))
	})
}
