//go:build unix

package sandboxtest

import (
	"encoding/json"
	"net"
	"strings"
	"testing"

	"github.com/volley-run/volley/function"
)

// limitTests are for drivers that isolate; each asks for its option.
func (s *suite) limitTests() []test {
	var tests []test
	for _, t := range []struct {
		on bool
		test
	}{
		{s.opts.Memory, test{"memory over the limit is told as such", s.testMemory}},
		{s.opts.Processes > 0, test{"processes are bounded", s.testProcesses}},
		{s.opts.Tmp, test{"the size of /tmp is bounded", s.testTmp}},
		{s.opts.ReadOnlyRoot, test{"nothing outside /tmp can be written to", s.testReadOnlyRoot}},
		{s.opts.UID != 0, test{"functions run as their own user", s.testUser}},
		{s.opts.NoNetwork, test{"the host's network is out of reach", s.testNoNetwork}},
		{s.opts.OwnProcesses, test{"volley-init is out of reach", s.testInitOutOfReach}},
	} {
		if t.on {
			tests = append(tests, t.test)
		}
	}
	return tests
}

func (s *suite) testMemory(t *testing.T) {
	other := s.create(t, s.function())
	box := s.create(t, s.function(func(f *function.Function) { f.MemoryMB = 128 }))
	req := request(t, do{"do": "memory", "bytes": 48 << 20})
	resp := invoke(t, box, req)
	wantAnswer(t, resp, 48<<20)
	if n := resp.MaxMemoryBytes; n != 0 && (n < 48<<20 || n > 128<<20) {
		t.Errorf("the peak is %d bytes", resp.MaxMemoryBytes)
	}
	req = request(t, do{"do": "memory", "bytes": 512 << 20})
	wantError(t, invoke(t, box, req), req, "Runtime.OutOfMemory",
		"RequestId: ID Error: Runtime exited with error: signal: killed", true)
	wantEcho(t, other)
}

func (s *suite) testProcesses(t *testing.T) {
	box := s.create(t, s.function())
	resp := invoke(t, box, request(t, do{"do": "processes", "count": s.opts.Processes + 50}))
	var n int
	if err := json.Unmarshal(resp.Payload, &n); err != nil {
		t.Fatalf("%v: %s", err, resp.Payload)
	}
	if n < 1 || n > s.opts.Processes {
		t.Errorf("%d processes could be started; the limit is %d", n, s.opts.Processes)
	}
	wantEcho(t, box)
}

func (s *suite) testTmp(t *testing.T) {
	box := s.create(t, s.function(func(f *function.Function) { f.TmpMB = 32 }))
	wantAnswer(t, invoke(t, box, request(t, do{"do": "write", "text": "/tmp/small", "bytes": 16 << 20})), nil)
	resp := invoke(t, box, request(t, do{"do": "write", "text": "/tmp/large", "bytes": 48 << 20}))
	if resp.FunctionError == "" || !strings.Contains(string(resp.Payload), "no space left") || resp.Broken {
		t.Errorf("48 MiB in 32: %s, error %q, broken %v", resp.Payload, resp.FunctionError, resp.Broken)
	}
	wantEcho(t, box)
}

func (s *suite) testReadOnlyRoot(t *testing.T) {
	box := s.create(t, s.function())
	for _, path := range []string{"/x", "/etc/x", "/usr/x", "/var/task/x", "/var/runtime/x", "/dev/x", "/proc/sys/kernel/hostname", "/.volley/x"} {
		if resp := invoke(t, box, request(t, do{"do": "write", "text": path, "bytes": 1})); resp.FunctionError == "" {
			t.Errorf("%s can be written to", path)
		}
	}
	wantAnswer(t, invoke(t, box, request(t, do{"do": "write", "text": "/tmp/x", "bytes": 1})), nil)
	if resp := invoke(t, box, request(t, do{"do": "read", "text": "/etc/shadow"})); resp.FunctionError == "" {
		t.Error("/etc/shadow can be read")
	}
}

func (s *suite) testUser(t *testing.T) {
	box := s.create(t, s.function())
	var got struct{ UID int }
	resp := invoke(t, box, request(t, do{"do": "user"}))
	if err := json.Unmarshal(resp.Payload, &got); err != nil {
		t.Fatal(err)
	}
	if got.UID != s.opts.UID {
		t.Errorf("uid %d, want %d", got.UID, s.opts.UID)
	}
}

func (s *suite) testNoNetwork(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	box := s.create(t, s.function())
	resp := invoke(t, box, request(t, do{"do": "dial", "text": listener.Addr().String()}))
	if resp.FunctionError == "" {
		t.Errorf("the host's loopback answers: %s", resp.Payload)
	}
}

func (s *suite) testInitOutOfReach(t *testing.T) {
	box := s.create(t, s.function())
	if resp := invoke(t, box, request(t, do{"do": "signal-init"})); resp.FunctionError == "" && s.opts.UID != 0 {
		t.Errorf("process 1 can be killed: %s", resp.Payload)
	}
	for _, file := range []string{"/proc/1/environ", "/proc/1/mem", "/proc/1/maps"} {
		if resp := invoke(t, box, request(t, do{"do": "read", "text": file})); resp.FunctionError == "" {
			t.Errorf("%s can be read", file)
		}
	}
	wantEcho(t, box)
}
