package delivery

import (
	"fmt"
	"slices"

	"github.com/volley-run/volley/sprocket"
)

// regroup cuts a stream of frames anew, in order of presentation, where a
// cutter says. Each task gets one new item, which refers to the frames where
// they are stored. The item starts at its first frame; it ends where the next
// task's first frame starts or, when a task is delivered before that frame is
// known, where the item that its last frame came from ends. Cuts are not handed
// on. The frames of a task must agree in their Pixels.
type regroup struct {
	ports  ports
	order  sequence
	cutter cutter

	open    sprocket.Item // the task that is being gathered
	held    int           // frames in open
	tasks   int64
	last    int64 // time of the last frame
	started bool  // there was a frame
}

// cutter says where tasks begin and end. Its answers depend on the frames
// alone, never on what else has arrived.
type cutter interface {
	// enter is called with each item, in order, before its frames.
	enter(it sprocket.Item) error
	// before reports whether the frame at pts begins a task, when held frames
	// have been gathered.
	before(pts int64, held int) bool
	// complete reports whether held frames are a task whatever follows.
	complete(held int) bool
}

func newRegroup(n int, c cutter) (Func, error) {
	if err := needOnePort(n); err != nil {
		return nil, err
	}
	return &regroup{ports: newPorts(n), order: newSequence(), cutter: c}, nil
}

func (r *regroup) Deliver(port int, it sprocket.Item) ([]Delivery, error) {
	if it.Type != sprocket.Frames {
		return nil, fmt.Errorf("deliver item %d: frames are needed, but the item carries %q", it.Seq, it.Type)
	}
	if err := r.ports.arrive(port, it); err != nil {
		return nil, err
	}
	var out []Delivery
	for _, it := range r.order.add(it) {
		done, err := r.take(it)
		if err != nil {
			return nil, fmt.Errorf("deliver item %d: %w", it.Seq, err)
		}
		out = append(out, done...)
	}
	return out, nil
}

// take adds the frames of the next item in order.
func (r *regroup) take(it sprocket.Item) ([]Delivery, error) {
	if err := r.cutter.enter(it); err != nil {
		return nil, err
	}
	var out []Delivery
	for _, run := range it.Frames {
		from := 0
		for i, pts := range run.PTS {
			if r.started && pts <= r.last {
				return nil, fmt.Errorf("the frame at %d follows one at %d: frames must be in order of presentation", pts, r.last)
			}
			r.last, r.started = pts, true
			if r.cutter.before(pts, r.held) && r.held > 0 {
				r.extend(run, from, i)
				from = i
				out = append(out, r.finish(pts))
			}
			if r.held == 0 {
				r.open.Start, r.open.Chunk, r.open.Pixels = pts, it.Chunk, it.Pixels
			}
			if !samePixels(r.open.Pixels, it.Pixels) {
				return nil, fmt.Errorf("the frame at %d is %s but others of its task are %s: a task's frames must look alike",
					pts, describe(it.Pixels), describe(r.open.Pixels))
			}
			r.held++
			r.open.End = it.End
		}
		r.extend(run, from, len(run.PTS))
	}
	if r.held > 0 && r.cutter.complete(r.held) {
		out = append(out, r.finish(r.open.End))
	}
	return out, nil
}

// extend adds run.PTS[from:to] to the open task.
func (r *regroup) extend(run sprocket.FrameRange, from, to int) {
	if from < to {
		r.open.Frames = append(r.open.Frames, sprocket.FrameRange{Key: run.Key, Base: run.Base, PTS: run.PTS[from:to:to]})
	}
}

// finish ends the open task at time end.
func (r *regroup) finish(end int64) Delivery {
	it := r.open
	it.Type, it.Seq, it.End = sprocket.Frames, r.tasks, end
	r.open, r.held = sprocket.Item{}, 0
	r.tasks++
	return Delivery{Seq: it.Seq, Inputs: [][]sprocket.Item{{it}}}
}

func (r *regroup) Close(port int, count int64) ([]Delivery, error) {
	if err := r.ports.close(port, count); err != nil {
		return nil, err
	}
	if r.held == 0 {
		return nil, nil
	}
	return []Delivery{r.finish(r.open.End)}, nil
}

func (r *regroup) Total() int64 {
	if !r.ports.allClosed() {
		return -1
	}
	return r.tasks
}

func samePixels(a, b *sprocket.Pixels) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}

func describe(p *sprocket.Pixels) string {
	if p == nil {
		return "of unknown pixels"
	}
	return fmt.Sprintf("%+v", *p)
}

// everyN cuts after a number of frames.
type everyN int

func (n everyN) enter(sprocket.Item) error     { return nil }
func (n everyN) before(_ int64, held int) bool { return held == int(n) }
func (n everyN) complete(held int) bool        { return held == int(n) }

// newFrames makes tasks of a fixed number of consecutive frames: what an
// encoder needs (thesis 2.2.5). The last task may be shorter.
func newFrames(n int, opts Options) (Func, error) {
	if opts.FramesPerTask < 1 {
		return nil, fmt.Errorf("the number of frames in a task must be at least 1, not %d", opts.FramesPerTask)
	}
	return newRegroup(n, everyN(opts.FramesPerTask))
}

// newSplit makes a task of every frame, so that one slow frame holds up no
// other (thesis 2.2.5).
func newSplit(n int, _ Options) (Func, error) { return newRegroup(n, everyN(1)) }

// atCuts cuts at the times that items name in Cuts. A time between two frames
// means the later one.
type atCuts struct {
	cuts []int64 // those not yet reached, rising
}

func newScene(n int, _ Options) (Func, error) { return newRegroup(n, &atCuts{}) }

func (c *atCuts) enter(it sprocket.Item) error {
	for _, cut := range it.Cuts {
		if cut < it.Start {
			return fmt.Errorf("a scene cannot start at %d: the item that says so starts at %d", cut, it.Start)
		}
	}
	c.cuts = slices.Sorted(slices.Values(slices.Concat(c.cuts, it.Cuts)))
	return nil
}

func (c *atCuts) before(pts int64, _ int) bool {
	reached := false
	for len(c.cuts) > 0 && c.cuts[0] <= pts {
		c.cuts, reached = c.cuts[1:], true
	}
	return reached
}

func (c *atCuts) complete(int) bool { return false }
