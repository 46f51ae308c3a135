package main

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/volley-run/volley/faasnap/api"
)

func TestBadCommandLinesOfVirtualMachinesEndWithTheirStatus(t *testing.T) {
	t.Chdir(t.TempDir())
	home := t.TempDir()
	t.Setenv(envHome, home)
	for name, text := range map[string]string{"bad.jsonl": "{}\n{", "none.jsonl": "\n"} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		args string
		code int
		want string
	}{
		{"vm build", exitUsage, "accepts 1 arg"},
		{"vm build x", exitUsage, "--from or --image"},
		{"vm build x --from . --image y", exitUsage, "--from or --image"},
		{"vm build x --from . --timeout 1500ms", exitUsage, "--timeout"},
		{"vm build x --from . --env A", exitUsage, "--env"},
		{"vm build x --from . --memory lots", exitUsage, "lots"},
		{"vm build x --from nowhere --runtime python3 --handler a.b", exitInput, "nowhere"},
		{"vm build x --from . --runtime python3 --init nowhere", exitUsage, "--init"},
		{"vm build x --from . --driver xen", exitUsage, "--driver"},
		{"vm build x --from . --accel hvf", exitUsage, "--accel"},
		{"vm boot x", exitPlatform, "volley vm daemon"},
		{"vm boot x --netns /run/netns/a", exitUsage, "--tap"},
		{"vm restore x", exitPlatform, "volley vm daemon"},
		{"vm snapshot x y", exitPlatform, "volley vm daemon"},
		{"vm show x", exitPlatform, "volley vm daemon"},
		{"vm pause", exitUsage, "arg"},
		{"vm pause x", exitPlatform, "volley vm daemon"},
		{"vm resume x", exitPlatform, "volley vm daemon"},
		{"vm rm x", exitPlatform, "volley vm daemon"},
		{"snapshot standby x", exitPlatform, "volley vm daemon"},
		{"snapshot standby x --count 65", exitUsage, "--count"},
		{"vm rm --function x", exitInput, "function x"},
		{"vm ls --socket nowhere.sock", exitPlatform, "nowhere.sock"},
		{"vm ls", exitOK, ""},
		{"vm ls --home /dev/null/x", exitUsage, "--home"},
		{"vm invoke x -d {", exitInput, "not JSON"},
		{"vm invoke x -d @nowhere", exitInput, "nowhere"},
		{"vm invoke x --mode fast", exitUsage, "fast"},
		{"vm invoke 6f1c0f0d-6c3e-4d7c-9a53-0fd3a2b1c9de", exitPlatform, "volley vm daemon"},
		{"vm invoke 6f1c0f0d-6c3e-4d7c-9a53-0fd3a2b1c9de --mode full", exitUsage, "for functions"},
		{"vm daemon --listen 0.0.0.0:9402 --init .", exitUsage, "loopback"},
		{"vm daemon --driver firecracker --accel tcg", exitUsage, "--accel"},
		{"snapshot ls", exitOK, ""},
		{"snapshot record", exitUsage, "arg"},
		{"snapshot record x bad.jsonl", exitUsage, "@FILE"},
		{"snapshot record x @bad.jsonl", exitInput, "number 2"},
		{"snapshot record x @none.jsonl", exitInput, "no events"},
		{"snapshot record x -d {", exitInput, "not JSON"},
		{"snapshot learn x", exitUsage, "-d"},
		{"snapshot learn x bad.jsonl", exitUsage, "@FILE"},
		{"snapshot learn x -d {", exitInput, "not JSON"},
		{"snapshot learn x -d {} --netns /run/netns/a", exitUsage, "--tap"},
		{"snapshot show x", exitInput, "snapshot x"},
		{"snapshot show ..", exitUsage, "snapshot name"},
		{"snapshot verify x y", exitInput, "snapshot y"},
		{"snapshot rm x", exitInput, "snapshot x"},
		{"snapshot gc", exitOK, ""},
		{"snapshot gc x", exitUsage, "unknown"},
	} {
		t.Run(tc.args, func(t *testing.T) {
			code, out, errs := call(t, strings.Fields(tc.args)...)
			if code != tc.code || !strings.Contains(errs, tc.want) {
				t.Errorf("status %d, want %d with %q:\n%s%s", code, tc.code, tc.want, out, errs)
			}
			if code != exitOK && (!strings.HasPrefix(errs, "volley: ") || strings.Contains(errs, "panic")) {
				t.Errorf("message %q", errs)
			}
		})
	}
}

