//go:build unix

package process_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/internal/sys"
	"github.com/volley-run/volley/sandbox"
	"github.com/volley-run/volley/sandbox/process"
	"github.com/volley-run/volley/sandbox/sandboxtest"
)

// envInvoker, in the environment, makes the test binary an invoker that will
// be killed: "driver's directory:volley-init:function's directory:token".
const envInvoker = "VOLLEY_PROCESS_TEST_INVOKER"

func TestMain(m *testing.M) {
	if args := os.Getenv(envInvoker); args != "" {
		if err := actAsInvoker(strings.Split(args, ":")); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// actAsInvoker runs a function that starts processes, prints the process id of
// volley-init and waits to be killed.
func actAsInvoker(args []string) error {
	d, err := process.New(process.Config{Dir: args[0], Init: args[1], Unpacker: sandboxtest.DirUnpacker{}})
	if err != nil {
		return err
	}
	box, err := d.Create(context.Background(), sandbox.Spec{ID: "box", Function: behave(args[2])})
	if err != nil {
		return err
	}
	resp, err := box.Invoke(context.Background(), event("linger", args[3]))
	if err != nil || resp.FunctionError != "" {
		return fmt.Errorf("invoke: %w: %s", err, resp.Payload)
	}
	pids, err := sys.Descendants(os.Getpid())
	if err != nil {
		return err
	}
	fmt.Println(pids[0])
	// The end comes from outside.
	_, err = box.Invoke(context.Background(), event("hang", ""))
	return err
}

const initTimeout = 1500 * time.Millisecond

func newDriver(t testing.TB, initPath string) *process.Driver {
	t.Helper()
	d, err := process.New(process.Config{
		Dir: t.TempDir(), Init: initPath, Unpacker: sandboxtest.DirUnpacker{}, InitTimeout: initTimeout,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// behave is the conformance suite's function in a directory.
func behave(dir string) *function.Function {
	f := &function.Function{
		Name: "behave", Runtime: "provided.al2023", Handler: "bootstrap", Code: function.Code{Object: dir}, Timeout: time.Minute,
	}
	f.SetDefaults()
	return f
}

func event(what, text string) sandbox.Request {
	payload, err := json.Marshal(map[string]string{"do": what, "text": text})
	if err != nil {
		panic(err)
	}
	return sandbox.Request{ID: "7a1b9a5e-9c8d-4d57-8e0a-7d4c4be1a001", Payload: payload, Deadline: time.Now().Add(time.Minute)}
}

func TestProcessDriverConforms(t *testing.T) {
	initPath := sandboxtest.BuildInit(t)
	sandboxtest.Run(t, func(t *testing.T) sandbox.Driver { return newDriver(t, initPath) }, sandboxtest.Options{InitTimeout: initTimeout})
}

// countProcesses returns how many live processes have a text in their command
// line.
func countProcesses(t *testing.T, text string) int {
	t.Helper()
	out, err := exec.Command("ps", "-A", "-o", "args=").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(out), text)
}

// eventually waits for a condition, for ten seconds at most.
func eventually(t *testing.T, what string, met func() bool) {
	t.Helper()
	deadline := time.NewTimer(10 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !met() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func TestTheDeathOfTheInvokerEndsEverything(t *testing.T) {
	dir, initPath, code := t.TempDir(), sandboxtest.BuildInit(t), sandboxtest.BuildBehave(t)
	token := "token-" + strconv.Itoa(os.Getpid()) + "-" + filepath.Base(code)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), envInvoker+"="+strings.Join([]string{dir, initPath, code, token}, ":"))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, readErr := bufio.NewReader(out).ReadString('\n')
	lingering := countProcesses(t, token)
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait() // killed
	initPid, err := strconv.Atoi(strings.TrimSpace(line))
	if readErr != nil || err != nil || lingering != 2 {
		t.Fatalf("the invoker said %q, %v; %d processes linger", line, readErr, lingering)
	}
	eventually(t, "the end of volley-init and the function", func() bool {
		return syscall.Kill(initPid, 0) != nil && countProcesses(t, token) == 0 && countProcesses(t, code) == 0
	})
	// What is left is found by the next invoker.
	d, err := process.New(process.Config{Dir: dir, Init: initPath, Unpacker: sandboxtest.DirUnpacker{}})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for _, want := range []int{1, 0} {
		if n, err := d.Recover(t.Context()); n != want || err != nil {
			t.Errorf("Recover = %d, %v; want %d", n, err, want)
		}
	}
}

func TestTheDeathOfInitEndsTheFunctionAndIsThePlatformsFault(t *testing.T) {
	d := newDriver(t, sandboxtest.BuildInit(t))
	code := sandboxtest.BuildBehave(t)
	started := make(chan struct{}, 1)
	box, err := d.Create(t.Context(), sandbox.Spec{ID: "box", Function: behave(code), Log: func(l function.LogLine) {
		if l.Stream == "stdout" {
			started <- struct{}{}
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		<-started
		for _, pid := range sys.Children(os.Getpid()) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}()
	resp, err := box.Invoke(t.Context(), event("hang", ""))
	if err == nil || !resp.Broken {
		t.Errorf("response %+v, error %v; want an error of the platform", resp, err)
	}
	<-box.Done()
	eventually(t, "the end of the function", func() bool { return countProcesses(t, code) == 0 })
	if err := box.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestClosingLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	initPath, code := sandboxtest.BuildInit(t), sandboxtest.BuildBehave(t)
	d, err := process.New(process.Config{Dir: dir, Init: initPath, Unpacker: sandboxtest.DirUnpacker{}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Create(t.Context(), sandbox.Spec{ID: "open", Function: behave(code)}); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	left, err := os.ReadDir(filepath.Join(dir, "sandboxes"))
	if len(left) > 0 || err != nil {
		t.Errorf("left behind: %v, error %v", left, err)
	}
	if n := countProcesses(t, initPath) + countProcesses(t, code); n > 0 {
		t.Errorf("%d processes are left", n)
	}
}

func TestWhatTheDriverCannotRunIsRefused(t *testing.T) {
	d := newDriver(t, sandboxtest.BuildInit(t))
	image := &function.Function{Name: "f", PackageType: function.Image}
	if _, err := d.Create(t.Context(), sandbox.Spec{ID: "x", Function: image}); function.CodeOf(err) != function.InvalidImage {
		t.Errorf("an image: %v, want InvalidImage", err)
	}
	for _, id := range []string{"", "../x", "a b", strings.Repeat("x", 65)} {
		if _, err := d.Create(t.Context(), sandbox.Spec{ID: id, Function: behave(t.TempDir())}); err == nil {
			t.Errorf("id %q is taken", id)
		}
	}
	if _, err := process.New(process.Config{Dir: t.TempDir(), Init: filepath.Join(t.TempDir(), "none")}); err == nil {
		t.Error("a driver without volley-init is made")
	}
}
