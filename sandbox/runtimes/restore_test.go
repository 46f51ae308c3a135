package runtimes

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/volley-run/volley/internal/testenv"
)

const pythonHook = `
import os, random
random.seed(1)
calls = 0

def after_restore():
    global calls
    calls += 1
    if calls == 1:
        raise ValueError("not yet")

def handler(event, context):
    return {"calls": calls, "same": random.random() == random.Random(1).random(), "address": os.environ["VOLLEY_ADDRESS"]}
`

const nodeHook = `
let calls = 0;
const before = Math.random;
export function afterRestore() {
  calls += 1;
  if (calls === 1) throw new Error('not yet');
}
export async function handler() {
  const values = Array.from({ length: 100 }, () => Math.random());
  if (!values.every((v) => v >= 0 && v < 1) || new Set(values).size < 100) throw new Error('bad random numbers ' + values);
  return { calls, same: Math.random === before, address: process.env.VOLLEY_ADDRESS };
}
`

// serveEvents plays the Runtime API to a client: it gives it an event for each
// of restored, with the header Volley-Restored where that is not empty, and
// returns what the client answers.
func serveEvents(t *testing.T, restored []string) (address string, answers <-chan string) {
	t.Helper()
	said := make(chan string, len(restored))
	n := 0
	over := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				t.Error(err)
			}
			said <- r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:] + " " + string(body)
			w.WriteHeader(http.StatusAccepted)
			return
		}
		if n == len(restored) {
			<-over
			return
		}
		w.Header().Set("Lambda-Runtime-Aws-Request-Id", fmt.Sprint(n))
		w.Header().Set("Lambda-Runtime-Deadline-Ms", fmt.Sprint(time.Now().Add(time.Minute).UnixMilli()))
		if restored[n] != "" {
			w.Header().Set("Volley-Restored", restored[n])
			w.Header().Set("Volley-Address", "10.77.0.3")
		}
		n++
		w.Header().Set("Content-Length", "2")
		_, _ = io.WriteString(w, "{}")
	}))
	t.Cleanup(server.Close)
	t.Cleanup(func() { close(over) })
	return server.Listener.Addr().String(), said
}

func TestRestoredFunctionsAreSeededAnewAndTold(t *testing.T) {
	for _, tc := range []struct {
		name             string
		needs            testenv.Capability
		program, client  string
		file, code, hook string
	}{
		{"Python", testenv.Python3, "python3", PythonFile, "app.py", pythonHook, "ValueError"},
		{"Node.js", testenv.Node, "node", NodeFile, "app.mjs", nodeHook, "Error"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			testenv.Need(t, tc.needs)
			dir := t.TempDir()
			if err := Write(dir); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, tc.file), []byte(tc.code), 0o600); err != nil {
				t.Fatal(err)
			}
			address, answers := serveEvents(t, []string{"", "machine", "", ""})
			cmd := exec.Command(tc.program, filepath.Join(dir, tc.client))
			cmd.Env = append(os.Environ(), "AWS_LAMBDA_RUNTIME_API="+address, "_HANDLER=app.handler", "LAMBDA_TASK_ROOT="+dir, "VOLLEY_ADDRESS=10.77.0.2")
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			cmd.Stderr = cmd.Stdout
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			logged := make(chan string, 1)
			go func() {
				text, _ := io.ReadAll(bufio.NewReader(out)) // it ends with the process
				logged <- string(text)
			}()
			defer func() {
				_ = cmd.Process.Kill()
				if text := <-logged; t.Failed() {
					t.Logf("it logged:\n%s", text)
				}
				_ = cmd.Wait() // it was killed
			}()
			next := func() (kind string, answer struct {
				Calls                   int
				Same                    bool
				Address                 string
				ErrorType, ErrorMessage string
			}) {
				t.Helper()
				select {
				case text := <-answers:
					kind, body, _ := strings.Cut(text, " ")
					if err := json.Unmarshal([]byte(body), &answer); err != nil {
						t.Fatalf("%s: %v", text, err)
					}
					return kind, answer
				case <-time.After(time.Minute):
					t.Fatal("no answer")
				}
				return "", answer
			}
			if kind, a := next(); kind != "response" || a.Calls != 0 || !a.Same || a.Address != "10.77.0.2" {
				t.Errorf("before: %s %+v", kind, a)
			}
			if kind, a := next(); kind != "error" || a.ErrorType != tc.hook || a.ErrorMessage != "not yet" {
				t.Errorf("a hook that fails: %s %+v", kind, a)
			}
			if kind, a := next(); kind != "response" || a.Calls != 2 || a.Same || a.Address != "10.77.0.3" {
				t.Errorf("after: %s %+v", kind, a)
			}
			if kind, a := next(); kind != "response" || a.Calls != 2 || a.Address != "10.77.0.3" {
				t.Errorf("later: %s %+v", kind, a)
			}
		})
	}
}