// damagedSnapshot puts something that was a snapshot once into a data directory.
func damagedSnapshot(t *testing.T, home, name string) {
	t.Helper()
	dir := filepath.Join(home, "vm", "snapshots", name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "memory"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestDamagedSnapshotsAreListedToldAndCollected(t *testing.T) {
	home := t.TempDir()
	t.Setenv(envHome, home)
	damagedSnapshot(t, home, "old")
	if code, out, errs := call(t, "snapshot", "ls"); code != 0 || !strings.Contains(out, "damaged") {
		t.Errorf("ls: %d %s%s", code, out, errs)
	}
	for _, command := range []string{"show", "verify"} {
		if code, _, errs := call(t, "snapshot", command, "old"); code != exitInput || !strings.Contains(errs, "snapshot.json: missing; remove the snapshot") {
			t.Errorf("%s: %d %s", command, code, errs)
		}
	}
	for _, args := range [][]string{{"snapshot", "gc", "--dry-run", "--json"}, {"snapshot", "gc", "--json"}} {
		code, out, errs := call(t, args...)
		var got api.Collected
		if err := json.Unmarshal([]byte(out), &got); code != 0 || err != nil || len(got.Removed) != 1 || got.Removed[0].Name != "old" {
			t.Errorf("%v: %d %s%s", args, code, out, errs)
		}
	}
	if code, out, _ := call(t, "snapshot", "ls"); code != 0 || !strings.Contains(out, "No snapshots yet") {
		t.Errorf("ls: %d %s", code, out)
	}
}

func TestADataDirectoryThatIsInUseIsToldAtOnce(t *testing.T) {
	home := t.TempDir()
	t.Setenv(envHome, home)
	how := vmmOptions{}
	s, _, err := how.service(t.Context(), home, needFiles)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	// So does a socket that nobody listens at any more.
	l, err := net.Listen("unix", filepath.Join(home, "vm.sock"))
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if code, _, errs := call(t, "vm", "ls"); code != exitPlatform || !strings.Contains(errs, "in use by another") || !strings.Contains(errs, "--socket") {
		t.Errorf("%d %s", code, errs)
	}
}

func TestADaemonMayListenWhereThePathIsLong(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("d", 200))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "vm.sock")
	l, err := listenPrivately(socket)
	if err != nil {
		t.Fatal(err)
	}
	if err := answers(t.Context(), socket); err != nil || l.Addr().String() != socket {
		t.Errorf("nobody answers at %s: %v", l.Addr(), err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

func TestPagesInABrowserCannotCallTheAPI(t *testing.T) {
	h := keepPagesOut(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }))
	tcp, unix := net.Addr(&net.TCPAddr{}), net.Addr(&net.UnixAddr{Net: "unix"})
	for _, tc := range []struct {
		name         string
		local        net.Addr
		host, origin string
		status       int
	}{
		{"a client at the socket", unix, "volley", "", http.StatusNoContent},
		{"a client of loopback", tcp, "127.0.0.1:9402", "", http.StatusNoContent},
		{"a client of IPv6", tcp, "[::1]:9402", "", http.StatusNoContent},
		{"a client of localhost", tcp, "localhost:9402", "", http.StatusNoContent},
		{"a page elsewhere", tcp, "127.0.0.1:9402", "https://evil.example", http.StatusForbidden},
		{"a name that leads here", tcp, "evil.example:9402", "http://evil.example:9402", http.StatusForbidden},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := httptest.NewRequestWithContext(context.WithValue(t.Context(), http.LocalAddrContextKey, tc.local), http.MethodPost, "/v1/gc", nil)
			r.Host = tc.host
			if tc.origin != "" {
				r.Header.Set("Origin", tc.origin)
			}
			w := httptest.NewRecorder()
			if h.ServeHTTP(w, r); w.Code != tc.status {
				t.Errorf("status %d, want %d", w.Code, tc.status)
			}
		})
	}
}
