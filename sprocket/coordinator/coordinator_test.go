package coordinator

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"pgregory.net/rapid"

	"github.com/volley-run/volley/sprocket"
	"github.com/volley-run/volley/sprocket/stage"
	"github.com/volley-run/volley/sprocket/worker"
	"github.com/volley-run/volley/sprocket/workerpb"
)

func TestRunTakesEveryChunkThroughEveryNode(t *testing.T) {
	b := newBed(t, 9, nil)
	role := stage.Role{Node: sprocket.Node{Name: "audio"}, Audio: &stage.AudioRole{}}
	b.job.Sound = &role
	st, err := b.run(t.Context(), t)
	if err != nil {
		t.Fatal(err)
	}
	b.complete(t)
	if b.sounds != 1 {
		t.Errorf("the sound came %d times", b.sounds)
	}
	if st.Workers != 2 || st.Lost != 0 || st.Replayed != 0 || st.BytesWritten != 18 {
		t.Errorf("stats: %+v", st)
	}
	for i, want := range []NodeStats{
		{Name: "decode", Done: 9, Total: 9, Frames: 9 * chunkFrames},
		{Name: "encode", Done: 9, Total: 9, Frames: 9 * chunkFrames},
		{Name: "audio", Done: 1, Total: 1},
	} {
		if st.Nodes[i] != want {
			t.Errorf("node stats %+v, want %+v", st.Nodes[i], want)
		}
	}
}

func TestALaterChunkDoesNotWaitForAnEarlierOne(t *testing.T) {
	first, others := make(chan struct{}), make(chan struct{}, 10)
	b := newBed(t, 4, func(cmd fakeCommand) outcome {
		switch {
		case cmd.id() == "decode/0" && cmd.step == stepProcess:
			return outcome{wait: first}
		case cmd.role.Node.Name == "encode" && cmd.step == stepEmit:
			others <- struct{}{}
		}
		return outcome{}
	})
	// There is no barrier: chunks 1 to 3 go all the way while 0 is decoded.
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 3 {
			<-others
		}
		close(first)
	}()
	if _, err := b.run(t.Context(), t); err != nil {
		t.Fatal(err)
	}
	<-done
	b.complete(t)
}

func TestAFailedCommandIsSentAgainAndThenGoesToAnotherWorker(t *testing.T) {
	for _, at := range []step{stepRole, stepFetch, stepProcess, stepEmit} {
		t.Run("once in "+at.String(), func(t *testing.T) {
			seen := make(chan string, 1)
			b := newBed(t, 3, func(cmd fakeCommand) outcome {
				if cmd.step == at {
					select {
					case seen <- cmd.worker:
						return transient("hiccup")
					default:
					}
				}
				return outcome{}
			})
			st, err := b.run(t.Context(), t)
			if err != nil {
				t.Fatal(err)
			}
			b.complete(t)
			if st.Lost != 0 {
				t.Errorf("%d workers were replaced after one failure", st.Lost)
			}
		})
		t.Run("twice in "+at.String(), func(t *testing.T) {
			var mu sync.Mutex
			var seen []string // the workers that had the command of one task
			b := newBed(t, 3, func(cmd fakeCommand) outcome {
				if cmd.step != at || (at != stepRole && cmd.id() != "decode/1") {
					return outcome{}
				}
				mu.Lock()
				defer mu.Unlock()
				if seen = append(seen, cmd.worker); cmd.worker == seen[0] {
					return transient("hiccup")
				}
				return outcome{}
			})
			if _, err := b.run(t.Context(), t); err != nil {
				t.Fatal(err)
			}
			b.complete(t)
			first := 0
			for _, w := range seen {
				if w == seen[0] {
					first++
				}
			}
			if first != 2 || len(seen) < 3 {
				t.Errorf("the command went to %v, want twice to the first and then to another", seen)
			}
		})
	}
}

