// Package worker is the process that does Sprocket's work. It starts without a
// role, connects back to its coordinator, and from then on does what it is told
// (thesis 2.2.4): a state machine driven by commands.
package worker

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"

	"github.com/volley-run/volley/sprocket"
	"github.com/volley-run/volley/sprocket/stage"
	"github.com/volley-run/volley/sprocket/workerpb"
	"github.com/volley-run/volley/store"
)

// Config is how a worker finds and trusts its coordinator.
type Config struct {
	// Address is the coordinator's host and port.
	Address string
	// Worker is the name the coordinator gave, Token its proof.
	Worker, Token string
	// Fingerprint is the SHA-256 of the coordinator's certificate, in hex.
	Fingerprint string
	// Dir is where the worker keeps files of the current task; it must exist.
	Dir string
	// FFmpeg is the program to run.
	FFmpeg string
	// Version is told to the coordinator.
	Version string
}

// Longest time between two signs of life.
const progressEvery = 200 * time.Millisecond

// Run connects and works until the coordinator says so or is gone. It returns
// nil after an orderly end.
func Run(ctx context.Context, cfg Config) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	conn, err := grpc.NewClient(cfg.Address,
		grpc.WithTransportCredentials(credentials.NewTLS(pinned(cfg.Fingerprint, cancel))),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 10 * time.Second}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxMessageBytes), grpc.MaxCallSendMsgSize(MaxMessageBytes)))
	if err != nil {
		return fmt.Errorf("connect to coordinator: %w", err)
	}
	defer conn.Close()
	callCtx := metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+cfg.Token)
	stream, err := workerpb.NewCoordinatorClient(conn).Attach(callCtx, grpc.WaitForReady(true))
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return fmt.Errorf("attach to coordinator: %w", err)
	}
	w := &worker{cfg: cfg, stream: stream}
	defer w.closeTask()
	if err := w.send(&workerpb.Report{Kind: &workerpb.Report_Hello{Hello: &workerpb.Hello{Worker: cfg.Worker, Pid: int64(os.Getpid()), Version: cfg.Version}}}); err != nil {
		return err
	}
	err = w.loop(ctx, func() { cancel(nil) })
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// MaxMessageBytes bounds one message of the protocol, both ways: a task lists
// the times of all its frames.
const MaxMessageBytes = 64 << 20

// errImpostor means that something else answers at the coordinator's address.
var errImpostor = errors.New("the coordinator's certificate is not the expected one")

// pinned accepts exactly the certificate with this fingerprint. It calls
// refused for any other one, since trying again would not help.
func pinned(fingerprint string, refused context.CancelCauseFunc) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		// The certificate is checked below, against its fingerprint: there is
		// no authority to ask.
		InsecureSkipVerify: true, //nolint:gosec // see VerifyPeerCertificate
		VerifyPeerCertificate: func(raw [][]byte, _ [][]*x509.Certificate) error {
			if len(raw) == 0 {
				return errors.New("the coordinator showed no certificate")
			}
			sum := sha256.Sum256(raw[0])
			if subtle.ConstantTimeCompare([]byte(hex.EncodeToString(sum[:])), []byte(fingerprint)) != 1 {
				refused(errImpostor)
				return errImpostor
			}
			return nil
		},
	}
}

// worker is the state machine. Commands are handled one at a time by loop;
// Cancel and Exit interrupt the one that is running.
type worker struct {
	cfg    Config
	stream grpc.BidiStreamingClient[workerpb.Report, workerpb.Command]
	sendMu sync.Mutex

	role         stage.Role
	output, work store.Store
	task         stage.Executor
	taskDir      string

	// command and frames belong to the command that runs.
	command  uint64
	reported time.Time
}

// loop receives commands. Those that work run beside it, so that an
// interruption is heard.
func (w *worker) loop(ctx context.Context, stop context.CancelFunc) error {
	var (
		running   sync.WaitGroup
		interrupt context.CancelFunc = func() {}
	)
	defer running.Wait()
	defer func() { interrupt() }()
	for {
		cmd, err := w.stream.Recv()
		if err != nil {
			stop()
			return err
		}
		switch cmd.Kind.(type) {
		case *workerpb.Command_Exit:
			stop()
			return nil
		case *workerpb.Command_Cancel:
			interrupt()
			continue
		}
		running.Wait()
		cmdCtx, cancel := context.WithCancel(ctx)
		interrupt = cancel
		running.Go(func() {
			defer cancel()
			w.handle(cmdCtx, cmd)
		})
	}
}

