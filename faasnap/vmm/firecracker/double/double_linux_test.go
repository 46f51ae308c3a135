package double_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/volley-run/volley/faasnap/vmm/firecracker/double"
)

func TestMain(m *testing.M) {
	if os.Getenv(double.Env) != "" {
		os.Exit(double.Main(os.Args[1:]))
	}
	os.Exit(m.Run())
}

// start starts a double in a directory, and returns how to ask it: the answer is
// the fault message, or "".
func start(t *testing.T) (dir string, ask func(request, body string) string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "double")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	binary, err := double.Install(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "vmlinux"), []byte(double.Kernel), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary, "--api-sock", "api")
	cmd.Dir = dir
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()         // likewise
	})
	client := &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			conn, err := net.Dial("unix", filepath.Join(dir, "api"))
			if err == nil || time.Now().After(end) {
				return conn, err
			}
		}
	}}}
	t.Cleanup(client.CloseIdleConnections)
	return dir, func(request, body string) string {
		t.Helper()
		method, path, _ := strings.Cut(request, " ")
		r, err := http.NewRequest(method, "http://localhost"+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		response, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		text, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		if response.StatusCode < 300 {
			return ""
		}
		var fault struct {
			Message string `json:"fault_message"`
		}
		if err := json.Unmarshal(text, &fault); err != nil || response.StatusCode != http.StatusBadRequest || fault.Message == "" {
			t.Fatalf("%s: status %d: %s", request, response.StatusCode, text)
		}
		return fault.Message
	}
}

const load = `{"snapshot_path":"state","mem_backend":{"backend_type":"File","backend_path":"memory"}}`

func TestRequestsAreCheckedAndHaveTheirTime(t *testing.T) {
	dir, ask := start(t)
	for _, step := range []struct{ request, body, want string }{
		{"GET /version", "", ""},
		{"PATCH /vm", `{"state":"Paused"}`, "before the microVM"},
		{"PUT /snapshot/create", `{"snapshot_path":"state","mem_file_path":"memory"}`, "before the microVM"},
		{"PUT /actions", `{"action_type":"InstanceStart"}`, "without a kernel"},
		{"PUT /machine-config", `{"vcpu_count":1}`, "missing field `mem_size_mib`"},
		{"PUT /machine-config", `{"vcpu_count":1,"mem_size_mib":8,"cpus":1}`, `unknown field "cpus"`},
		{"PUT /machine-config", `{"vcpu_count":33,"mem_size_mib":8}`, "invalid"},
		{"PUT /machine-config", `{"vcpu_count":1,"mem_size_mib":8} {}`, "cannot parse"},
		{"PUT /machine-config", `{"vcpu_count":1,"mem_size_mib":8}`, ""},
		{"PUT /snapshot/load", load, "after anything is configured"},
		{"PUT /boot-source", `{"kernel_image_path":"none"}`, "cannot be opened"},
		{"PUT /boot-source", `{"kernel_image_path":"vmlinux"}`, ""},
		{"PUT /drives/a", `{"drive_id":"b","path_on_host":"vmlinux","is_root_device":false,"is_read_only":true}`, "differ"},
		{"PUT /drives/a", `{"drive_id":"a","path_on_host":"none","is_root_device":false,"is_read_only":true}`, "cannot be opened"},
		{"PUT /vsock", `{"guest_cid":2,"uds_path":"vsock"}`, "invalid"},
		{"PUT /vsock", `{"guest_cid":3,"uds_path":"vsock"}`, ""},
		{"PUT /nothing", `{}`, "invalid request"},
		{"PUT /actions", `{"action_type":"InstanceStart"}`, ""},
		{"PUT /boot-source", `{"kernel_image_path":"vmlinux"}`, "after the microVM"},
		{"PUT /snapshot/load", load, "not allowed"},
		{"PUT /snapshot/create", `{"snapshot_path":"state","mem_file_path":"memory"}`, "paused"},
		{"PATCH /vm", `{"state":"Asleep"}`, "unknown"},
		{"PATCH /vm", `{"state":"Paused"}`, ""},
		{"PUT /snapshot/create", `{"snapshot_type":"Full","snapshot_path":"state","mem_file_path":"memory"}`, ""},
		{"PATCH /vm", `{"state":"Resumed"}`, ""},
	} {
		if got := ask(step.request, step.body); (got == "") != (step.want == "") || !strings.Contains(got, step.want) {
			t.Errorf("%s %s: %q; want %q", step.request, step.body, got, step.want)
		}
	}
	memory, err := os.ReadFile(filepath.Join(dir, "memory"))
	if err != nil || len(memory) != 8<<20 || bytes.Count(memory, []byte{0}) == len(memory) {
		t.Errorf("the memory file has %d bytes, error %v", len(memory), err)
	}
}

func TestOnlyTheAgentsPortAnswers(t *testing.T) {
	dir, ask := start(t)
	for _, step := range [][2]string{
		{"PUT /boot-source", `{"kernel_image_path":"vmlinux"}`},
		{"PUT /vsock", `{"guest_cid":3,"uds_path":"vsock"}`},
		{"PUT /actions", `{"action_type":"InstanceStart"}`},
	} {
		if fault := ask(step[0], step[1]); fault != "" {
			t.Fatal(fault)
		}
	}
	for hello, want := range map[string]string{"CONNECT 52\n": "OK 1073741824\n", "CONNECT 53\n": "", "52\n": ""} {
		conn, err := net.Dial("unix", filepath.Join(dir, "vsock"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, hello); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(want))
		if _, err := io.ReadFull(conn, got); err != nil || string(got) != want {
			t.Errorf("%q: %q, error %v; want %q", hello, got, err, want)
		}
		if want == "" {
			if n, err := conn.Read(make([]byte, 1)); n > 0 || err == nil {
				t.Errorf("%q is answered", hello)
			}
		}
	}
}
