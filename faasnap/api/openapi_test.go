package api

import (
	"bytes"
	"encoding/json"
	"flag"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/volley-run/volley/faasnap"
)

var update = flag.Bool("update", false, "write golden files")

// document decodes the OpenAPI document as a client sees it.
func document(t *testing.T) (text []byte, doc map[string]any) {
	t.Helper()
	text, err := json.MarshalIndent(OpenAPI(), "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	return append(text, '\n'), doc
}

func TestTheDocumentIsTheOneThatWasAgreedOn(t *testing.T) {
	text, _ := document(t)
	path := filepath.Join("testdata", "openapi.json")
	if *update {
		if err := os.WriteFile(path, text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(text, want) {
		t.Errorf("the API has changed: run this test with -update, and look at the difference of %s", path)
	}
}

func TestTheDocumentHasEveryRouteAndEveryMember(t *testing.T) {
	_, doc := document(t)
	paths := doc["paths"].(map[string]any)
	names := map[string]bool{}
	for _, rt := range routes() {
		op, ok := paths[rt.path].(map[string]any)[strings.ToLower(rt.method)].(map[string]any)
		if !ok || op["summary"] == "" || names[rt.name] || rt.name == "" {
			t.Errorf("%s %s: %v", rt.method, rt.path, op)
		}
		names[rt.name] = true
	}
	schemas := doc["components"].(map[string]any)["schemas"].(map[string]any)
	for _, v := range []any{
		Error{}, Info{}, BuildRequest{}, Function{}, Network{}, StartRequest{}, VM{}, StartTimes{}, HostFigures{}, SnapshotRequest{}, Snapshot{},
		SnapshotFile{}, PlanSummary{}, Plan{}, Region{}, WorkingSet{}, Resident{}, ResidentFile{}, LearnRequest{}, Learned{}, Accuracy{}, Verified{}, Standby{}, StandbyRequest{}, PushRequest{}, PullRequest{}, CollectRequest{}, Collected{}, Garbage{},
		Functions{}, VMs{}, Snapshots{}, Event{},
	} {
		typ := reflect.TypeOf(v)
		schema, ok := schemas[typ.Name()].(map[string]any)
		if !ok {
			t.Errorf("no schema of %s", typ.Name())
			continue
		}
		properties := schema["properties"].(map[string]any)
		if len(properties) != typ.NumField() {
			t.Errorf("%s has %d members, the document %d", typ.Name(), typ.NumField(), len(properties))
		}
		for name, p := range properties {
			if text, _ := p.(map[string]any)["description"].(string); text == "" || strings.HasSuffix(text, ".") {
				t.Errorf("%s.%s is described by %q", typ.Name(), name, text)
			}
		}
		delete(schemas, typ.Name())
	}
	for name := range schemas {
		t.Errorf("the test does not know of %s", name)
	}
	// All references lead somewhere.
	text, doc := document(t)
	for part := range strings.SplitSeq(string(text), `"#/components/schemas/`) {
		name, _, _ := strings.Cut(part, `"`)
		if _, ok := doc["components"].(map[string]any)["schemas"].(map[string]any)[name]; !ok && name != "{\n  " && !strings.Contains(name, "\n") {
			t.Errorf("there is no schema %s", name)
		}
	}
}

// idle is a Server on an empty directory, whose Service starts nothing.
func idle(t *testing.T) *Server {
	t.Helper()
	s, err := faasnap.Open(faasnap.Config{Dir: filepath.Join(t.TempDir(), "vm")})
	if err != nil {
		t.Fatal(err)
	}
	server := New(Config{Service: s})
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return server
}

// request makes a request and returns the status and the answer.
func request(t *testing.T, h http.Handler, method, path, body string) (int, http.Header, string) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader(body)))
	return w.Code, w.Header(), w.Body.String()
}

