package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	runc "github.com/containerd/go-runc"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/internal/sys"
	"github.com/volley-run/volley/sandbox"
	"github.com/volley-run/volley/sandbox/agent"
	"github.com/volley-run/volley/sandbox/agent/frame"
)

const (
	// agentGrace is the time between SIGTERM and SIGKILL.
	agentGrace = frame.DefaultGrace
	// runTime bounds how long a runtime may take to start a container.
	runTime = time.Minute
	// maxStderrBytes is how much of what a runtime writes is kept for errors.
	maxStderrBytes = 4096
)

// onClose adds to what has to be taken away when the container is closed.
func (c *container) onClose(undo func(context.Context) error) { c.undo = append(c.undo, undo) }

// reach is called before each step of create.
func (c *container) reach(step string) error {
	if c.driver.fault != nil {
		return c.driver.fault(step)
	}
	return nil
}

// create makes the container and waits until its function is ready. What it
// has made when it returns is in c.undo, also after an error.
func (c *container) create(ctx context.Context, log func(function.LogLine)) (Timings, error) {
	defer close(c.created)
	var t Timings
	last := time.Now()
	lap := func(d *time.Duration) {
		now := time.Now()
		*d = now.Sub(last)
		last = now
	}
	boot, err := c.prepare(ctx)
	if err != nil {
		return t, err
	}
	lap(&t.Prepare)
	select {
	case c.driver.slots <- struct{}{}:
	case <-ctx.Done():
		return t, fmt.Errorf("create sandbox %s: wait for others: %w", c.id, context.Cause(ctx))
	}
	lap(&t.Queue)
	pipes, err := c.run(ctx)
	<-c.driver.slots
	if err != nil {
		return t, fmt.Errorf("create sandbox %s: %w", c.id, err)
	}
	lap(&t.Runtime)
	if err := c.reach("boot"); err != nil {
		return t, errors.Join(err, pipes.Host.Close())
	}
	c.agent, err = agent.Start(ctx, pipes.Host, boot, agent.Options{
		Function: c.function, Container: c.id, Log: log, OutOfMemory: c.outOfMemory, PeakMemory: c.peakMemory,
	})
	if err != nil {
		return t, err
	}
	lap(&t.Init)
	return t, c.reach("ready")
}

// prepare makes the root and the configuration of the container.
func (c *container) prepare(ctx context.Context) (agent.Boot, error) {
	d, f := c.driver, c.function
	if err := c.reach("root"); err != nil {
		return agent.Boot{}, err
	}
	spec := containerSpec{
		function: f, cgroup: c.group.path, boundSwap: d.boundSwap, maxProcesses: int64(d.cfg.MaxProcesses + d.engine.processes), seccomp: d.seccomp,
	}
	credential := frame.Credential{UID: d.cfg.UID, GID: d.cfg.GID}
	var image *agent.ImageDefaults
	if f.PackageType == function.Image {
		if d.cfg.Images == nil {
			return agent.Boot{}, function.Errorf(function.InvalidImage, "images are not enabled here: deploy function %s as a zip file", f.Name)
		}
		mounted, release, err := d.images.mount(ctx, d.cfg.Images, f)
		if err != nil {
			return agent.Boot{}, err
		}
		c.onClose(release)
		if credential, err = imageUser(mounted.root, mounted.Config, credential); err != nil {
			return agent.Boot{}, err
		}
		image = &agent.ImageDefaults{
			EntryPoint: mounted.Config.EntryPoint, Command: mounted.Config.Command, Env: mounted.Config.Env, WorkingDir: mounted.Config.WorkingDir,
		}
		spec.root = mounted.root
	} else {
		code, err := d.cfg.Unpacker.Unpack(ctx, f)
		if err != nil {
			return agent.Boot{}, err
		}
		c.onClose(func(context.Context) error {
			code.Release()
			return nil
		})
		spec.root = d.hostRoot
		spec.binds = append(append(spec.binds, d.hostBinds...), bind{code.Dir, agent.TaskRoot})
	}
	boot, err := agent.Command(f, c.id, agent.Layout{}, image)
	if err != nil {
		return agent.Boot{}, err
	}
	boot.Credential = &credential
	boot.Grace = agentGrace
	if d.cfg.InitTimeout != 0 {
		boot.InitTimeout = d.cfg.InitTimeout
	}
	if f.Network == function.NetworkHost {
		spec.binds = append(spec.binds, hostNetworkBinds(hostNetworkFiles())...)
	} else {
		boot.Port = agent.RuntimePort
	}
	if network, ok := f.Network.Job(); ok {
		place, err := c.join(ctx, network)
		if err != nil {
			return agent.Boot{}, err
		}
		spec.cgroup = c.group.path
		spec.netns = place.Namespace
		boot.Env = append(boot.Env, place.Env()...)
	}
	if err := c.writeBundle(spec); err != nil {
		return agent.Boot{}, fmt.Errorf("create sandbox %s: %w", c.id, err)
	}
	return boot, nil
}

