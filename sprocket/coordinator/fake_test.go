package coordinator

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"

	"github.com/volley-run/volley/sprocket"
	"github.com/volley-run/volley/sprocket/delivery"
	"github.com/volley-run/volley/sprocket/media"
	"github.com/volley-run/volley/sprocket/stage"
	"github.com/volley-run/volley/sprocket/workerpb"
	"github.com/volley-run/volley/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakePlatform runs workers as goroutines of this process that speak the real
// protocol with the real server. What becomes of a command is up to react.
type fakePlatform struct {
	// react, when not nil, says what happens to a command. It is called
	// concurrently.
	react func(cmd fakeCommand) outcome
	// refuse is returned by Start; early ends a worker before it connects.
	refuse, early error
	// work is where frames objects go.
	work store.Store

	mu    sync.Mutex
	specs []WorkerSpec
	// processed counts the Process commands by task.
	processed map[string]int
	order     []string // tasks as they were fetched
	ended     int
}

// fakeCommand is what a fake worker was told.
type fakeCommand struct {
	worker string
	step   step
	role   stage.Role
	task   sprocket.Task
}

func (c fakeCommand) id() string { return fmt.Sprintf("%s/%d", c.role.Node.Name, c.task.Seq) }

// outcome is what a fake worker does with a command.
type outcome struct {
	failure *workerpb.Failure
	die     bool          // end at once, without a word
	silent  bool          // say nothing until killed
	wait    chan struct{} // wait for it first
	garbage bool          // answer with what is no result
}

var errDied = errors.New("exit status 3")

func (p *fakePlatform) Start(_ context.Context, spec WorkerSpec) (Handle, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.refuse != nil {
		return nil, p.refuse
	}
	p.specs = append(p.specs, spec)
	ctx, cancel := context.WithCancel(context.Background())
	w := &fakeWorker{platform: p, spec: spec, cancel: cancel, done: make(chan struct{})}
	go w.run(ctx)
	return w, nil
}

func (p *fakePlatform) counts() (started, ended int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.specs), p.ended
}

type fakeWorker struct {
	platform *fakePlatform
	spec     WorkerSpec
	cancel   context.CancelFunc
	done     chan struct{}
	err      error

	role stage.Role
	task sprocket.Task
}

func (w *fakeWorker) Wait() error { <-w.done; return w.err }

func (w *fakeWorker) Kill() error {
	w.cancel()
	return nil
}

func (w *fakeWorker) LogTail() []string { return []string{"the last words of " + w.spec.ID} }

func (w *fakeWorker) run(ctx context.Context) {
	w.err = w.work(ctx)
	w.platform.mu.Lock()
	w.platform.ended++
	w.platform.mu.Unlock()
	w.cancel()
	close(w.done)
}

// attach opens the stream as a worker does, without a look at the certificate.
func attach(ctx context.Context, spec WorkerSpec) (*grpc.ClientConn, grpc.BidiStreamingClient[workerpb.Report, workerpb.Command], error) {
	conn, err := grpc.NewClient(spec.Address, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{InsecureSkipVerify: true})))
	if err != nil {
		return nil, nil, err
	}
	ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+spec.Token)
	stream, err := workerpb.NewCoordinatorClient(conn).Attach(ctx, grpc.WaitForReady(true))
	if err == nil {
		err = stream.Send(&workerpb.Report{Kind: &workerpb.Report_Hello{Hello: &workerpb.Hello{Worker: spec.ID}}})
	}
	if err != nil {
		return nil, nil, errors.Join(err, conn.Close())
	}
	return conn, stream, nil
}

func (w *fakeWorker) work(ctx context.Context) error {
	if w.platform.early != nil {
		return w.platform.early
	}
	conn, stream, err := attach(ctx, w.spec)
	if err != nil {
		return err
	}
	defer conn.Close()
	for {
		cmd, err := stream.Recv()
		if errors.Is(err, io.EOF) || cmd.GetExit() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if err := w.handle(ctx, stream, cmd); err != nil {
			return err
		}
	}
}

