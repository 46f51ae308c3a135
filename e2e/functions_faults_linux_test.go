package e2e_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/volley-run/volley/internal/testenv"
	"github.com/volley-run/volley/sophon/controller"
)

// counting is a function that notes each run in a file that the test can read,
// and takes a while.
const counting = `
import json, os, time

def handler(event, context):
    time.sleep(event.get("sleep", 0.2))
    return {"n": event["n"], "request": context.aws_request_id}
`

// cluster is a platform of several processes.
type cluster struct {
	t           *testing.T
	nats        *daemon
	natsArgs    []string
	controllers []*daemon
	credentials string
	mark        string
}

// startCluster starts NATS and controllers.
func startCluster(t *testing.T, controllers int) *cluster {
	t.Helper()
	c := &cluster{t: t, credentials: filepath.Join(t.TempDir(), "credentials"), mark: mark(t)}
	c.natsArgs = []string{"nats", "--listen", freePort(t), "--data", t.TempDir()}
	c.nats = startDaemon(t, []string{c.mark}, c.natsArgs...)
	for range controllers {
		c.controllers = append(c.controllers, startDaemon(t, []string{c.mark}, "controller", "--nats", c.nats.address, "--listen", "127.0.0.1:0",
			"--data", t.TempDir(), "--credentials", c.credentials, "--offline-after", "3s"))
	}
	return c
}

func (c *cluster) invoker(name, driver, join string, args ...string) *daemon {
	c.t.Helper()
	return c.invokerIn(c.t.TempDir(), name, driver, join, args...)
}

func (c *cluster) invokerIn(dir, name, driver, join string, args ...string) *daemon {
	c.t.Helper()
	return startDaemon(c.t, []string{c.mark}, append([]string{"invoker", "--join", join, "--name", name, "--driver", driver,
		"--memory", "1GB", "--data", dir}, args...)...)
}

func (c *cluster) api(n int) *functionsAPI {
	return openAPI(c.t, c.controllers[n].address, c.credentials)
}

// checkOutcomes waits until n asynchronous invocations have ended and checks
// that each of them succeeded, once.
func checkOutcomes(t *testing.T, api *functionsAPI, n int) {
	t.Helper()
	var records []controller.Record
	eventually(t, fmt.Sprintf("%d asynchronous invocations to end", n), func() bool {
		records = api.records(t)
		return len(records) >= n
	})
	if len(records) != n {
		t.Errorf("%d records for %d invocations", len(records), n)
	}
	seen := map[string]bool{}
	for _, r := range records {
		if r.Status != controller.Succeeded {
			t.Errorf("request %s: %s, %s, %v", r.RequestID, r.Status, r.Condition, r.Error)
		}
		if seen[r.RequestID] {
			t.Errorf("request %s ended twice", r.RequestID)
		}
		seen[r.RequestID] = true
		if !strings.Contains(string(r.Payload), r.RequestID) {
			t.Errorf("request %s has another's result: %s", r.RequestID, r.Payload)
		}
	}
}

func TestAnInvokerThatIsKilledUnderLoadLosesNothingAndLeaksNothing(t *testing.T) {
	testenv.Need(t, testenv.Runc, testenv.Python3)
	c := startCluster(t, 1)
	dir := t.TempDir()
	first := c.invokerIn(dir, "first", "runc", c.nats.address)
	api := c.api(0)
	api.succeed(t, "deploy", "count", pythonFunction(t, counting), "--memory", "64MB", "--timeout", "20s")

	// One that waits for its answer, on the invoker that will die.
	failed := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		_, err := api.invoke(ctx, "count", `{"n": -1, "sleep": 15}`)
		failed <- err
	}()
	eventually(t, "it to run", func() bool { return strings.Contains(api.run(t, "ps").stdout, "busy") })
	const events = 24
	for n := range events {
		api.invokeAsync(t, "count", fmt.Sprintf(`{"n": %d, "sleep": 0.5}`, n))
	}
	eventually(t, "containers to be busy", func() bool { return strings.Count(api.run(t, "ps").stdout, "busy") >= 4 })
	first.kill(t)
	c.invoker("second", "runc", c.nats.address)

	if err := <-failed; err == nil || !strings.Contains(err.Error(), "invoker") {
		t.Errorf("the caller of the lost invocation got %v, want an error that names the invoker", err)
	}
	checkOutcomes(t, api, events)

	// Without their invoker the functions end; what else there was goes when
	// it starts again.
	eventually(t, "the functions of the killed invoker to end", func() bool {
		busy := api.run(t, "ps").stdout
		return inContainers(t, func(cgroup string) bool { return !strings.Contains(busy, filepath.Base(cgroup)) }) == 0
	})
	again := c.invokerIn(dir, "first", "runc", c.nats.address)
	eventually(t, "the remains to be removed", func() bool { return len(containersIn(t, dir)) == 0 })
	if m := mounts(t); strings.Contains(m, dir) {
		t.Errorf("mounts are left:\n%s", m)
	}
	again.stop(t)
}

// mounts is the host's table of mounts.
func mounts(t *testing.T) string {
	t.Helper()
	return readFile(t, "/proc/self/mountinfo")
}

// containersIn lists the containers whose state runc keeps below dir.
func containersIn(t *testing.T, dir string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, "invoker", "runc", "*", "*", "state.json"))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// inContainers counts the processes in cgroups of containers that are meant.
func inContainers(t *testing.T, meant func(cgroup string) bool) int {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		for line := range strings.Lines(string(text)) {
			if _, path, ok := strings.Cut(strings.TrimSpace(line), "/volley-"); ok && meant(path) {
				n++
				break
			}
		}
	}
	return n
}

