package segment_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-mesh/bulkhead/segment"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestRefusedPolicies holds each testdata/refused/NAME.yaml against the error in NAME.err.
func TestRefusedPolicies(t *testing.T) {
	files, err := filepath.Glob("testdata/refused/*.yaml")
	if err != nil || len(files) < 25 {
		t.Fatalf("found %d refused policies: %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			_, err = segment.Parse(text)
			checkProblems(t, err)
			golden := strings.TrimSuffix(file, ".yaml") + ".err"
			if *update {
				if err := os.WriteFile(golden, []byte(err.Error()+"\n"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, readErr := os.ReadFile(golden)
			if readErr != nil {
				t.Fatal(readErr)
			}
			if diff := cmp.Diff(string(want), err.Error()+"\n"); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
		})
	}
}

// checkProblems checks that err is a *PolicyError whose problems say all that they promise.
func checkProblems(t fataler, err error) {
	t.Helper()
	refusal, ok := errors.AsType[*segment.PolicyError](err)
	if !ok || len(refusal.Problems) == 0 {
		t.Fatalf("error is %T without problems: %v", err, err)
	}
	for _, p := range refusal.Problems {
		if p.Line < 1 || p.Column < 1 || p.Field == "" || p.Message == "" || p.Fix == "" {
			t.Fatalf("problem lacks line, column, field, message or fix: %+v", p)
		}
		if len(p.String()) > 2000 || strings.ContainsAny(p.String(), "\n\x1b") {
			t.Fatalf("problem is no short line: %.300q", p)
		}
	}
}

func TestHostileDocuments(t *testing.T) {
	nested := func(n int, open, shut string) string { return strings.Repeat(open, n) + strings.Repeat(shut, n) }
	var staircase, keys strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&staircase, "%sa:\n", strings.Repeat(" ", i))
	}
	for i := range 40_000 {
		fmt.Fprintf(&keys, "k%d: v\n", i)
	}
	var bomb strings.Builder
	bomb.WriteString("a0: &a0 [x, x]\n")
	for i := range 30 {
		fmt.Fprintf(&bomb, "a%d: &a%d [*a%d, *a%d]\n", i+1, i+1, i, i)
	}
	for name, test := range map[string]struct{ text, want string }{
		"too long":             {"#" + strings.Repeat("x", segment.MaxDocument), "bytes, more than 4194304"},
		"too many parts":       {"[" + strings.Repeat("a,", 1_000_000) + "]", "parts, more than 100000"},
		"deep brackets":        {nested(40_000, "[", "]"), "nests more than 16 levels deep"},
		"deep braces":          {nested(20_000, "{a: ", "}"), "nests more than 16 levels deep"},
		"brackets in strings":  {strings.Repeat(`["]",`, 10_000), "nests more than 16 levels deep"},
		"closed before open":   {strings.Repeat("]", 1000) + strings.Repeat("[", 1000), "nests more than 16 levels deep"},
		"deep dashes":          {strings.Repeat("- ", 80_000) + "x", "nests more than 16 levels deep"},
		"staircase":            {staircase.String(), "nests more than 16 levels deep"},
		"alias bomb":           {bomb.String(), "has an anchor or alias"},
		"very wide mapping":    {keys.String(), "more than 64 keys"},
		"long key":             {strings.Repeat("k", 1<<20) + ": v", "unknown field"},
		"long segment name":    {"rules:\n- {name: r, to: b, from: " + strings.Repeat("s", 1<<20) + "}", "there is no segment"},
		"a thousand mistakes":  {"rules:\n" + strings.Repeat("  - {name: 7 7}\n", 1000), "problems more (fix: mend those above first)"},
		"control bytes":        {"\x00\x01\x02: \xff", "unknown field"},
		"unterminated bracket": {"rules: [", "document"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := segment.Parse([]byte(test.text))
			checkProblems(t, err)
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("error is %.200q, want %q in it", err, test.want)
			}
			if len(err.Error()) > 100_000 {
				t.Errorf("error has %d bytes", len(err.Error()))
			}
		})
	}
}

func TestAcceptedForms(t *testing.T) {
	want := &segment.Policy{Segments: []segment.Segment{{
		Name: "007", Description: "it's\nall", Match: segment.Selector{"function": {Values: []string{"true"}}, "sensitivity": {Op: "<=", Values: []string{"internal"}}},
	}}}
	for name, text := range map[string]string{
		"block":     "segments:\n- name: 007\n  description: |-\n    it's\n    all\n  match:\n    function: true\n    sensitivity: <= internal\n",
		"flow":      `{segments: [{name: 007, description: "it's\nall", match: {function: [true], sensitivity: <=internal}}]}`,
		"json":      "{\n\t\"segments\": [\n\t\t{\"name\": \"007\", \"description\": \"it's\\nall\", \"match\": {\"function\": \"true\", \"sensitivity\": \"\\u003c=internal\"}}\n\t]\n}",
		"bom, crlf": "\ufeff---\r\nsegments:\r\n  - name: 007\r\n    description: \"it's\\nall\"\r\n    match: {function: 'true', sensitivity: '<=internal'}\r\n",
		"comments":  "# first\nsegments: # second\n  # third\n  - name: '007' # fourth\n    description: \"it's\\nall\"\n    match: # fifth\n      function: true\n      # sixth\n      sensitivity: <=internal\n# last",
	} {
		t.Run(name, func(t *testing.T) {
			got, err := segment.Parse([]byte(text))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("policy (-want +got):\n%s", diff)
			}
		})
	}
	for _, empty := range []string{"", "\n", "# nothing\n", "---\n", "{}", "null", "segments:\nrules: []\n"} {
		if p, err := segment.Parse([]byte(empty)); err != nil || len(p.Segments)+len(p.Rules) > 0 {
			t.Errorf("parse %q: %v %+v", empty, err, p)
		}
	}
}

