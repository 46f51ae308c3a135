package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// The names of the measurements.
const (
	measureLatency    = "latency"
	measureThroughput = "throughput"
	measureCold       = "cold"
	measureBurst      = "burst"
)

// invokeBench is a running server, and an emulator to compare with.
type invokeBench struct {
	o       benchInvokeOptions
	dir     string
	stderr  io.Writer
	client  *client
	api     *child
	rie     *child
	volley  *invokeTarget
	emulate *invokeTarget
}

// child is a program that serves while the benchmark runs.
type child struct {
	cmd *exec.Cmd
	log bytes.Buffer
}

func startChild(env []string, name string, args ...string) (*child, error) {
	c := &child{cmd: exec.Command(name, args...)}
	c.cmd.Env = append(os.Environ(), env...)
	c.cmd.Stdout, c.cmd.Stderr = &c.log, &c.log
	if err := c.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return c, nil
}

// stop asks the program to end and waits.
func (c *child) stop() error {
	if c == nil {
		return nil
	}
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", c.cmd.Path, err)
	}
	kill := time.AfterFunc(30*time.Second, func() { _ = c.cmd.Process.Kill() }) // Wait tells
	defer kill.Stop()
	_ = c.cmd.Wait() // it was told to end
	return nil
}

func startInvokeBench(ctx context.Context, o benchInvokeOptions, dir string, stderr io.Writer) (b *invokeBench, err error) {
	b = &invokeBench{o: o, dir: dir, stderr: stderr, volley: &invokeTarget{}, emulate: &invokeTarget{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.close())
		}
	}()
	address, err := freeAddress()
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	home := filepath.Join(dir, "home")
	b.api, err = startChild(nil, self, "server", "--data", home, "--listen", address, "--s3-listen", "", "--driver", o.driver, "--log-level", "warn")
	if err != nil {
		return nil, err
	}
	keys := filepath.Join(home, "credentials")
	err = b.until(ctx, b.api, "the server to come up", func() error {
		if _, err := os.Stat(keys); err != nil {
			return err
		}
		options := clientOptions{endpoint: address, credentials: keys}
		if b.client, err = options.open(ctx); err != nil {
			return err
		}
		return listFunctions(ctx, options, true, io.Discard)
	})
	if err != nil {
		return nil, err
	}
	credentials, err := b.client.credentials.Retrieve(ctx)
	if err != nil {
		return nil, fmt.Errorf("read keys: %w", err)
	}
	b.volley = &invokeTarget{name: "volley", url: b.functionURL("echo"), keys: &credentials}
	if err := b.deploy(ctx, "echo"); err != nil {
		return nil, err
	}
	if o.rie == "" {
		return b, nil
	}
	if address, err = freeAddress(); err != nil {
		return nil, err
	}
	if b.rie, err = startChild(nil, o.rie, "--runtime-interface-emulator-address", address, o.echo); err != nil {
		return nil, usagef("--rie: %w", err)
	}
	b.emulate = &invokeTarget{name: "rie", url: "http://" + address + "/2015-03-31/functions/function/invocations", single: &sync.Mutex{}}
	return b, b.until(ctx, b.rie, "the emulator to come up", func() error { return b.emulate.call(ctx, b.emulate.url) })
}

func (b *invokeBench) functionURL(name string) string {
	return b.client.endpoint + "/2015-03-31/functions/" + name + "/invocations"
}

// deploy makes a function of the echo program.
func (b *invokeBench) deploy(ctx context.Context, name string) error {
	dir := filepath.Join(b.dir, "code")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make code directory: %w", err)
	}
	program, err := os.ReadFile(b.o.echo)
	if err != nil {
		return fmt.Errorf("read the echo function: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "bootstrap"), program, 0o755); err != nil {
		return fmt.Errorf("write the echo function: %w", err)
	}
	o := deployOptions{memory: 128, tmp: 64, timeout: 30 * time.Second, network: "none", reserved: -1, provisioned: -1, retries: -1,
		clientOptions: clientOptions{endpoint: b.client.endpoint, credentials: filepath.Join(b.dir, "home", "credentials")}}
	return deploy(ctx, name, dir, o, io.Discard)
}

// until repeats try until it succeeds, the program ends or time is up.
func (b *invokeBench) until(ctx context.Context, c *child, what string, try func() error) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w\n%s", what, err, c.log.String())
		case <-time.After(50 * time.Millisecond):
		}
		if syscall.Kill(c.cmd.Process.Pid, 0) != nil {
			return fmt.Errorf("wait for %s: it ended\n%s", what, c.log.String())
		}
	}
}

func (b *invokeBench) close() error {
	b.volley.close()
	b.emulate.close()
	return errors.Join(b.rie.stop(), b.api.stop())
}

func (b *invokeBench) run(ctx context.Context) ([]invokeRun, error) {
	targets := []*invokeTarget{b.volley}
	if b.rie != nil {
		targets = append(targets, b.emulate)
	}
	var runs []invokeRun
	add := func(r invokeRun, err error) error {
		runs = append(runs, r)
		return err
	}
	for round := range b.o.rounds {
		for _, t := range targets {
			fmt.Fprintf(b.stderr, "round %d of %d: %s\n", round+1, b.o.rounds, t.name)
			// Containers for as many as come at once are not what is measured.
			if err := b.warm(ctx, t); err != nil {
				return nil, err
			}
			if err := add(b.latency(ctx, t, round)); err != nil {
				return nil, err
			}
			if err := add(b.throughput(ctx, t, round, 1)); err != nil {
				return nil, err
			}
			if t != b.volley || b.o.connections == 1 {
				continue
			}
			if err := add(b.throughput(ctx, t, round, b.o.connections)); err != nil {
				return nil, err
			}
		}
	}
	if b.o.cold > 0 {
		if err := add(b.cold(ctx)); err != nil {
			return nil, err
		}
	}
	if b.o.burst > 0 {
		if err := add(b.burst(ctx)); err != nil {
			return nil, err
		}
	}
	return runs, nil
}

