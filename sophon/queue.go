package sophon

import (
	"cmp"
	"container/heap"
	"slices"
	"time"
)

// queue is the jobs of one function that wait, in order of arrival.
type queue struct {
	function *Function
	jobs     jobList
	len      int
	class    *class
	// slot is the index in the heap of the class, or -1 while set aside.
	slot int
	// ready says that it is in waits.ready.
	ready bool
}

// class is the queues of the functions of one memory size: a heap by the
// arrival of their first jobs.
type class struct {
	memoryMB int64
	queues   []*queue
}

// heap.Interface.
func (c *class) Len() int           { return len(c.queues) }
func (c *class) Less(i, j int) bool { return c.queues[i].jobs.first.before(c.queues[j].jobs.first) }
func (c *class) Swap(i, j int) {
	c.queues[i], c.queues[j] = c.queues[j], c.queues[i]
	c.queues[i].slot, c.queues[j].slot = i, j
}

func (c *class) Push(x any) {
	q := x.(*queue)
	q.slot = len(c.queues)
	c.queues = append(c.queues, q)
}

func (c *class) Pop() any {
	last := len(c.queues) - 1
	q := c.queues[last]
	c.queues[last] = nil
	c.queues = c.queues[:last]
	q.slot = -1
	return q
}

// waits is all jobs that wait, so ordered that the one to try next is found
// without looking at all of them.
type waits struct {
	// classes are by memory size, smallest first.
	classes []*class
	len     int
	// deadlines is a heap of the jobs that have one.
	deadlines deadlines
	// ready are queues whose function has got an idle container; some may be
	// out of date.
	ready []*queue
	// aside are queues that the policy has refused in this round.
	aside []*queue
}

// add puts a job into its function's queue.
func (w *waits) add(j *Job) {
	f := j.Function
	q := f.queue
	if q == nil {
		q = &queue{function: f, class: w.class(f.MemoryMB), slot: -1}
		f.queue = q
	}
	if q.len == 0 || q.jobs.last.before(j) {
		q.jobs.pushBack(j)
	} else {
		q.jobs.insert(j)
	}
	q.len++
	w.len++
	switch {
	case q.slot >= 0:
		heap.Fix(q.class, q.slot)
	case !slices.Contains(w.aside, q):
		heap.Push(q.class, q)
	}
	j.waiting, j.expiry = true, -1
	if !j.Deadline.IsZero() {
		heap.Push(&w.deadlines, j)
	}
}

// remove takes a job out of its function's queue.
func (w *waits) remove(j *Job) {
	f := j.Function
	q := f.queue
	q.jobs.remove(j)
	q.len--
	w.len--
	switch {
	case q.len == 0:
		if q.slot >= 0 {
			heap.Remove(q.class, q.slot)
		}
		if i := slices.Index(w.aside, q); i >= 0 {
			w.aside = slices.Delete(w.aside, i, i+1)
		}
		f.queue = nil
		w.prune(q.class)
	case q.slot >= 0:
		heap.Fix(q.class, q.slot)
	}
	j.waiting = false
	if j.expiry >= 0 {
		heap.Remove(&w.deadlines, j.expiry)
	}
}

// class returns the class of that size, which it makes if needed.
func (w *waits) class(memoryMB int64) *class {
	i, found := w.find(memoryMB)
	if !found {
		w.classes = slices.Insert(w.classes, i, &class{memoryMB: memoryMB})
	}
	return w.classes[i]
}

// prune drops a class that no queue needs.
func (w *waits) prune(c *class) {
	if len(c.queues) > 0 || slices.ContainsFunc(w.aside, func(q *queue) bool { return q.class == c }) {
		return
	}
	if i, found := w.find(c.memoryMB); found {
		w.classes = slices.Delete(w.classes, i, i+1)
	}
}

func (w *waits) find(memoryMB int64) (int, bool) {
	return slices.BinarySearchFunc(w.classes, memoryMB, func(c *class, mb int64) int { return cmp.Compare(c.memoryMB, mb) })
}

// earliest returns the queue whose first job has waited longest, of those for
// at most that much memory; nil if there is none.
func (w *waits) earliest(mostMB int64) *queue {
	var best *queue
	for _, c := range w.classes {
		if c.memoryMB > mostMB {
			break
		}
		if len(c.queues) > 0 && (best == nil || c.queues[0].jobs.first.before(best.jobs.first)) {
			best = c.queues[0]
		}
	}
	return best
}

// markReady notes that a waiting function has got an idle container.
func (w *waits) markReady(q *queue) {
	if !q.ready {
		q.ready = true
		w.ready = append(w.ready, q)
	}
}

// earliestReady returns the queue whose first job has waited longest, of those
// whose function has an idle container; nil if there is none.
func (w *waits) earliestReady() *queue {
	var best *queue
	kept := w.ready[:0]
	for _, q := range w.ready {
		if q.len == 0 || q.slot < 0 || len(q.function.warm) == 0 {
			q.ready = false
			continue
		}
		kept = append(kept, q)
		if best == nil || q.jobs.first.before(best.jobs.first) {
			best = q
		}
	}
	clear(w.ready[len(kept):])
	w.ready = kept
	return best
}

// setAside keeps a queue from being found until restore.
func (w *waits) setAside(q *queue) {
	heap.Remove(q.class, q.slot)
	w.aside = append(w.aside, q)
}

func (w *waits) restore() {
	for _, q := range w.aside {
		heap.Push(q.class, q)
	}
	clear(w.aside)
	w.aside = w.aside[:0]
}

// deadlines is a heap of jobs by deadline.
type deadlines []*Job

// heap.Interface.
func (d deadlines) Len() int           { return len(d) }
func (d deadlines) Less(i, j int) bool { return d[i].Deadline.Before(d[j].Deadline) }
func (d deadlines) Swap(i, j int) {
	d[i], d[j] = d[j], d[i]
	d[i].expiry, d[j].expiry = i, j
}

func (d *deadlines) Push(x any) {
	j := x.(*Job)
	j.expiry = len(*d)
	*d = append(*d, j)
}

func (d *deadlines) Pop() any {
	last := len(*d) - 1
	j := (*d)[last]
	(*d)[last] = nil
	*d = (*d)[:last]
	j.expiry = -1
	return j
}

// next is the earliest deadline; zero if there is none.
func (d deadlines) next() time.Time {
	if len(d) == 0 {
		return time.Time{}
	}
	return d[0].Deadline
}