func TestAPermanentFailureNamesTaskStageRangeAndLog(t *testing.T) {
	for _, tc := range []struct {
		kind     stage.FailureKind
		attempts int // as the message counts them
		want     string
	}{
		{stage.FailureInput, 2, "stage filter failed on task 2 (2.000 s to 3.000 s of in.mp4), tried 2 times: bad bytes"},
		{stage.FailureConfig, 2, "tried 2 times"},
		{stage.FailureNoSpace, 1, "tried once"},
		{stage.FailureTransient, 6, "tried 6 times"},
	} {
		t.Run(string(tc.kind), func(t *testing.T) {
			b := newBed(t, 4, func(cmd fakeCommand) outcome {
				if cmd.id() == "decode/2" && cmd.step == stepProcess {
					o := transient("bad bytes")
					o.failure.Kind = string(tc.kind)
					return o
				}
				return outcome{}
			})
			_, err := b.run(t.Context(), t)
			te := AsTaskError(fmt.Errorf("run: %w", err))
			if te == nil {
				t.Fatalf("Run: %v, want a TaskError", err)
			}
			if te.Node != "decode" || te.Stage != "filter" || te.Seq != 2 || te.Kind != tc.kind || te.Cause != "bad bytes" || te.Attempts != tc.attempts {
				t.Errorf("%+v", te)
			}
			if !slices.Equal(te.LogTail, []string{"one", "two"}) {
				t.Errorf("log tail %q", te.LogTail)
			}
			if !strings.Contains(te.Error(), tc.want) || strings.Contains(te.Error(), "\n") {
				t.Errorf("message %q lacks %q", te, tc.want)
			}
		})
	}
	if AsTaskError(errors.New("other")) != nil {
		t.Error("a plain error became a TaskError")
	}
}

func TestAWorkerThatDiesIsReplacedAndItsTaskDoneAgain(t *testing.T) {
	for _, at := range []step{stepRole, stepFetch, stepProcess, stepEmit} {
		t.Run(at.String(), func(t *testing.T) {
			died := make(chan struct{}, 1)
			b := newBed(t, 5, func(cmd fakeCommand) outcome {
				if cmd.step == at {
					select {
					case died <- struct{}{}:
						return outcome{die: true}
					default:
					}
				}
				return outcome{}
			})
			st, err := b.run(t.Context(), t)
			if err != nil {
				t.Fatal(err)
			}
			b.complete(t)
			if st.Lost != 1 {
				t.Errorf("%d workers lost", st.Lost)
			}
		})
	}
}

func TestATaskThatKillsItsWorkersEndsTheRun(t *testing.T) {
	b := newBed(t, 3, func(cmd fakeCommand) outcome { return outcome{die: cmd.id() == "decode/1" && cmd.step == stepProcess} })
	b.cfg.Attempts = 2
	_, err := b.run(t.Context(), t)
	te := AsTaskError(err)
	if te == nil || te.Seq != 1 || te.Attempts != 2 || !strings.Contains(te.Cause, errDied.Error()) {
		t.Fatalf("Run: %v", err)
	}
	if len(te.LogTail) != 1 || !strings.HasPrefix(te.LogTail[0], "the last words of worker-") {
		t.Errorf("log tail %q", te.LogTail)
	}
}

func TestASilentWorkerIsKilled(t *testing.T) {
	once := make(chan struct{}, 1)
	b := newBed(t, 3, func(cmd fakeCommand) outcome {
		if cmd.step == stepProcess {
			select {
			case once <- struct{}{}:
				return outcome{silent: true}
			default:
			}
		}
		return outcome{}
	})
	b.cfg.Silence = 300 * time.Millisecond
	st, err := b.run(t.Context(), t)
	if err != nil {
		t.Fatal(err)
	}
	b.complete(t)
	if st.Lost != 1 {
		t.Errorf("%d workers lost", st.Lost)
	}
}

func TestWorkersThatNeverConnectEndTheRun(t *testing.T) {
	b := newBed(t, 3, nil)
	b.platform.early = errDied
	_, err := b.run(t.Context(), t)
	if !errors.Is(err, ErrNoWorkers) || !strings.Contains(err.Error(), "the last words of worker-") {
		t.Errorf("Run: %v, want ErrNoWorkers with the log", err)
	}
	b = newBed(t, 3, nil)
	b.platform.refuse = errors.New("no more room")
	if _, err := b.run(t.Context(), t); err == nil || !strings.Contains(err.Error(), "no more room") {
		t.Errorf("New: %v", err)
	}
}