func TestAStandbyTakesOverWithoutLosingAnInvocation(t *testing.T) {
	testenv.Need(t, testenv.Python3)
	c := startCluster(t, 2)
	c.invoker("one", "process", c.nats.address)
	c.invoker("two", "process", c.nats.address)
	api, standby := c.api(0), c.api(1)
	api.succeed(t, "deploy", "count", pythonFunction(t, counting), "--memory", "64MB")
	// The standby serves too: it asks the leader.
	if out, err := standby.invoke(t.Context(), "count", `{"n": 1, "sleep": 0}`); err != nil || !strings.Contains(out, `"n": 1`) {
		t.Fatalf("by the standby: %s, %v", out, err)
	}
	const events = 60
	for n := range events / 2 {
		api.invokeAsync(t, "count", fmt.Sprintf(`{"n": %d, "sleep": 0.3}`, n))
	}
	c.controllers[0].kill(t)
	killed := time.Now()
	eventually(t, "the standby to lead", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := standby.invoke(ctx, "count", `{"n": 2, "sleep": 0}`)
		return err == nil
	})
	if took := time.Since(killed); took > 3*time.Second {
		t.Errorf("the standby served after %s, want at most 3 s", took)
	} else {
		t.Logf("the standby served after %s", took)
	}
	for n := events / 2; n < events; n++ {
		standby.invokeAsync(t, "count", fmt.Sprintf(`{"n": %d, "sleep": 0.1}`, n))
	}
	checkOutcomes(t, standby, events)
}

func TestARestartOfNATSLosesNoAsynchronousInvocation(t *testing.T) {
	testenv.Need(t, testenv.Python3)
	c := startCluster(t, 1)
	c.invoker("one", "process", c.nats.address)
	api := c.api(0)
	api.succeed(t, "deploy", "count", pythonFunction(t, counting), "--memory", "64MB")
	const events = 40
	for n := range events / 2 {
		api.invokeAsync(t, "count", fmt.Sprintf(`{"n": %d, "sleep": 0.3}`, n))
	}
	c.nats.kill(t)
	c.nats = startDaemon(t, []string{c.mark}, c.natsArgs...)
	for n := events / 2; n < events; n++ {
		api.invokeAsync(t, "count", fmt.Sprintf(`{"n": %d, "sleep": 0.1}`, n))
	}
	checkOutcomes(t, api, events)
	if out, err := api.invoke(t.Context(), "count", `{"n": 7, "sleep": 0}`); err != nil || !strings.Contains(out, `"n": 7`) {
		t.Errorf("afterwards: %s, %v", out, err)
	}
}

func TestAnInvokerThatWasCutOffComesBack(t *testing.T) {
	testenv.Need(t, testenv.Python3)
	c := startCluster(t, 1)
	cut := startCable(t, strings.TrimPrefix(c.nats.address, "nats://"))
	c.invoker("far", "process", "nats://"+cut.address())
	api := c.api(0)
	api.succeed(t, "deploy", "count", pythonFunction(t, counting), "--memory", "64MB")
	const events = 20
	for n := range events {
		api.invokeAsync(t, "count", fmt.Sprintf(`{"n": %d, "sleep": 0.3}`, n))
	}
	cut.unplug()
	eventually(t, "the invoker to count as offline", func() bool { return strings.Contains(api.run(t, "nodes").stdout, "offline") })
	near := c.invoker("near", "process", c.nats.address)
	checkOutcomes(t, api, events)
	cut.plug()
	eventually(t, "the invoker to be back", func() bool { return strings.Count(api.run(t, "nodes").stdout, "online") == 2 })
	near.stop(t)
	eventually(t, "the other invoker to be gone", func() bool { return strings.Count(api.run(t, "nodes").stdout, "online") == 1 })
	if out, err := api.invoke(t.Context(), "count", `{"n": 9, "sleep": 0}`); err != nil || !strings.Contains(out, `"n": 9`) {
		t.Errorf("on the invoker that came back: %s, %v", out, err)
	}
}

// cable is a TCP connection's way that can be cut.
type cable struct {
	listener net.Listener
	to       string
	mu       sync.Mutex
	cut      bool
	open     map[net.Conn]bool
	done     sync.WaitGroup
}

func startCable(t *testing.T, to string) *cable {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cable{listener: l, to: to, open: map[net.Conn]bool{}}
	c.done.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			c.done.Go(func() { c.carry(conn) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close() // the loop ends
		c.unplug()
		c.done.Wait()
	})
	return c
}

func (c *cable) address() string { return c.listener.Addr().String() }

func (c *cable) carry(near net.Conn) {
	defer near.Close()
	far, err := net.Dial("tcp", c.to)
	if err != nil {
		return
	}
	defer far.Close()
	c.mu.Lock()
	if c.cut {
		c.mu.Unlock()
		return
	}
	c.open[near], c.open[far] = true, true
	c.mu.Unlock()
	var both sync.WaitGroup
	for _, pair := range [][2]net.Conn{{near, far}, {far, near}} {
		both.Go(func() {
			_, _ = io.Copy(pair[0], pair[1]) // it ends when either side does
			_ = pair[0].Close()
			_ = pair[1].Close()
		})
	}
	both.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.open, near)
	delete(c.open, far)
}

// unplug cuts what is connected, and refuses what wants to be.
func (c *cable) unplug() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut = true
	for conn := range c.open {
		_ = conn.Close() // it is being cut
	}
}

func (c *cable) plug() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut = false
}