func (b *invokeBench) warm(ctx context.Context, t *invokeTarget) error {
	clients := 1
	if t == b.volley {
		clients = b.o.connections
	}
	_, failed, _, err := callers(ctx, clients, 500*time.Millisecond, func(int) error { return t.call(ctx, t.url) })
	if err == nil && failed > 0 {
		err = fmt.Errorf("warm up %s: %d calls failed", t.name, failed)
	}
	return err
}

// latency sends requests at a steady rate.
func (b *invokeBench) latency(ctx context.Context, t *invokeTarget, round int) (invokeRun, error) {
	var mu sync.Mutex
	var took []time.Duration
	var firstErr error
	failed := 0
	var wg sync.WaitGroup
	begun := time.Now()
	n := int(b.o.duration.Seconds() * float64(b.o.rate))
	for i := range n {
		due := begun.Add(time.Duration(i) * time.Second / time.Duration(b.o.rate))
		if err := waitUntil(ctx, due); err != nil {
			break
		}
		// The timer's own lateness is not the platform's.
		sent := time.Now()
		wg.Go(func() {
			err := t.call(ctx, t.url)
			d := time.Since(sent)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed++
				firstErr = cmp.Or(firstErr, err)
				return
			}
			took = append(took, d)
		})
	}
	wg.Wait()
	if err := ctx.Err(); err != nil {
		return invokeRun{}, err
	}
	b.tell(t.name, firstErr)
	return newInvokeRun(measureLatency, fmt.Sprintf("%s at %d/s", t.name, b.o.rate), round, took, failed, time.Since(begun)), nil
}

// throughput lets clients call one after the other.
func (b *invokeBench) throughput(ctx context.Context, t *invokeTarget, round, clients int) (invokeRun, error) {
	took, failed, wall, err := callers(ctx, clients, b.o.duration, func(int) error {
		err := t.call(ctx, t.url)
		b.tell(t.name, err)
		return err
	})
	return newInvokeRun(measureThroughput, fmt.Sprintf("%s, %s", t.name, plural(clients, "client")), round, took, failed, wall), err
}

// cold calls functions that were never called before, one at a time.
func (b *invokeBench) cold(ctx context.Context) (invokeRun, error) {
	fmt.Fprintln(b.stderr, "cold starts, one at a time")
	for i := range b.o.cold {
		if err := b.deploy(ctx, fmt.Sprintf("cold-%d", i)); err != nil {
			return invokeRun{}, err
		}
	}
	var took []time.Duration
	failed := 0
	begun := time.Now()
	for i := range b.o.cold {
		start := time.Now()
		if err := b.volley.call(ctx, b.functionURL(fmt.Sprintf("cold-%d", i))); err != nil {
			b.tell("cold", err)
			failed++
			continue
		}
		took = append(took, time.Since(start))
	}
	return newInvokeRun(measureCold, "volley", 0, took, failed, time.Since(begun)), ctx.Err()
}

// burst calls many functions for the first time, all at once.
func (b *invokeBench) burst(ctx context.Context) (invokeRun, error) {
	fmt.Fprintf(b.stderr, "%d functions called at once for the first time\n", b.o.burst)
	for i := range b.o.burst {
		if err := b.deploy(ctx, fmt.Sprintf("burst-%d", i)); err != nil {
			return invokeRun{}, err
		}
	}
	var mu sync.Mutex
	var took []time.Duration
	failed := 0
	var wg sync.WaitGroup
	begun := time.Now()
	for i := range b.o.burst {
		wg.Go(func() {
			err := b.volley.call(ctx, b.functionURL(fmt.Sprintf("burst-%d", i)))
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				b.tell("burst", err)
				failed++
				return
			}
			took = append(took, time.Since(begun))
		})
	}
	wg.Wait()
	return newInvokeRun(measureBurst, fmt.Sprintf("volley, %d functions", b.o.burst), 0, took, failed, time.Since(begun)), ctx.Err()
}

func (b *invokeBench) tell(who string, err error) {
	if err != nil {
		fmt.Fprintf(b.stderr, "%s: %v\n", who, err)
	}
}

// callers runs clients that call one time after the other for a while.
func callers(ctx context.Context, clients int, d time.Duration, call func(client int) error) (took []time.Duration, failed int, wall time.Duration, err error) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	begun := time.Now()
	for i := range clients {
		wg.Go(func() {
			var own []time.Duration
			bad := 0
			for time.Since(begun) < d && ctx.Err() == nil {
				start := time.Now()
				if call(i) != nil {
					bad++
					continue
				}
				own = append(own, time.Since(start))
			}
			mu.Lock()
			defer mu.Unlock()
			took, failed = append(took, own...), failed+bad
		})
	}
	wg.Wait()
	return took, failed, time.Since(begun), ctx.Err()
}

func waitUntil(ctx context.Context, due time.Time) error {
	t := time.NewTimer(time.Until(due))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// freeAddress returns a loopback address that nobody listens on.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	return l.Addr().String(), l.Close()
}