// join puts the container on a job's network: in its namespace, and in the
// control group that holds it to its address.
func (c *container) join(ctx context.Context, network string) (sandbox.Place, error) {
	d := c.driver
	if d.cfg.Networks == nil || d.engine.ownKernel {
		return sandbox.Place{}, function.Errorf(function.InvalidParameter,
			"function %s: the driver %s has no job networks here: use the driver runc, as root", c.function.Name, d.Name())
	}
	place, err := d.cfg.Networks.Join(ctx, network, c.id)
	if err != nil {
		return sandbox.Place{}, err
	}
	c.onClose(func(ctx context.Context) error { return d.cfg.Networks.Leave(ctx, network, c.id) })
	if place.Cgroup == "" {
		return place, nil
	}
	if c.group, err = d.parent.h.groupBelow(place.Cgroup, c.id); err != nil {
		return sandbox.Place{}, fmt.Errorf("create sandbox %s: %w", c.id, err)
	}
	return place, nil
}

// hostNetworkFiles returns what of the host's /etc belongs to its network.
func hostNetworkFiles() map[string]string {
	files := map[string]string{}
	for _, name := range []string{"hosts", "resolv.conf"} {
		if path, err := filepath.EvalSymlinks(filepath.Join("/etc", name)); err == nil {
			files[name] = path
		}
	}
	return files
}

func (c *container) bundle(elem ...string) string {
	return c.driver.path(append([]string{bundlesName, c.id}, elem...)...)
}

func (c *container) writeBundle(spec containerSpec) error {
	if err := c.reach("bundle"); err != nil {
		return err
	}
	c.onClose(func(context.Context) error { return os.RemoveAll(c.bundle()) })
	if err := os.Mkdir(c.bundle(), 0o700); err != nil {
		return err
	}
	config, err := json.Marshal(spec.spec())
	if err != nil {
		return err
	}
	return os.WriteFile(c.bundle("config.json"), config, 0o600)
}

// run starts the container.
func (c *container) run(ctx context.Context) (*agent.Pipes, error) {
	if err := c.reach("run"); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, runTime, errors.New("the runtime took too long"))
	defer cancel()
	pipes, err := agent.NewPipes()
	if err != nil {
		return nil, err
	}
	stderr, err := c.collectStderr()
	if err != nil {
		return nil, errors.Join(err, pipes.CloseRemote(), pipes.Host.Close())
	}
	c.onClose(c.kill)
	_, err = c.driver.engine.client(c.function.Network).Run(ctx, c.id, c.bundle(), &runc.CreateOpts{
		IO:      stdio{pipes.Stdin, pipes.Stdout, stderr.remote},
		Detach:  true,
		PidFile: c.bundle("pid"),
	})
	err = errors.Join(err, pipes.CloseRemote(), stderr.remote.Close(), c.reach("started"))
	if err == nil {
		err = c.hold()
	}
	if err == nil {
		return pipes, nil
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	// Once all writers are gone, all that they have written is there.
	return nil, errors.Join(fmt.Errorf("start container: %w%s", err, stderr.tail(c.kill(context.WithoutCancel(ctx)))), pipes.Host.Close())
}

