package segment_test

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/bulkhead-mesh/bulkhead/segment"
	"github.com/bulkhead-mesh/bulkhead/segment/segmenttest"
)

func TestSelectorMatches(t *testing.T) {
	for _, test := range []struct {
		selector string
		labels   segment.Labels
		want     bool
	}{
		{`{"function": "a"}`, segment.Labels{"function": "a", "other": "x"}, true},
		{`{"function": "a"}`, segment.Labels{"function": "b"}, false},
		{`{"function": "a"}`, nil, false},
		{`{"function": ["a", "b"]}`, segment.Labels{"function": "b"}, true},
		{`{"function": ["a", "b"]}`, segment.Labels{"function": "c"}, false},
		{`{"function": "a", "sensitivity": "internal"}`, segment.Labels{"function": "a"}, false},
		{`{"sensitivity": "<=internal"}`, segment.Labels{"sensitivity": "internal"}, true},
		{`{"sensitivity": "<=internal"}`, segment.Labels{"sensitivity": "public"}, true},
		{`{"sensitivity": "<=internal"}`, segment.Labels{"sensitivity": "confidential"}, false},
		{`{"sensitivity": "<internal"}`, segment.Labels{"sensitivity": "internal"}, false},
		{`{"sensitivity": ">internal"}`, segment.Labels{"sensitivity": "restricted"}, true},
		{`{"sensitivity": ">internal"}`, segment.Labels{"sensitivity": "internal"}, false},
		{`{"sensitivity": ">=internal"}`, segment.Labels{"sensitivity": "internal"}, true},
		{`{"sensitivity": ">=public"}`, segment.Labels{"sensitivity": "cosmic"}, false},
		{`{"sensitivity": ">=public"}`, segment.Labels{"function": "a"}, false},
		{`{"sensitivity": ["public", "restricted"]}`, segment.Labels{"sensitivity": "internal"}, false},
	} {
		var s segment.Selector
		if err := json.Unmarshal([]byte(test.selector), &s); err != nil {
			t.Fatal(err)
		}
		if got := s.Matches(test.labels, segment.DefaultScale); got != test.want {
			t.Errorf("%s matches %v: %v", test.selector, test.labels, got)
		}
	}
}

func TestSelectorSurvivesJSON(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		before := segmenttest.Selector(t)
		data, err := json.Marshal(before)
		if err != nil {
			t.Fatal(err)
		}
		var after segment.Selector
		if err := json.Unmarshal(data, &after); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(before, after); diff != "" {
			t.Fatalf("%s became\n%s", data, diff)
		}
	})
}

func TestRefusedConditions(t *testing.T) {
	for _, text := range []string{`null`, `7`, `""`, `"=a"`, `"=>a"`, `"<>a"`, `"<<a"`, `"< "`, `"a b"`, `{"a": 1}`, `[1]`, `[["a"]]`} {
		var s segment.Selector
		if err := json.Unmarshal([]byte(`{"sensitivity": `+text+`}`), &s); err == nil {
			t.Errorf("%s is taken for %v", text, s)
		}
	}
}
