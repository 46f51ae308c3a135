package coordinator

import (
	"container/heap"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/volley-run/volley/sprocket/stage"
	"github.com/volley-run/volley/sprocket/workerpb"
)

// TaskError says which task could not be done, and why.
type TaskError struct {
	// Node is the physical node, Stage the node of the pipespec in it that
	// failed, Seq the task.
	Node, Stage string
	Seq         int64
	// Where is the stretch of input, for people.
	Where string
	// Attempts is how often it was tried, repeated commands included.
	Attempts int
	Kind     stage.FailureKind
	Cause    string
	// LogTail is the end of the worker's log.
	LogTail []string
}

// Error implements error, in one line.
func (e *TaskError) Error() string {
	at := e.Stage
	if at == "" {
		at = e.Node
	}
	tries := "once"
	if e.Attempts > 1 {
		tries = fmt.Sprintf("%d times", e.Attempts)
	}
	return fmt.Sprintf("stage %s failed on task %d (%s), tried %s: %s", at, e.Seq, e.Where, tries, e.Cause)
}

// handle takes one event in.
func (c *Coordinator) handle(ctx context.Context, e event) error {
	w := c.workers[e.worker]
	if w == nil {
		return nil
	}
	switch {
	case e.attached != nil:
		w.sess, w.since, w.heard = e.attached, time.Now(), time.Now()
		c.badStarts = 0
		c.cfg.Log.Debug("worker attached", "worker", w.id)
	case e.report != nil:
		return c.handleReport(ctx, w, e.report)
	case e.detached, e.exited != nil:
		return c.lost(ctx, w, e.exited)
	}
	return nil
}

// lost deals with a worker that is gone: its task goes to another one.
func (c *Coordinator) lost(ctx context.Context, w *workerState, how *exit) error {
	if how == nil {
		// The stream broke. Make sure that the process is gone too, and let its
		// exit, which brings the log, follow.
		return w.end()
	}
	delete(c.workers, w.id)
	if w.sess == nil && !w.ending {
		c.badStarts++
		c.lastTail = how.tail
	} else {
		c.stats.alive += time.Since(w.since)
		if !w.dropped {
			c.stats.lost++
		}
	}
	if t := w.task; t != nil {
		t.tries++
		t.node.running--
		w.task = nil
		cause := "the worker was lost"
		if how.err != nil {
			cause = fmt.Sprintf("the worker was lost: %v", how.err)
		}
		c.cfg.Log.Warn("worker lost", "worker", w.id, "node", t.node.name, "task", t.task.Seq, "step", w.step.String(), "error", how.err)
		if t.attempts >= c.cfg.Attempts {
			return c.taskError(t, &workerpb.Failure{Kind: string(stage.FailureTransient), Message: cause, LogTail: how.tail})
		}
		heap.Push(&c.pending, t)
	}
	if c.badStarts >= 2*c.cfg.Workers+1 {
		return fmt.Errorf("%w: %d ended before they connected; the last one said: %s", ErrNoWorkers, c.badStarts, strings.Join(c.lastTail, " | "))
	}
	return c.startWorker(ctx)
}

