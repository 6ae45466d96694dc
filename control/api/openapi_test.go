package api

import (
	"encoding/json"
	"flag"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/danielgtaylor/huma/v2"
	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite golden files")

// The operations, and what each needs, are a contract with clients.
func TestOperationsAreAsWritten(t *testing.T) {
	s := New(Options{Local: new(fakeLocal), Version: "test"})
	golden(t, "testdata/operations.txt", operations(t, s.api))
	_, agents := s.attested()
	golden(t, "testdata/operations-agents.txt", operations(t, agents))
}

// operations lists what an API can do, one a line.
func operations(t *testing.T, api huma.API) string {
	t.Helper()
	var lines []string
	for path, item := range api.OpenAPI().Paths {
		for method, op := range map[string]any{"GET": item.Get, "PUT": item.Put, "POST": item.Post, "DELETE": item.Delete} {
			data, err := json.Marshal(op)
			if err != nil {
				t.Fatal(err)
			}
			var described struct{ OperationID, Summary, Description string }
			if err := json.Unmarshal(data, &described); err != nil {
				t.Fatal(err)
			}
			if described.OperationID != "" {
				lines = append(lines, strings.TrimRight(path+" "+method+" "+described.OperationID+": "+described.Summary+". "+described.Description, " "))
			}
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n") + "\n"
}

func TestOpenAPIIsServed(t *testing.T) {
	w := newWorld(t)
	resp, err := rawClient(t, w.certificate()).Get("https://" + w.address + "/openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var doc struct {
		OpenAPI    string
		Paths      map[string]any
		Components struct{ Schemas map[string]any }
	}
	if err := json.NewDecoder(resp.Body).Decode(&doc); err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK || !strings.HasPrefix(doc.OpenAPI, "3.1") || len(doc.Paths) < 20 || doc.Components.Schemas["Problem"] == nil {
		t.Errorf("%s: OpenAPI %s with %d paths", resp.Status, doc.OpenAPI, len(doc.Paths))
	}
}

func TestUnknownFieldsAndQueriesAreRefused(t *testing.T) {
	w := newWorld(t)
	client := rawClient(t, w.certificate())
	resp, err := client.Post("https://"+w.address+"/v1/tokens", "application/json", strings.NewReader(`{"uses": 1, "ttll": "1h"}`))
	wantStatus(t, resp, err, http.StatusUnprocessableEntity)
	resp, err = client.Get("https://" + w.address + "/v1/audit?limmit=1")
	wantStatus(t, resp, err, http.StatusUnprocessableEntity)
	resp, err = client.Get("https://" + w.address + "/v1/nothing")
	wantStatus(t, resp, err, http.StatusNotFound)
}

func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s differs (-want +got); run with -update if that is meant:\n%s", path, diff)
	}
}