func TestWrongRequestsAreToldWhatIsWrong(t *testing.T) {
	server := idle(t)
	for _, tc := range []struct {
		method, path, body string
		status             int
		code, message      string
	}{
		{"GET", "/", "", 404, CodeNotFound, "openapi.json"},
		{"GET", "/v2/vms", "", 404, CodeNotFound, "openapi.json"},
		{"PATCH", "/v1/vms", "", 405, CodeMethod, "GET, POST"},
		{"GET", "/v1/functions/x", "", 404, CodeNotFound, "function x"},
		{"POST", "/v1/snapshots/x/push", `{"url": "s3://bucket/x"}`, 404, CodeNotFound, "snapshot x"},
		{"POST", "/v1/snapshots/x/pull", `{"url": "gopher://bucket/x"}`, 400, CodeInvalid, "gopher"},
		{"POST", "/v1/snapshots/x/pull", `{"url": "s3://user:secret@bucket/x"}`, 400, CodeInvalid, "no credentials"},
		{"GET", "/v1/functions/a%20b", "", 400, CodeInvalid, "a b"},
		{"GET", "/v1/functions/..%2fx", "", 400, CodeInvalid, "function name"},
		{"DELETE", "/v1/functions/x", "", 404, CodeNotFound, "function x"},
		{"PUT", "/v1/functions/x", `{`, 400, CodeInvalid, "body"},
		{"PUT", "/v1/functions/x", `{"form": "/"}`, 400, CodeInvalid, "form"},
		{"PUT", "/v1/functions/x", `{} {}`, 400, CodeInvalid, "more"},
		{"PUT", "/v1/functions/x", `{}`, 400, CodeInvalid, "either"},
		{"PUT", "/v1/functions/x", `{"from": "a"}`, 400, CodeInvalid, "absolute"},
		{"PUT", "/v1/functions/x", `{"from": "/no/such/dir"}`, 400, CodeInvalid, "/no/such/dir"},
		{"PUT", "/v1/functions/x", `{"from": "/", "runtime": "cobol"}`, 400, CodeInvalid, "cobol"},
		{"PUT", "/v1/functions/x", `{"from": "/", "runtime": "python3", "handler": "a.b", "memoryMB": 5}`, 400, CodeInvalid, "memoryMB"},
		{"PUT", "/v1/functions/x", `{"from": "/", "runtime": "python3", "handler": "a.b", "guestMemoryMB": 257}`, 400, CodeInvalid, "guestMemoryMB"},
		{"PUT", "/v1/functions/x", `{"image": "x", "packages": ["y"]}`, 400, CodeInvalid, "packages"},
		{"PUT", "/v1/functions/x", `{"image": "x"}`, 400, CodeInvalid, "images are not taken"},
		{"POST", "/v1/functions/x/invocations", `{`, 400, CodeInvalid, "not JSON"},
		{"POST", "/v1/functions/x/invocations?log=all", ``, 400, CodeInvalid, "tail"},
		{"POST", "/v1/functions/x/invocations", ``, 404, CodeNotFound, "function x"},
		{"POST", "/v1/functions/x/invocations", `"` + strings.Repeat("x", MaxEventBytes) + `"`, 413, CodeTooLarge, "too large"},
		{"POST", "/v1/vms", `{}`, 400, CodeInvalid, "either"},
		{"POST", "/v1/vms", `{"function": "x"}`, 404, CodeNotFound, "function x"},
		{"POST", "/v1/vms", `{"function": "x", "mode": "full"}`, 400, CodeInvalid, "restores"},
		{"POST", "/v1/vms", `{"snapshot": "x"}`, 404, CodeNotFound, "snapshot x"},
		{"POST", "/v1/vms", `{"snapshot": "x", "mode": "fast"}`, 400, CodeInvalid, "fast"},
		{"POST", "/v1/vms", `{"snapshot": "x", "mode": "boot"}`, 400, CodeInvalid, "boot"},
		{"POST", "/v1/vms", `{"snapshot": "x", "network": {"mac": "02:00:00:00:00:01"}}`, 400, CodeInvalid, "tap"},
		{"POST", "/v1/vms", `{"snapshot": "x", "network": {"tap": "t", "mac": "03:00:00:00:00:01"}}`, 400, CodeInvalid, "03:00"},
		{"GET", "/v1/vms/x", "", 404, CodeNotFound, "machine x"},
		{"DELETE", "/v1/vms/x", "", 404, CodeNotFound, "machine x"},
		{"POST", "/v1/vms/x/pause", "", 404, CodeNotFound, "machine x"},
		{"POST", "/v1/vms/x/invocations", "", 404, CodeNotFound, "machine x"},
		{"POST", "/v1/snapshots", `{}`, 400, CodeInvalid, "either"},
		{"POST", "/v1/snapshots", `{"function": "x"}`, 404, CodeNotFound, "function x"},
		{"POST", "/v1/snapshots", `{"vm": "x"}`, 404, CodeNotFound, "machine x"},
		{"POST", "/v1/snapshots", `{"vm": "x", "inputs": [1]}`, 400, CodeInvalid, "inputs"},
		{"GET", "/v1/snapshots/x", "", 404, CodeNotFound, "snapshot x"},
		{"DELETE", "/v1/snapshots/x", "", 404, CodeNotFound, "snapshot x"},
		{"POST", "/v1/snapshots/x/learn", `{}`, 400, CodeInvalid, "no inputs"},
		{"POST", "/v1/snapshots/x/learn", `{"inputs": [1]}`, 404, CodeNotFound, "snapshot x"},
		{"POST", "/v1/snapshots/x/verify", "", 404, CodeNotFound, "snapshot x"},
		{"GET", "/v1/snapshots/x/map.svg", "", 404, CodeNotFound, "snapshot x"},
		{"GET", "/v1/snapshots/.x/plan", "", 400, CodeInvalid, "snapshot name"},
		{"POST", "/v1/gc", `[]`, 400, CodeInvalid, "body"},
	} {
		t.Run(tc.method+" "+tc.path, func(t *testing.T) {
			status, _, body := request(t, server, tc.method, tc.path, tc.body)
			var e Error
			if err := json.Unmarshal([]byte(body), &e); err != nil {
				t.Fatalf("%s: %v", body, err)
			}
			if status != tc.status || e.Code != tc.code || !strings.Contains(e.Message, tc.message) {
				t.Errorf("%d %+v; want %d %s with %q", status, e, tc.status, tc.code, tc.message)
			}
		})
	}
}

func TestAnEmptyServiceHasEmptyLists(t *testing.T) {
	server := idle(t)
	for path, want := range map[string]string{
		"/v1/functions": `{"functions":[]}`, "/v1/vms": `{"vms":[]}`, "/v1/snapshots": `{"snapshots":[]}`,
	} {
		if status, _, body := request(t, server, "GET", path, ""); status != 200 || strings.TrimSpace(body) != want {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
	if status, _, body := request(t, server, "POST", "/v1/gc", ""); status != 200 || strings.TrimSpace(body) != `{"removed":[]}` {
		t.Errorf("gc: %d %s", status, body)
	}
	if status, _, body := request(t, server, "GET", "/v1/openapi.json", ""); status != 200 || !json.Valid([]byte(body)) {
		t.Errorf("document: %d", status)
	}
}
