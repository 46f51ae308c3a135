// Package platform knows the places where Sprocket's workers can run. For now
// that is this machine.
package platform

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"github.com/volley-run/volley/internal/sys"
	"github.com/volley-run/volley/sprocket/coordinator"
)

// Environment variables by which a worker process learns what it needs. The
// token is a secret: the environment, unlike arguments, is not shown to other
// users.
const (
	EnvAddress     = "VOLLEY_COORDINATOR"
	EnvWorker      = "VOLLEY_WORKER"
	EnvToken       = "VOLLEY_WORKER_TOKEN"
	EnvFingerprint = "VOLLEY_COORDINATOR_FINGERPRINT"
	EnvDir         = "VOLLEY_WORKER_DIR"
	EnvFFmpeg      = "VOLLEY_FFMPEG"
)

// Local runs workers as processes of this machine. It isolates nothing: workers
// have the rights of whoever starts the run.
type Local struct {
	// Program and Args start a worker process.
	Program string
	Args    []string
	// Dir is where workers keep temporary files, each in its own folder, removed
	// when the worker ends.
	Dir string
	// FFmpeg is the program that workers run.
	FFmpeg string
}

// Start implements coordinator.Platform.
func (l *Local) Start(_ context.Context, spec coordinator.WorkerSpec) (coordinator.Handle, error) {
	dir := filepath.Join(l.Dir, spec.ID)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make worker directory: %w", err)
	}
	p := &process{dir: dir, started: make(chan error, 1), done: make(chan struct{})}
	p.cmd = exec.Command(l.Program, l.Args...)
	p.cmd.Env = append(os.Environ(),
		EnvAddress+"="+spec.Address, EnvWorker+"="+spec.ID, EnvToken+"="+spec.Token,
		EnvFingerprint+"="+spec.Fingerprint, EnvDir+"="+dir, EnvFFmpeg+"="+l.FFmpeg, "TMPDIR="+dir)
	p.cmd.Stdout, p.cmd.Stderr = &p.log, &p.log
	sys.NewGroup(p.cmd)
	// One goroutine starts the process and waits for it: where the system kills
	// children with their parent, it watches the thread that started them.
	go p.run()
	if err := <-p.started; err != nil {
		return nil, errors.Join(fmt.Errorf("start worker process: %w", err), os.RemoveAll(dir))
	}
	return p, nil
}

type process struct {
	cmd     *exec.Cmd
	dir     string
	log     logTail
	started chan error
	done    chan struct{}
	err     error // set before done is closed
}

func (p *process) run() {
	defer close(p.done)
	release := sys.DieWithParent(p.cmd)
	defer release()
	err := p.cmd.Start()
	p.started <- err
	if err != nil {
		return
	}
	p.err = p.cmd.Wait()
	// Programs that the worker ran may have outlived it.
	if err := sys.KillGroup(p.cmd.Process.Pid); err != nil && p.err == nil {
		p.err = err
	}
	if err := os.RemoveAll(p.dir); err != nil && p.err == nil {
		p.err = fmt.Errorf("remove worker directory: %w", err)
	}
}

// Wait implements coordinator.Handle.
func (p *process) Wait() error {
	<-p.done
	return p.err
}

// Kill implements coordinator.Handle.
func (p *process) Kill() error {
	select {
	case <-p.done:
		return nil
	default:
	}
	return sys.KillGroup(p.cmd.Process.Pid)
}

// LogTail implements coordinator.Handle.
func (p *process) LogTail() []string { return p.log.lines() }

// logTail keeps the last lines of a log. It is safe for concurrent use.
type logTail struct {
	mu   sync.Mutex
	data []byte
}

// Write implements io.Writer.
func (l *logTail) Write(b []byte) (int, error) {
	const limit = 16 << 10
	l.mu.Lock()
	defer l.mu.Unlock()
	l.data = append(l.data, b...)
	if extra := len(l.data) - limit; extra > 0 {
		l.data = append([]byte(nil), l.data[extra:]...)
	}
	return len(b), nil
}

func (l *logTail) lines() []string {
	const most = 20
	l.mu.Lock()
	text := string(bytes.TrimSpace(l.data))
	l.mu.Unlock()
	if text == "" {
		return nil
	}
	lines := strings.Split(text, "\n")
	return lines[max(0, len(lines)-most):]
}
