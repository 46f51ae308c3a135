//go:build unix

// Command behave is the function of the conformance suite of sandboxes. It
// behaves, mostly badly, as its event says; BEHAVE in its environment makes it
// behave badly before there is an event, or speak the Runtime API itself.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/aws/aws-lambda-go/lambda"
	"github.com/aws/aws-lambda-go/lambdacontext"
)

// event says what to do. The other fields are arguments of that.
type event struct {
	Do     string          `json:"do"`
	Data   json.RawMessage `json:"data,omitempty"`
	Text   string          `json:"text,omitempty"`
	Count  int             `json:"count,omitempty"`
	Bytes  int             `json:"bytes,omitempty"`
	Status int             `json:"status,omitempty"`
}

// lingerArg, as the first argument, makes a process that does nothing. The
// second is a token to find it by.
const lingerArg = "linger"

func main() {
	if len(os.Args) > 1 && os.Args[1] == lingerArg {
		signal.Ignore(syscall.SIGTERM, syscall.SIGHUP)
		fmt.Println("here")
		hang()
	}
	switch mode := os.Getenv("BEHAVE"); mode {
	case "":
		lambda.Start(handle)
	case "exit-at-init":
		fmt.Println("leaving early")
		os.Exit(3)
	case "leave-at-init":
		os.Exit(0)
	case "hang-at-init":
		fmt.Println("hanging early")
		hang()
	default:
		if err := speak(mode); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

// hang waits for ever. A program whose goroutines all wait is ended by its
// runtime, hence the clock.
func hang() {
	for {
		time.Sleep(time.Hour)
	}
}

func handle(ctx context.Context, e event) (any, error) {
	switch e.Do {
	case "echo":
		return e.Data, nil
	case "error":
		return nil, errors.New(e.Text)
	case "panic":
		panic(e.Text)
	case "exit":
		os.Exit(e.Status)
	case "kill":
		return nil, syscall.Kill(os.Getpid(), syscall.SIGKILL)
	case "crash":
		// Another thread may take the signal: no answer must get ahead of it.
		if err := syscall.Kill(os.Getpid(), syscall.SIGABRT); err != nil {
			return nil, err
		}
		select {}
	case "hang":
		fmt.Println("hanging")
		hang()
	case "ignore-term":
		signal.Ignore(syscall.SIGTERM)
		hang()
	case "linger":
		return nil, linger(e.Text)
	case "print":
		return nil, printLines(e)
	case "large":
		return strings.Repeat("x", e.Bytes), nil
	case "environment":
		return os.Environ(), nil
	case "context":
		return describe(ctx)
	}
	return handleLimits(e)
}

// describe returns what the function is told of its invocation.
func describe(ctx context.Context) (any, error) {
	lc, ok := lambdacontext.FromContext(ctx)
	if !ok {
		return nil, errors.New("there is no Lambda context")
	}
	deadline, _ := ctx.Deadline()
	dir, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	return map[string]any{
		"id": lc.AwsRequestID, "arn": lc.InvokedFunctionArn, "custom": lc.ClientContext.Custom,
		"remainingMS": time.Until(deadline).Milliseconds(),
		"trace":       os.Getenv("_X_AMZN_TRACE_ID"),
		"dir":         dir,
	}, nil
}

// linger starts processes that outlive their parent, one in a session of its
// own.
func linger(token string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	for _, own := range []bool{false, true} {
		cmd := exec.Command(self, lingerArg, token)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: own}
		out, err := cmd.StdoutPipe()
		if err != nil {
			return err
		}
		if err := cmd.Start(); err != nil {
			return err
		}
		// Wait until it ignores signals.
		if _, err := out.Read(make([]byte, 1)); err != nil {
			return err
		}
		if err := cmd.Process.Release(); err != nil {
			return err
		}
	}
	return nil
}

// printLines prints Text, Count times (once if 0), or Bytes of it.
func printLines(e event) error {
	line := []byte(e.Text + "\n")
	if e.Bytes == 0 {
		for range max(e.Count, 1) {
			if _, err := os.Stdout.Write(line); err != nil {
				return err
			}
		}
		return nil
	}
	block := []byte(strings.Repeat(string(line), 1+(64<<10)/len(line)))
	for left := e.Bytes; left > 0; left -= len(block) {
		if _, err := os.Stdout.Write(block[:min(left, len(block))]); err != nil {
			return err
		}
	}
	return nil
}

// handleLimits tries to get over the limits of a sandbox.
func handleLimits(e event) (any, error) {
	switch e.Do {
	case "memory":
		// Each page is written, so that it is there.
		block := make([]byte, e.Bytes)
		for i := 0; i < len(block); i += 4096 {
			block[i] = 1
		}
		runtime.KeepAlive(block)
		return len(block), nil
	case "processes":
		return startMany(e.Count)
	case "write":
		return nil, writeFile(e.Text, e.Bytes)
	case "user":
		return map[string]int{"uid": os.Getuid(), "gid": os.Getgid()}, nil
	case "signal-init":
		// Process 1 is volley-init in a process namespace.
		return nil, syscall.Kill(1, syscall.SIGKILL)
	case "read":
		b, err := os.ReadFile(e.Text)
		return string(b), err
	case "dial":
		conn, err := net.DialTimeout("tcp", e.Text, 2*time.Second)
		if err != nil {
			return nil, err
		}
		return "connected", conn.Close()
	}
	return nil, fmt.Errorf("behave: %q is unknown", e.Do)
}

// startMany starts processes until one cannot be started, and returns how many
// could.
func startMany(count int) (any, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	for n := range count {
		cmd := exec.Command(self, lingerArg, "one of many")
		if err := cmd.Start(); err != nil {
			return n, nil
		}
		defer func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}()
	}
	return count, nil
}

func writeFile(name string, size int) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	block := make([]byte, 1<<20)
	for ; size > 0 && err == nil; size -= len(block) {
		_, err = f.Write(block[:min(size, len(block))])
	}
	return errors.Join(err, f.Close(), os.Remove(name))
}
