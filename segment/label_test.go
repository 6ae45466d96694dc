package segment_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-mesh/bulkhead/segment"
)

func TestParseLabels(t *testing.T) {
	got, err := segment.ParseLabels([]string{"function=research", "team=Red.7_b"})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(segment.Labels{"function": "research", "team": "Red.7_b"}, got); diff != "" {
		t.Error(diff)
	}
	var many []string
	for i := range 33 {
		many = append(many, fmt.Sprintf("k%d=v", i))
	}
	for want, items := range map[string][]string{
		`label "function" has no value (fix: write it like function=plan)`:   {"function"},
		`label "a" is given twice (fix: leave one of them out)`:              {"a=1", "a=2"},
		`label key: name is empty`:                                           {"=x"},
		`label key: name "A" may have only a-z, 0-9 and inner hyphens`:       {"A=x"},
		`label a: value "" must have 1 to 63 characters`:                     {"a="},
		`label a: value "b=c" may have only letters, digits and inner . _ -`: {"a=b=c"},
		`label a: value "-b" may have only letters, digits and inner . _ -`:  {"a=-b"},
		`label a: value "xxxxxxxxxxxxxxxxxxxx" must have 1 to 63 characters`: {"a=" + strings.Repeat("x", 64)},
		`there are 33 labels, more than 32`:                                  many,
		`label a: value "b\n" may have only letters, digits and inner . _ -`: {"a=b\n"},
	} {
		if got, err := segment.ParseLabels(items); err == nil || err.Error() != want || got != nil {
			t.Errorf("%.60q: error is %v, want %s", items, err, want)
		}
	}
}

// FuzzParseLabels checks that what is accepted is valid, complete and reads back the same.
func FuzzParseLabels(f *testing.F) {
	f.Add("function=plan", "sensitivity=internal")
	f.Add("a=1", "a=2")
	f.Add("=", "a=b=c")
	f.Fuzz(func(t *testing.T, one, two string) {
		labels, err := segment.ParseLabels([]string{one, two})
		if err != nil {
			if labels != nil || strings.ContainsAny(err.Error(), "\n\x1b") {
				t.Fatalf("error %q with labels %v", err, labels)
			}
			return
		}
		var items []string
		for key, value := range labels {
			items = append(items, key+"="+value)
		}
		again, err := segment.ParseLabels(items)
		if err != nil || len(items) != 2 || !cmp.Equal(labels, again) || segment.ValidLabels(labels) != nil {
			t.Fatalf("%q, %q became %v, then %v, %v", one, two, labels, again, err)
		}
	})
}

func TestValidName(t *testing.T) {
	for _, name := range []string{"a", "7", "h2", "research-reads-vectors", strings.Repeat("x", 63)} {
		if err := segment.ValidName(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{"", "-", "-a", "a-", "A", "a.b", "a_b", "a b", "a/b", "é", "a\n", "../a", strings.Repeat("x", 64)} {
		if segment.ValidName(name) == nil {
			t.Errorf("%q is taken for a name", name)
		}
	}
}

func TestParseMeshName(t *testing.T) {
	long := strings.TrimSuffix(strings.Repeat(strings.Repeat("x", 49)+".", 6), ".")
	for _, name := range []string{"lab", "lab.test", "a.b.c-d.e1"} {
		if err := segment.ParseMeshName(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{"", ".", "a.", ".a", "a..b", "A.b", "a_b", "a/b", "spiffe://a", long} {
		if segment.ParseMeshName(name) == nil {
			t.Errorf("%q is taken for a mesh name", name)
		}
	}
}

func TestLabelsAsText(t *testing.T) {
	for want, labels := range map[string]segment.Labels{"": nil, "a=b": {"a": "b"}, "a=b, c=d": {"c": "d", "a": "b"}} {
		if got := fmt.Sprint(labels); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
