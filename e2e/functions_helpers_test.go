package e2e_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"

	"github.com/volley-run/volley/internal/testenv"
	"github.com/volley-run/volley/sophon/controller"
)

// daemon is a volley command that serves until it is told to end.
type daemon struct {
	cmd  *exec.Cmd
	out  *testenv.Buffer
	done chan struct{}
	// address is what the first line of its output names.
	address string
}

// startDaemon starts a command and waits until it has said that it is ready.
// It is stopped, and its end waited for, when the test ends.
func startDaemon(t *testing.T, env []string, args ...string) *daemon {
	t.Helper()
	d := &daemon{cmd: exec.Command(volley, args...), out: &testenv.Buffer{}, done: make(chan struct{})}
	d.cmd.Stdout, d.cmd.Stderr = d.out, d.out
	d.cmd.Env = append(os.Environ(), env...)
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(d.done)
		_ = d.cmd.Wait() // the output tells
	}()
	t.Cleanup(func() {
		d.stop(t)
		if t.Failed() {
			t.Logf("volley %s:\n%s", strings.Join(args, " "), lastLines(d.out.String(), 40))
		}
	})
	ready := regexp.MustCompile(`(?:https?|nats)://[0-9.:]+|Invoker \S+ has`)
	eventually(t, "volley "+args[0]+" to be ready", func() bool {
		select {
		case <-d.done:
			t.Fatalf("volley %q ended:\n%s", args, d.out.String())
		default:
		}
		if !strings.Contains(d.out.String(), "(Ctrl-C ends)") {
			return false
		}
		d.address = ready.FindString(d.out.String())
		return d.address != ""
	})
	return d
}

func lastLines(text string, n int) string {
	lines := strings.Split(text, "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// stop ends the daemon as Ctrl-C does. One that has ended stays ended.
func (d *daemon) stop(t *testing.T) {
	t.Helper()
	d.signal(t, syscall.SIGTERM)
	select {
	case <-d.done:
	case <-time.After(40 * time.Second):
		d.kill(t)
		t.Errorf("%q did not end after SIGTERM", d.cmd.Args)
	}
}

// kill ends the daemon at once, as a crash does.
func (d *daemon) kill(t *testing.T) {
	t.Helper()
	d.signal(t, syscall.SIGKILL)
	<-d.done
}

func (d *daemon) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := d.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("signal: %v", err)
	}
}

// functionsAPI is a client of a platform.
type functionsAPI struct {
	*lambda.Client
	endpoint, credentials string
}

// openAPI makes a client with the keys in a file.
func openAPI(t *testing.T, endpoint, credentials string) *functionsAPI {
	t.Helper()
	cfg, err := config.LoadDefaultConfig(t.Context(), config.WithRegion("us-east-1"), config.WithSharedConfigFiles(nil),
		config.WithSharedCredentialsFiles([]string{credentials}), config.WithSharedConfigProfile("default"))
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{MaxIdleConnsPerHost: 64}
	t.Cleanup(transport.CloseIdleConnections)
	return &functionsAPI{endpoint: endpoint, credentials: credentials, Client: lambda.NewFromConfig(cfg, func(o *lambda.Options) {
		o.BaseEndpoint = &endpoint
		o.HTTPClient = &http.Client{Transport: transport}
		o.RetryMaxAttempts = 1
	})}
}

// run calls the volley command against this platform.
func (f *functionsAPI) run(t *testing.T, args ...string) ended {
	t.Helper()
	return runVolley(t, append(args, "--endpoint", f.endpoint, "--credentials", f.credentials)...)
}

func (f *functionsAPI) succeed(t *testing.T, args ...string) string {
	t.Helper()
	e := f.run(t, args...)
	if e.code != 0 {
		t.Fatalf("volley %q: exit status %d\n%s%s", args, e.code, e.stdout, e.stderr)
	}
	return e.stdout
}

// records returns the outcomes of asynchronous invocations.
func (f *functionsAPI) records(t *testing.T) []controller.Record {
	t.Helper()
	e := f.run(t, "records", "--json", "--limit", "100000")
	if e.code != 0 {
		return nil // no controller leads at the moment
	}
	var out []controller.Record
	if err := json.Unmarshal([]byte(e.stdout), &out); err != nil {
		t.Fatalf("%v\n%s", err, e.stdout)
	}
	return out
}

// invokeAsync hands in an event, again and again until it is accepted, and
// returns the request's id.
func (f *functionsAPI) invokeAsync(t *testing.T, name, event string) {
	t.Helper()
	eventually(t, "an asynchronous invocation to be accepted", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		_, err := f.Invoke(ctx, &lambda.InvokeInput{FunctionName: &name, InvocationType: types.InvocationTypeEvent, Payload: []byte(event)})
		return err == nil
	})
}

// invoke calls a function once.
func (f *functionsAPI) invoke(ctx context.Context, name, event string) (string, error) {
	out, err := f.Invoke(ctx, &lambda.InvokeInput{FunctionName: &name, Payload: []byte(event)})
	if err != nil {
		return "", err
	}
	if out.FunctionError != nil {
		return "", fmt.Errorf("function error %s: %s", aws.ToString(out.FunctionError), out.Payload)
	}
	return string(out.Payload), nil
}

// pythonFunction writes a function in Python and returns its directory.
func pythonFunction(t *testing.T, code string) string {
	t.Helper()
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "main.py"), code)
	return dir
}

// freePort returns a loopback address that nobody listens on.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// startServer runs "volley server" with data in a directory of its own.
func startServer(t *testing.T, args ...string) (*daemon, *functionsAPI) {
	t.Helper()
	return startServerIn(t, t.TempDir(), args...)
}

func startServerIn(t *testing.T, data string, args ...string) (*daemon, *functionsAPI) {
	t.Helper()
	d := startDaemon(t, nil, append([]string{"server", "--data", data, "--listen", "127.0.0.1:0", "--s3-listen", "127.0.0.1:0", "--memory", "2GB"}, args...)...)
	return d, openAPI(t, d.address, filepath.Join(data, "credentials"))
}