func TestAResultThatCannotBeReadEndsTheRun(t *testing.T) {
	b := newBed(t, 2, func(cmd fakeCommand) outcome { return outcome{garbage: true} })
	if _, err := b.run(t.Context(), t); err == nil || !strings.Contains(err.Error(), "read result of worker-") {
		t.Errorf("Run: %v", err)
	}
}

func TestCallbacksCanEndTheRun(t *testing.T) {
	stop := errors.New("the output is full")
	b := newBed(t, 3, nil)
	b.job.OnOutput = func(context.Context, int, sprocket.Item) error { return stop }
	if _, err := b.run(t.Context(), t); !errors.Is(err, stop) {
		t.Errorf("Run: %v", err)
	}
	forever := make(chan struct{})
	b = newBed(t, 3, func(fakeCommand) outcome { return outcome{wait: forever} })
	b.job.OnTick = func(context.Context) error { return stop }
	if _, err := b.run(t.Context(), t); !errors.Is(err, stop) {
		t.Errorf("Run: %v", err)
	}
}

func TestCancellingEndsEverything(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	b := newBed(t, 5, func(cmd fakeCommand) outcome {
		if cmd.role.Node.Name == "encode" && cmd.step == stepProcess {
			cancel()
			return outcome{silent: true}
		}
		return outcome{}
	})
	if _, err := b.run(ctx, t); !errors.Is(err, context.Canceled) {
		t.Errorf("Run: %v", err)
	}
}