func (w *fakeWorker) handle(ctx context.Context, stream grpc.BidiStreamingClient[workerpb.Report, workerpb.Command], cmd *workerpb.Command) error {
	at, err := w.take(cmd)
	if err != nil {
		return err
	}
	w.count(at)
	var o outcome
	if w.platform.react != nil {
		o = w.platform.react(at)
	}
	switch {
	case o.die:
		return errDied
	case o.silent:
		<-ctx.Done()
		return ctx.Err()
	case o.wait != nil:
		select {
		case <-o.wait:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	status := &workerpb.Status{Command: cmd.Id, Failure: o.failure, BusyMicros: 10}
	if at.step == stepEmit && o.failure == nil {
		if status.Result, err = w.emit(ctx, at); err != nil {
			return err
		}
		if o.garbage {
			status.Result = []byte("{")
		}
	}
	for _, r := range []*workerpb.Report{
		// A report on a command of long ago must not count.
		{Kind: &workerpb.Report_Progress{Progress: &workerpb.Progress{Command: cmd.Id + 1000, Frames: 1e9}}},
		{Kind: &workerpb.Report_Progress{Progress: &workerpb.Progress{Command: cmd.Id, Frames: 3}}},
		{Kind: &workerpb.Report_Status{Status: &workerpb.Status{Command: cmd.Id + 1000, Failure: &workerpb.Failure{Kind: "config"}}}},
		{Kind: &workerpb.Report_Status{Status: status}},
	} {
		if err := stream.Send(r); err != nil {
			return err
		}
	}
	return nil
}

// take follows the state machine and fails where the coordinator skips a step.
func (w *fakeWorker) take(cmd *workerpb.Command) (fakeCommand, error) {
	at := fakeCommand{worker: w.spec.ID}
	switch k := cmd.Kind.(type) {
	case *workerpb.Command_Role:
		at.step = stepRole
		w.task = sprocket.Task{}
		w.role = stage.Role{}
		if err := json.Unmarshal(k.Role.Role, &w.role); err != nil {
			return at, err
		}
	case *workerpb.Command_Fetch:
		at.step = stepFetch
		w.task = sprocket.Task{}
		if err := json.Unmarshal(k.Fetch.Task, &w.task); err != nil {
			return at, err
		}
	case *workerpb.Command_Process:
		at.step = stepProcess
	case *workerpb.Command_Emit:
		at.step = stepEmit
	default:
		return at, fmt.Errorf("unexpected command %T", cmd.Kind)
	}
	at.role, at.task = w.role, w.task
	return at, nil
}

func (w *fakeWorker) count(at fakeCommand) {
	p := w.platform
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.processed == nil {
		p.processed = map[string]int{}
	}
	switch at.step {
	case stepFetch:
		p.order = append(p.order, at.id())
	case stepProcess:
		p.processed[at.id()]++
	case stepIdle, stepRole, stepEmit:
	}
}

// emit makes the result: frames in an object, or an encoded chunk.
func (w *fakeWorker) emit(ctx context.Context, at fakeCommand) ([]byte, error) {
	if at.role.Audio != nil {
		return json.Marshal(stage.Result{Sound: &stage.Sound{Track: media.AudioTrack{Codecs: "opus"}}})
	}
	start, end := at.task.Range()
	it := sprocket.Item{Type: at.role.Node.Output, Seq: at.task.Seq, Chunk: at.task.Chunk(), Start: start, End: end}
	key := fmt.Sprintf("frames/%s/%d", at.role.Node.Name, at.task.Seq)
	if it.Type == sprocket.Frames {
		it.Pixels = &sprocket.Pixels{Width: 2, Height: 2, Format: "gray"}
		it.Frames = []sprocket.FrameRange{{Key: key, Base: start}}
		for pts := start; pts < end; pts++ {
			it.Frames[0].PTS = append(it.Frames[0].PTS, pts)
		}
		for _, items := range at.task.Inputs {
			for _, in := range items {
				for _, r := range in.Frames {
					if _, err := w.platform.work.Stat(ctx, r.Key); err != nil {
						return nil, fmt.Errorf("task %s reads what is gone: %w", at.id(), err)
					}
				}
			}
		}
		if _, err := w.platform.work.Put(ctx, key, io.LimitReader(zeros{}, end-start)); err != nil {
			return nil, err
		}
	} else {
		it.Objects = []sprocket.Object{{Key: key, SizeBytes: 1, PTS: start, Count: int(end - start)}}
	}
	return json.Marshal(stage.Result{Item: it, Frames: int(end - start), BytesWritten: 1})
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// bed is a coordinator with a job of decode -> encode for some chunks.
type bed struct {
	platform *fakePlatform
	cfg      Config
	job      Job
	work     *recordingStore
	outputs  map[int64]sprocket.Item
	sounds   int
}

// recordingStore remembers what was deleted.
type recordingStore struct {
	store.Store
	mu      sync.Mutex
	deleted map[string]int
}

func (s *recordingStore) Delete(ctx context.Context, key string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deleted[key]++
	return s.Store.Delete(ctx, key)
}

// frames of a chunk of the bed, in ticks of the plan.
const chunkFrames = 4

func newBed(t testing.TB, chunks int, react func(fakeCommand) outcome) *bed {
	t.Helper()
	st, err := store.Open(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	b := &bed{
		platform: &fakePlatform{react: react, work: st}, outputs: map[int64]sprocket.Item{},
		work: &recordingStore{Store: st, deleted: map[string]int{}},
	}
	plan := &sprocket.Plan{
		TimeBase: sprocket.Rational{Num: 1, Den: 4}, Chunks: make([][]sprocket.Item, 1), AudioInput: -1,
		Nodes: []sprocket.Node{
			{Name: "decode", Delivery: "default", Upstreams: []sprocket.Upstream{{Port: "chunks", Type: sprocket.Chunks, Node: -1}}, Output: sprocket.Frames, OutputIndex: -1},
			{Name: "encode", Delivery: "default", Upstreams: []sprocket.Upstream{{Port: "frames", Type: sprocket.Frames}}, Output: sprocket.Chunks, Depth: 1},
		},
		Outputs: []sprocket.Output{{Type: sprocket.Chunks, Node: 1}},
	}
	for i := range int64(chunks) {
		plan.Chunks[0] = append(plan.Chunks[0], sprocket.Item{
			Type: sprocket.Chunks, Seq: i, Chunk: i, Start: i * chunkFrames, End: (i + 1) * chunkFrames,
			Source: &sprocket.SourceRange{StartPTS: i * chunkFrames, EndPTS: (i + 1) * chunkFrames},
		})
	}
	b.cfg = Config{Platform: b.platform, Workers: 2, Silence: time.Minute}
	b.job = Job{
		Plan: plan, Deliveries: delivery.Builtin(), Work: b.work, InputNames: []string{"in.mp4"},
		OnOutput: func(_ context.Context, n int, it sprocket.Item) error {
			if old, ok := b.outputs[it.Seq]; ok || n != 0 {
				t.Errorf("output %d got item %d again: %+v and %+v", n, it.Seq, old, it)
			}
			b.outputs[it.Seq] = it
			return nil
		},
		OnSound: func(context.Context, stage.Sound) error { b.sounds++; return nil },
	}
	b.roles()
	return b
}

// roles makes the roles of the plan's nodes.
func (b *bed) roles() {
	b.job.Roles = nil
	for _, n := range b.job.Plan.Nodes {
		b.job.Roles = append(b.job.Roles, stage.Role{Node: n, TimeBase: b.job.Plan.TimeBase})
	}
}

// run does the job and closes the coordinator, after which no worker is left.
func (b *bed) run(ctx context.Context, t testing.TB) (Stats, error) {
	t.Helper()
	c, err := New(ctx, b.cfg)
	if err != nil {
		return Stats{}, err
	}
	defer func() {
		c.Close()
		c.Close()
		if started, ended := b.platform.counts(); started != ended {
			t.Errorf("%d workers were started, %d ended", started, ended)
		}
	}()
	err = c.Run(ctx, b.job)
	return c.Stats(), err
}

// complete fails unless every chunk came out once and nothing is left between
// the stages.
func (b *bed) complete(t testing.TB) {
	t.Helper()
	chunks := b.job.Plan.Chunks[0]
	if len(b.outputs) != len(chunks) {
		t.Errorf("%d items came out of %d", len(b.outputs), len(chunks))
	}
	for i, in := range chunks {
		if out := b.outputs[int64(i)]; out.Start != in.Start || out.End != in.End || len(out.Objects) != 1 || out.Objects[0].Count != chunkFrames {
			t.Errorf("output %d is %+v", i, out)
		}
	}
	for info, err := range b.work.List(t.Context(), "frames/") {
		if err != nil {
			t.Fatal(err)
		}
		t.Errorf("%s was left between the stages", info.Key)
	}
	for key, n := range b.work.deleted {
		if n != 1 {
			t.Errorf("%s was deleted %d times", key, n)
		}
	}
}

func transient(text string) outcome {
	return outcome{failure: &workerpb.Failure{Kind: string(stage.FailureTransient), Message: text, Stage: "filter", LogTail: []string{"one", "two"}}}
}

// chance is a seeded source that many goroutines may ask.
type chance struct {
	mu  sync.Mutex
	rng *rand.Rand
}

func newChance(seed uint64) *chance { return &chance{rng: rand.New(rand.NewPCG(seed, 2))} }

func (c *chance) intN(n int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rng.IntN(n)
}
