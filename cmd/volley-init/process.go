//go:build unix

package main

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/volley-run/volley/internal/sys"
	"github.com/volley-run/volley/sandbox/agent/frame"
)

const (
	// killEvery is how often SIGKILL is repeated, for processes that come into
	// being meanwhile; killFor is when that is given up.
	killEvery = 10 * time.Millisecond
	killFor   = 10 * time.Second
)

// functionProcess is the function's process with all that it starts.
type functionProcess struct {
	// childless is closed when no process is left.
	childless chan struct{}
}

// startFunction starts the function. ended is called once when its process has
// ended; descendants may live on. The function finds the Runtime API at api.
func startFunction(boot frame.Boot, api string, logs *logs, ended func(frame.Exit)) (*functionProcess, error) {
	env := append(slices.Clone(boot.Env), "AWS_LAMBDA_RUNTIME_API="+api)
	program, err := lookPath(boot.Argv[0], env)
	if err != nil {
		return nil, err
	}
	// They come into force for this process too, which needs less. Children
	// inherit them.
	if err := setLimits(boot.Limits); err != nil {
		return nil, err
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, fmt.Errorf("open standard input: %w", err)
	}
	defer null.Close()
	stdout, stderr := logs.remotes()
	attr := &syscall.SysProcAttr{Setsid: true}
	if c := boot.Credential; c != nil {
		attr.Credential = &syscall.Credential{Uid: c.UID, Gid: c.GID}
	}
	sys.DeathSignal(attr)
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	p, err := os.StartProcess(program, boot.Argv, &os.ProcAttr{
		Dir: boot.Dir, Env: env, Files: []*os.File{null, stdout, stderr}, Sys: attr,
	})
	if err != nil {
		return nil, err
	}
	if err := logs.start(); err != nil {
		return nil, errors.Join(err, p.Kill())
	}
	f := &functionProcess{childless: make(chan struct{})}
	go f.reap(p.Pid, children, ended)
	return f, nil
}

// reap takes in every child that ends, adopted ones too, until none is left.
// It does not block in wait, since that would hold the one processor that the
// Go runtime has here until it notices.
func (f *functionProcess) reap(function int, children <-chan os.Signal, ended func(frame.Exit)) {
	defer close(f.childless)
	for range children {
		for {
			var status syscall.WaitStatus
			pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
			if errors.Is(err, syscall.EINTR) {
				continue
			}
			if err != nil {
				return // ECHILD: none is left
			}
			if pid == 0 {
				break
			}
			if pid == function {
				ended(exitOf(status))
			}
		}
	}
}

func exitOf(status syscall.WaitStatus) frame.Exit {
	e := frame.Exit{Reason: frame.ReasonExit}
	if status.Signaled() {
		e.Signal = status.Signal().String()
		e.Killed = status.Signal() == syscall.SIGKILL
	} else {
		e.Status = status.ExitStatus()
	}
	return e
}

// killAll ends what is left: SIGTERM, and SIGKILL after grace. It waits until
// nothing is.
func (f *functionProcess) killAll(grace time.Duration) error {
	err := sys.SignalDescendants(syscall.SIGTERM)
	if f.wait(grace) {
		return nil
	}
	for start := time.Now(); time.Since(start) < killFor; {
		err = sys.SignalDescendants(syscall.SIGKILL)
		if f.wait(killEvery) {
			return nil
		}
	}
	return errors.Join(errors.New("end the function: processes are left"), err)
}

// wait waits until no process is left, or for d. It returns whether none is.
func (f *functionProcess) wait(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-f.childless:
		return true
	case <-timer.C:
		return false
	}
}

// lookPath finds a program as the function would: in the PATH of env.
func lookPath(name string, env []string) (string, error) {
	if strings.ContainsRune(name, '/') {
		return name, nil
	}
	for _, v := range slices.Backward(env) {
		path, ok := strings.CutPrefix(v, "PATH=")
		if !ok {
			continue
		}
		for _, dir := range filepath.SplitList(path) {
			file := filepath.Join(dir, name)
			if info, err := os.Stat(file); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
				return file, nil
			}
		}
		return "", fmt.Errorf("%s is not in %s", name, path)
	}
	return "", fmt.Errorf("%s: the function has no PATH to look in", name)
}

func setLimits(l frame.Limits) error {
	set := func(name string, resource int, n uint64) error {
		var limit syscall.Rlimit
		if err := syscall.Getrlimit(resource, &limit); err != nil {
			return fmt.Errorf("limit %s: %w", name, err)
		}
		limit.Cur, limit.Max = min(n, limit.Max), min(n, limit.Max)
		if err := syscall.Setrlimit(resource, &limit); err != nil {
			return fmt.Errorf("limit %s: %w", name, err)
		}
		return nil
	}
	if l.OpenFiles > 0 {
		if err := set("open files", syscall.RLIMIT_NOFILE, l.OpenFiles); err != nil {
			return err
		}
	}
	if l.FileBytes > 0 {
		if err := set("the size of files", syscall.RLIMIT_FSIZE, l.FileBytes); err != nil {
			return err
		}
	}
	if l.Processes > 0 {
		if err := set("processes", sys.ProcessLimit, l.Processes); err != nil {
			return err
		}
	}
	if l.NoCore {
		return set("core dumps", syscall.RLIMIT_CORE, 0)
	}
	return nil
}