func TestOnlyAWorkerThatWasStartedGetsIn(t *testing.T) {
	b := newBed(t, 1, nil)
	b.cfg.Workers = 0
	c, err := New(t.Context(), b.cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	token, err := c.srv.admit("worker-1")
	if err != nil {
		t.Fatal(err)
	}
	good := WorkerSpec{ID: "worker-1", Address: c.srv.address, Token: token}
	refused := func(name string, spec WorkerSpec) {
		t.Helper()
		conn, stream, err := attach(t.Context(), spec)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := stream.Recv(); status.Code(err) != codes.Unauthenticated {
			t.Errorf("%s: %v, want Unauthenticated", name, err)
		}
	}
	refused("a wrong token", WorkerSpec{ID: good.ID, Address: good.Address, Token: strings.Repeat("0", 64)})
	refused("no token", WorkerSpec{ID: good.ID, Address: good.Address})
	refused("an unknown worker", WorkerSpec{ID: "worker-2", Address: good.Address, Token: token})
	refused("no name", WorkerSpec{Address: good.Address, Token: token})

	conn, _, err := attach(t.Context(), good)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if e := <-c.srv.events; e.attached == nil || e.worker != "worker-1" {
		t.Fatalf("event %+v", e)
	}
	refused("a used token", good)

	// What does not begin with a hello is no worker.
	conn, stream, err := attach(t.Context(), WorkerSpec{Address: good.Address})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := stream.Recv(); status.Code(err) != codes.Unauthenticated {
		t.Error(err)
	}
	st2, err := workerpb.NewCoordinatorClient(conn).Attach(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := st2.Send(&workerpb.Report{}); err != nil {
		t.Fatal(err)
	}
	if _, err := st2.Recv(); status.Code(err) != codes.InvalidArgument {
		t.Errorf("no hello: %v", err)
	}
}

func TestAWorkerRefusesAnotherCertificate(t *testing.T) {
	b := newBed(t, 1, nil)
	b.cfg.Workers = 0
	c, err := New(t.Context(), b.cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	token, err := c.srv.admit("worker-1")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	err = worker.Run(ctx, worker.Config{
		Address: c.srv.address, Worker: "worker-1", Token: token, Dir: t.TempDir(), Fingerprint: strings.Repeat("ab", 32),
	})
	if err == nil || ctx.Err() != nil || !strings.Contains(err.Error(), "not the expected one") {
		t.Errorf("Run against an unexpected certificate: %v (timed out: %v); want an early error", err, ctx.Err())
	}
	select {
	case e := <-c.srv.events:
		t.Errorf("the worker told the impostor: %+v", e)
	default:
	}
}

// memoryJournal is a Journal in memory. Run uses it from one goroutine.
type memoryJournal map[string]stage.Result

func (j memoryJournal) Lookup(node string, seq int64) (stage.Result, bool) {
	res, ok := j[fmt.Sprintf("%s/%d", node, seq)]
	return res, ok
}

func (j memoryJournal) Record(node string, seq int64, res stage.Result) error {
	j[fmt.Sprintf("%s/%d", node, seq)] = res
	return nil
}

func TestTheJournalSparesFinishedTasks(t *testing.T) {
	journal := memoryJournal{}
	stop := errors.New("stop here")
	b := newBed(t, 8, nil)
	b.job.Journal = journal
	count := 0
	save := b.job.OnOutput
	b.job.OnOutput = func(ctx context.Context, n int, it sprocket.Item) error {
		if count++; count == 4 {
			return stop
		}
		return save(ctx, n, it)
	}
	if _, err := b.run(t.Context(), t); !errors.Is(err, stop) {
		t.Fatal(err)
	}
	before := len(journal)
	done := map[string]bool{}
	for id := range journal {
		done[id] = true
	}
	// The second run has the same stores and the same journal.
	again := newBed(t, 8, nil)
	again.platform.work, again.work.Store, again.job.Journal = b.platform.work, b.platform.work, journal
	st, err := again.run(t.Context(), t)
	if err != nil {
		t.Fatal(err)
	}
	again.complete(t)
	if st.Replayed != before {
		t.Errorf("%d tasks replayed of %d in the journal", st.Replayed, before)
	}
	for id, n := range again.platform.processed {
		if done[id] || n != 1 {
			t.Errorf("task %s ran %d times in the second run; finished before: %v", id, n, done[id])
		}
	}
	if len(journal) != 16 {
		t.Errorf("the journal has %d tasks", len(journal))
	}
	// A third run has nothing left to do.
	third := newBed(t, 8, func(cmd fakeCommand) outcome { t.Errorf("%s runs again", cmd.id()); return outcome{} })
	third.platform.work, third.work.Store, third.job.Journal = b.platform.work, b.platform.work, journal
	if _, err := third.run(t.Context(), t); err != nil {
		t.Fatal(err)
	}
	if len(third.outputs) != 8 {
		t.Errorf("%d outputs were told again", len(third.outputs))
	}
}

func TestFramesAreDeletedWhenTheirLastConsumerIsDone(t *testing.T) {
	slow := make(chan struct{})
	b := newBed(t, 3, nil)
	// A broadcast: two nodes read the frames of decode, one is held up.
	b.job.Plan.Nodes = append(b.job.Plan.Nodes, sprocket.Node{
		Name: "second", Delivery: "default", Upstreams: []sprocket.Upstream{{Port: "frames", Type: sprocket.Frames}}, Output: sprocket.Chunks, OutputIndex: -1, Depth: 1,
	})
	b.roles()
	b.platform.react = func(cmd fakeCommand) outcome {
		if cmd.id() == "second/0" && cmd.step == stepProcess {
			return outcome{wait: slow}
		}
		return outcome{}
	}
	told := b.job.OnOutput
	outs := 0
	b.job.OnOutput = func(ctx context.Context, n int, it sprocket.Item) error {
		if outs++; outs == 3 {
			// All of encode is done; second/0 still needs its frames.
			if _, err := b.work.Stat(ctx, "frames/decode/0"); err != nil {
				t.Errorf("frames that second/0 still needs: %v", err)
			}
			close(slow)
		}
		return told(ctx, n, it)
	}
	if _, err := b.run(t.Context(), t); err != nil {
		t.Fatal(err)
	}
	b.complete(t)
	if len(b.work.deleted) != 3 {
		t.Errorf("deleted %v", b.work.deleted)
	}
}

func TestFramesSharedByTwoTasksAreDeletedAfterTheSecond(t *testing.T) {
	b := newBed(t, 4, nil)
	// Tasks of 3 frames out of chunks of 4: objects are read by two tasks.
	b.job.Plan.Nodes[1].Delivery, b.job.Plan.Nodes[1].FramesPerTask = "frames", 3
	b.roles()
	if _, err := b.run(t.Context(), t); err != nil {
		t.Fatal(err)
	}
	frames := 0
	for _, it := range b.outputs {
		frames += it.Objects[0].Count
	}
	if len(b.outputs) != 6 || frames != 16 {
		t.Errorf("%d tasks of %d frames, want 6 of 16", len(b.outputs), frames)
	}
	if len(b.work.deleted) != 4 {
		t.Errorf("deleted %v, want 4 objects", b.work.deleted)
	}
}

func TestTasksComeInTheOrderOfWatching(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes := []*nodeState{{index: 0, depth: 0}, {index: 1, depth: 1}, {index: 2, depth: 1}, {index: 3, depth: -1}}
		var q taskQueue
		n := rapid.IntRange(0, 40).Draw(t, "tasks")
		for range n {
			heap.Push(&q, &taskState{
				node: rapid.SampledFrom(nodes).Draw(t, "node"), chunk: rapid.Int64Range(0, 5).Draw(t, "chunk"),
				task: sprocket.Task{Seq: rapid.Int64Range(0, 9).Draw(t, "seq")},
			})
		}
		var last []int64
		for range n {
			x := heap.Pop(&q).(*taskState)
			key := []int64{x.chunk, -int64(x.node.depth), int64(x.node.index), x.task.Seq}
			if slices.Compare(last, key) > 0 {
				t.Fatalf("%v came before %v", last, key)
			}
			last = key
		}
		if q.Len() != 0 {
			t.Fatal("tasks left")
		}
	})
}

func TestOneWorkerFinishesAChunkBeforeTheNext(t *testing.T) {
	b := newBed(t, 3, nil)
	b.cfg.Workers = 1
	if _, err := b.run(t.Context(), t); err != nil {
		t.Fatal(err)
	}
	want := []string{"decode/0", "encode/0", "decode/1", "encode/1", "decode/2", "encode/2"}
	if !slices.Equal(b.platform.order, want) {
		t.Errorf("tasks ran as %v, want %v", b.platform.order, want)
	}
}

func TestRandomFailuresLoseAndDoubleNothing(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		dice := newChance(rapid.Uint64().Draw(rt, "seed"))
		rate := rapid.IntRange(4, 12).Draw(rt, "one in")
		b := newBed(t, rapid.IntRange(1, 8).Draw(rt, "chunks"), func(cmd fakeCommand) outcome {
			switch dice.intN(3 * rate) {
			case 0:
				return outcome{die: true}
			case 1, 2:
				return transient("by chance")
			}
			return outcome{}
		})
		journal := memoryJournal{}
		b.job.Journal = journal
		b.cfg.Workers = rapid.IntRange(1, 4).Draw(rt, "workers")
		b.cfg.Attempts = 1000
		if rapid.Bool().Draw(rt, "regroup") {
			b.job.Plan.Nodes[1].Delivery, b.job.Plan.Nodes[1].FramesPerTask = "frames", rapid.IntRange(1, 9).Draw(rt, "frames per task")
			b.roles()
		}
		st, err := b.run(t.Context(), t)
		if err != nil {
			rt.Fatal(err)
		}
		// What came out covers the whole without gap or overlap.
		at := int64(0)
		for i := range int64(len(b.outputs)) {
			it, ok := b.outputs[i]
			if !ok || it.Start != at {
				rt.Fatalf("output %d starts at %d, want %d", i, it.Start, at)
			}
			at = it.End
		}
		if want := int64(len(b.job.Plan.Chunks[0])) * chunkFrames; at != want {
			rt.Fatalf("the output ends at %d, want %d", at, want)
		}
		// Every task ended once.
		for _, n := range st.Nodes {
			if n.Done != n.Total || n.Running != 0 {
				rt.Fatalf("at the end: %+v", n)
			}
		}
		if len(journal) != st.Nodes[0].Done+st.Nodes[1].Done {
			rt.Fatalf("%d tasks in the journal, %d and %d done", len(journal), st.Nodes[0].Done, st.Nodes[1].Done)
		}
		for info, err := range b.work.List(t.Context(), "frames/") {
			rt.Fatalf("%s was left: %v", info.Key, err)
		}
	})
}