// handle carries a command out and reports.
func (w *worker) handle(ctx context.Context, cmd *workerpb.Command) {
	w.command, w.reported = cmd.Id, time.Now()
	alive := w.signsOfLife(ctx, cmd.Id)
	begun := time.Now()
	result, err := w.do(ctx, cmd)
	busy := time.Since(begun)
	alive()
	status := &workerpb.Status{Command: cmd.Id, BusyMicros: busy.Microseconds(), Result: result}
	if err != nil {
		f := &workerpb.Failure{Kind: string(stage.KindOf(err)), Message: err.Error()}
		var failure *stage.Failure
		if errors.As(err, &failure) {
			f.Stage, f.LogTail = failure.Stage, failure.LogTail
		}
		status.Failure = f
	}
	// A failed send means that the stream is broken: loop sees that too.
	_ = w.send(&workerpb.Report{Kind: &workerpb.Report_Status{Status: status}})
}

// signsOfLife reports now and then that the command is still worked on, until
// the returned function is called.
func (w *worker) signsOfLife(ctx context.Context, id uint64) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				_ = w.send(&workerpb.Report{Kind: &workerpb.Report_Progress{Progress: &workerpb.Progress{Command: id, Frames: -1}}})
			}
		}
	})
	return func() { cancel(); wg.Wait() }
}

func (w *worker) do(ctx context.Context, cmd *workerpb.Command) ([]byte, error) {
	switch k := cmd.Kind.(type) {
	case *workerpb.Command_Role:
		return nil, w.become(ctx, k.Role.Role)
	case *workerpb.Command_Fetch:
		if err := w.take(k.Fetch.Task); err != nil {
			return nil, err
		}
		return nil, w.task.Fetch(ctx)
	case *workerpb.Command_Process:
		if w.task == nil {
			return nil, errors.New("process: no task was fetched")
		}
		return nil, w.task.Process(ctx)
	case *workerpb.Command_Emit:
		if w.task == nil {
			return nil, errors.New("emit: no task was fetched")
		}
		res, err := w.task.Emit(ctx)
		if err != nil {
			return nil, err
		}
		return json.Marshal(res)
	}
	return nil, fmt.Errorf("unknown command %T; coordinator and worker are of different versions", cmd.Kind)
}

// become takes on a role.
func (w *worker) become(ctx context.Context, text []byte) error {
	w.closeTask()
	var role stage.Role
	if err := json.Unmarshal(text, &role); err != nil {
		return fmt.Errorf("read role: %w", err)
	}
	var err error
	if w.output == nil || w.role.OutputURL != role.OutputURL {
		if w.output, err = store.Open(ctx, role.OutputURL); err != nil {
			return err
		}
	}
	if w.work == nil || w.role.WorkURL != role.WorkURL {
		if w.work, err = store.Open(ctx, role.WorkURL); err != nil {
			return err
		}
	}
	w.role = role
	return nil
}

// take makes a directory and an executor for a task.
func (w *worker) take(text []byte) error {
	w.closeTask()
	var task sprocket.Task
	if err := json.Unmarshal(text, &task); err != nil {
		return fmt.Errorf("read task: %w", err)
	}
	w.taskDir = filepath.Join(w.cfg.Dir, "task")
	if err := os.RemoveAll(w.taskDir); err != nil {
		return err
	}
	if err := os.MkdirAll(w.taskDir, 0o700); err != nil {
		return err
	}
	var err error
	w.task, err = stage.New(stage.Env{
		Output: w.output, Work: w.work, Dir: w.taskDir, FFmpeg: w.cfg.FFmpeg, Progress: w.progress, Partial: w.partial,
	}, w.role, task)
	return err
}

func (w *worker) closeTask() {
	if w.task != nil {
		_ = w.task.Close()
		w.task = nil
	}
	if w.taskDir != "" {
		_ = os.RemoveAll(w.taskDir)
		w.taskDir = ""
	}
}

// progress reports frames, but not each one.
func (w *worker) progress(frames int) {
	if time.Since(w.reported) < progressEvery {
		return
	}
	w.reported = time.Now()
	_ = w.send(&workerpb.Report{Kind: &workerpb.Report_Progress{Progress: &workerpb.Progress{Command: w.command, Frames: int64(frames)}}})
}

// partial reports sound that can be played already.
func (w *worker) partial(s stage.Sound) {
	text, err := json.Marshal(s)
	if err != nil {
		return // Emit will report the same segments
	}
	_ = w.send(&workerpb.Report{Kind: &workerpb.Report_Progress{Progress: &workerpb.Progress{Command: w.command, Frames: -1, Partial: text}}})
}

func (w *worker) send(r *workerpb.Report) error {
	w.sendMu.Lock()
	defer w.sendMu.Unlock()
	if err := w.stream.Send(r); err != nil {
		return fmt.Errorf("report to coordinator: %w", err)
	}
	return nil
}