// hold takes hold of the container's first process, and with gVisor also of
// the others that make up the container on the host: where they become children
// of this process, somebody has to take their status, or the runtime waits in
// vain for them to be gone.
func (c *container) hold() error {
	text, err := os.ReadFile(c.bundle("pid"))
	if err != nil {
		return err
	}
	first, err := strconv.Atoi(string(bytes.TrimSpace(text)))
	if err != nil {
		return fmt.Errorf("read process number: %w", err)
	}
	pids := []int{first}
	if c.driver.engine.ownKernel {
		pids = append(pids, c.group.processes()...)
	}
	for _, pid := range pids {
		process, err := sys.OpenProcess(pid)
		if errors.Is(err, os.ErrProcessDone) {
			continue // if it was the first, the conversation will tell
		}
		if err != nil {
			return err
		}
		c.processes = append(c.processes, process)
		// It may have ended and its number have been given to another one,
		// which must not be killed.
		if groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid)); err != nil || !bytes.Contains(groups, []byte(c.group.path)) {
			c.processes = c.processes[:len(c.processes)-1]
			if err := process.Close(); err != nil {
				return err
			}
		}
	}
	return nil
}

// kill ends all processes of the container, and removes what the runtime and
// the kernel have of it. It may be called again.
func (c *container) kill(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, closeTime)
	defer cancel()
	var errs []error
	// A frozen process does not die. That they cannot be thawed, as when there
	// is no group yet or none any more, does not matter here.
	if len(c.processes) > 0 && !c.driver.engine.pauses {
		_ = c.group.freeze(ctx, false)
	}
	// Of a PID namespace, all processes end with the first.
	for _, p := range c.processes {
		errs = append(errs, p.Kill())
	}
	for _, p := range c.processes {
		errs = append(errs, p.Wait(ctx), p.Close())
	}
	c.processes = nil
	if err := c.driver.engine.delete(ctx, c.id); err != nil {
		// A runtime that was killed half-way leaves what it cannot delete.
		c.driver.log.Warn("the runtime cannot delete a container; removing it without", "container", c.id, "err", err)
	}
	return errors.Join(append(errs, c.group.destroy(ctx), c.driver.engine.forget(c.id))...)
}

// stdio connects a runtime, and so the container's first process, to files.
type stdio struct{ stdin, stdout, stderr *os.File }

func (s stdio) Set(cmd *exec.Cmd) { cmd.Stdin, cmd.Stdout, cmd.Stderr = s.stdin, s.stdout, s.stderr }

func (s stdio) Stdin() io.WriteCloser { return nil }
func (s stdio) Stdout() io.ReadCloser { return nil }
func (s stdio) Stderr() io.ReadCloser { return nil }
func (s stdio) Close() error          { return nil }

// stderr collects what the runtime and volley-init write to standard error.
type stderr struct {
	// remote is the end to write to.
	remote *os.File
	done   chan struct{}
	kept   []byte // fixed when done is closed
}

// collectStderr begins to collect. The container's closing ends it.
func (c *container) collectStderr() (*stderr, error) {
	local, remote, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make pipe: %w", err)
	}
	s := &stderr{remote: remote, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		buf := make([]byte, 1024)
		for {
			n, err := local.Read(buf)
			if text := strings.TrimSpace(string(buf[:n])); text != "" {
				c.driver.log.Warn("a container wrote to standard error", "container", c.id, "text", text)
			}
			s.kept = append(s.kept, buf[:n]...)
			s.kept = s.kept[max(0, len(s.kept)-maxStderrBytes):]
			if err != nil {
				return
			}
		}
	}()
	c.onClose(func(context.Context) error {
		err := local.Close()
		<-s.done
		return err
	})
	return s, nil
}

// tail returns the end of what was written, to be put behind an error. killed
// is the error of ending the writers: nil means that there will be no more.
func (s *stderr) tail(killed error) string {
	if killed != nil {
		return fmt.Sprintf(" (%v)", killed)
	}
	<-s.done
	if text := strings.TrimSpace(string(s.kept)); text != "" {
		return ": " + text
	}
	return ""
}