// TestOneDocument: the parser takes the first of several documents and may lose the others without a word.
func TestOneDocument(t *testing.T) {
	const content = "sensitivity: [a]\n"
	for _, text := range []string{
		"---\n---\n", "---\n---\n" + content, "---\n# c\n---\n" + content, "...\n" + content, "...\n...\n" + content, content + "---\n",
		content + "...\n" + content, content + "...\n---\n" + content, content + "--- {rules: []}\n", "null\n---\n" + content,
	} {
		p, err := segment.Parse([]byte(text))
		if err == nil {
			t.Fatalf("%q is taken for %+v", text, p)
		}
		checkProblems(t, err)
		if !strings.Contains(err.Error(), "has a second document") {
			t.Errorf("%q: %v", text, err)
		}
	}
	for _, text := range []string{"---\n" + content, "# c\n---\n" + content, content + "...\n", "--- # c\n" + content + "...\n# c\n"} {
		if p, err := segment.Parse([]byte(text)); err != nil || len(p.Sensitivity) != 1 {
			t.Errorf("%q: %+v, %v", text, p, err)
		}
	}
}

func TestManyEntries(t *testing.T) {
	for _, indent := range []string{"", "  "} {
		var text strings.Builder
		text.WriteString("segments:\n" + indent + "- {name: a, match: {function: a, sensitivity: internal}}\nrules:\n")
		for i := range 500 {
			fmt.Fprintf(&text, "%[1]s- name: r%[2]d\n%[1]s  from: a\n%[1]s  to: a\n%[1]s  allow:\n%[1]s  - icmp\n%[1]s  - tcp/1\n", indent, i)
		}
		text.WriteString("tests: []\n")
		p, err := segment.Parse([]byte(text.String()))
		if err != nil || len(p.Rules) != 500 || len(p.Rules[499].Allow) != 2 {
			t.Errorf("indented by %q: %v", indent, err)
		}
	}
}

func TestValidateWithoutText(t *testing.T) {
	p := &segment.Policy{
		Segments: []segment.Segment{{Name: "a", Match: segment.Selector{"sensitivity": {Op: "~", Values: []string{"internal", "public"}}}}},
		Rules:    []segment.Rule{{Name: "r", From: "a", To: "b", Allow: []segment.Ports{{Proto: segment.ICMP, Last: 7}}}},
	}
	want := strings.Join([]string{
		`segments[0].match.sensitivity: "~" is no comparison with one value (fix: write a value, a list of values, or a bound in quotes like "<=confidential")`,
		`rules[0].to: there is no segment "b" (fix: declare it under segments)`,
		`rules[0].allow[0]: "icmp/0-7" is no port (fix: write it like tcp/443, tcp/6333-6334, udp/53 or icmp)`,
	}, "\n")
	err := p.Validate()
	if err == nil {
		t.Fatal("accepted")
	}
	if diff := cmp.Diff(want, err.Error()); diff != "" {
		t.Errorf("error (-want +got):\n%s", diff)
	}
	if _, err := p.Marshal(); err == nil {
		t.Error("an invalid policy was marshalled")
	}
}

func TestMarshalIsWhatPeopleWrite(t *testing.T) {
	policy, _ := example(t)
	got, err := policy.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile("testdata/example.marshalled.yaml", got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("testdata/example.marshalled.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("text (-want +got):\n%s", diff)
	}
}

// FuzzParse checks that whatever is accepted is the same policy after Marshal and Parse, in YAML and in JSON, and
// that whatever is refused is refused with line, column, field and fix.
func FuzzParse(f *testing.F) {
	files, err := filepath.Glob("testdata/refused/*.yaml")
	if err != nil || len(files) == 0 {
		f.Fatalf("no seeds: %v", err)
	}
	for _, file := range append(files, "testdata/example.yaml", "testdata/example.marshalled.yaml") {
		seed, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(seed)
		f.Add(bytes.ReplaceAll(seed, []byte("\n"), []byte("\r\n")))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		policy, err := segment.Parse(data)
		if err != nil {
			checkProblems(t, err)
			return
		}
		checkRoundTrip(t, policy)
	})
}

// A policy as large as any mesh needs is far from the limits.
func TestLargePolicyParses(t *testing.T) {
	var text strings.Builder
	text.WriteString("segments:\n")
	for i := range 200 {
		fmt.Fprintf(&text, "  - {name: s%d, match: {function: [f%d, g%d], sensitivity: internal}}\n", i, i, i)
	}
	text.WriteString("rules:\n")
	for i := range 1000 {
		fmt.Fprintf(&text, "  - {name: r%d, from: s%d, to: s%d, allow: [tcp/443, udp/53, tcp/6000-6999, icmp]}\n", i, i%200, (i*7)%200)
	}
	text.WriteString("tests:\n")
	for i := range 1000 {
		fmt.Fprintf(&text, "  - {from: agent/a%d, to: agent/b%d, port: tcp/443, expect: deny}\n", i, i)
	}
	if p, err := segment.Parse([]byte(text.String())); err != nil || len(p.Rules) != 1000 {
		t.Errorf("got %v", err)
	}
}