// checkSilence kills workers that should be working but say nothing.
func (c *Coordinator) checkSilence() error {
	for _, w := range c.workers {
		if w.sess != nil && w.step != stepIdle && time.Since(w.heard) > c.cfg.Silence {
			c.cfg.Log.Warn("worker is silent", "worker", w.id, "for", time.Since(w.heard))
			w.heard = time.Now()
			if err := w.end(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *Coordinator) handleReport(ctx context.Context, w *workerState, r *workerpb.Report) error {
	w.heard = time.Now()
	switch k := r.Kind.(type) {
	case *workerpb.Report_Progress:
		if k.Progress.Command != w.command || w.task == nil {
			return nil
		}
		if k.Progress.Frames >= 0 {
			w.task.frames = k.Progress.Frames
		}
		if len(k.Progress.Partial) > 0 {
			var s stage.Sound
			if err := json.Unmarshal(k.Progress.Partial, &s); err != nil {
				return fmt.Errorf("read partial result of %s: %w", w.id, err)
			}
			return c.job.OnSound(ctx, s)
		}
	case *workerpb.Report_Status:
		if k.Status.Command == w.command && w.task != nil {
			return c.handleStatus(ctx, w, k.Status)
		}
	}
	return nil
}

// handleStatus moves a worker's state machine on (thesis 2.2.4): to the next
// command, to the same one again, or to another worker.
func (c *Coordinator) handleStatus(ctx context.Context, w *workerState, st *workerpb.Status) error {
	t := w.task
	c.stats.spent(w.step, time.Duration(st.BusyMicros)*time.Microsecond)
	if st.Failure != nil {
		return c.failed(w, st.Failure)
	}
	w.resent = false
	switch w.step {
	case stepRole, stepFetch, stepProcess:
		w.step++
		c.command(w)
	case stepEmit:
		if err := json.Unmarshal(st.Result, &t.result); err != nil {
			return fmt.Errorf("read result of %s: %w", w.id, err)
		}
		if c.job.Journal != nil {
			if err := c.job.Journal.Record(t.node.name, t.task.Seq, t.result); err != nil {
				return err
			}
		}
		c.cfg.Log.Debug("task done", "worker", w.id, "node", t.node.name, "task", t.task.Seq, "frames", t.result.Frames)
		t.node.running--
		w.step, w.task = stepIdle, nil
		return c.finish(ctx, t)
	case stepIdle:
	}
	return nil
}

// failed decides what follows a failed command: the same command again, then
// another worker, then the end of the run. What another try cannot mend ends it
// sooner.
func (c *Coordinator) failed(w *workerState, f *workerpb.Failure) error {
	t := w.task
	kind := stage.FailureKind(f.Kind)
	c.cfg.Log.Warn("command failed", "worker", w.id, "node", t.node.name, "task", t.task.Seq, "step", w.step.String(), "kind", f.Kind, "error", f.Message)
	t.tries++
	if kind != stage.FailureNoSpace && !w.resent {
		w.resent = true
		c.command(w)
		return nil
	}
	if kind != stage.FailureTransient || t.attempts >= c.cfg.Attempts {
		return c.taskError(t, f)
	}
	t.node.running--
	w.step, w.task = stepIdle, nil
	heap.Push(&c.pending, t)
	// Another worker should get it: this one is replaced by a fresh one.
	w.dropped = true
	return w.end()
}

// end kills a worker; its exit follows as an event.
func (w *workerState) end() error {
	w.ending = true
	return w.handle.Kill()
}

func (c *Coordinator) taskError(t *taskState, f *workerpb.Failure) error {
	start, end := t.task.Range()
	tb := c.job.Plan.TimeBase
	where := fmt.Sprintf("%.3f s to %.3f s", tb.Seconds(start), tb.Seconds(end))
	if t.node.name == soundNode {
		where = "the whole sound"
	} else if follows := c.job.Plan.Nodes[t.node.index].Follows; follows >= 0 && follows < len(c.job.InputNames) {
		where += " of " + c.job.InputNames[follows]
	}
	return &TaskError{
		Node: t.node.name, Stage: f.Stage, Seq: t.task.Seq, Where: where,
		Attempts: t.tries, Kind: stage.FailureKind(f.Kind), Cause: f.Message, LogTail: f.LogTail,
	}
}

// taskQueue is a heap of pending tasks: earlier chunks first, among those the
// nodes nearest to the output ("time to first frame", thesis 2.2.5).
type taskQueue []*taskState

func (q taskQueue) Len() int { return len(q) }

func (q taskQueue) Less(i, j int) bool {
	a, b := q[i], q[j]
	switch {
	case a.chunk != b.chunk:
		return a.chunk < b.chunk
	case a.node.depth != b.node.depth:
		return a.node.depth > b.node.depth
	case a.node.index != b.node.index:
		return a.node.index < b.node.index
	}
	return a.task.Seq < b.task.Seq
}

func (q taskQueue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }

// Push implements heap.Interface.
func (q *taskQueue) Push(x any) { *q = append(*q, x.(*taskState)) }

// Pop implements heap.Interface.
func (q *taskQueue) Pop() any {
	old := *q
	last := old[len(old)-1]
	old[len(old)-1] = nil
	*q = old[:len(old)-1]
	return last
}

// AsTaskError returns the TaskError in err's chain, or nil.
func AsTaskError(err error) *TaskError {
	var te *TaskError
	if errors.As(err, &te) {
		return te
	}
	return nil
}
