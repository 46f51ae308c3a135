package controller

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/sophon"
	"github.com/volley-run/volley/sophon/wire"
)

// term is what a controller knows while it leads. It begins empty and is
// thrown away at the end, since another leader may have acted in between.
//
// One mutex guards everything. Whoever has put something into an outbox ends
// with release, which sends it.
type term struct {
	c     *Controller
	epoch uint64
	began time.Time
	// ctx ends with the term.
	ctx context.Context

	mu      sync.Mutex
	ended   bool
	cluster *sophon.Cluster
	sched   *sophon.Scheduler
	// peers are the invokers by name, and byNode by sophon.Node.Index.
	peers  map[string]*peer
	byNode []*peer
	// calls are the accepted invocations by request id, waiting and placed.
	calls map[string]*call
	// foreign are requests that run for an earlier leader, and where.
	foreign map[string]*peer
	orphans orphans

	functions map[string]*revision // by key
	retired   map[*revision]bool
	usages    map[string]*usage // by function name
	// underWay counts calls, unreserved those of functions without a
	// reservation, and reserved sums the reservations.
	underWay, unreserved, reserved int

	// expiry fires at expires, when a call has waited long enough.
	expiry  *time.Timer
	expires time.Time

	touched []*peer
	changes []sophon.Change // reused by every report

	idPrefix string
	ids      uint64

	// backlog tells the sender that outboxes have filled while they were
	// being sent; replan, that provisioned concurrency needs a look.
	backlog, replan chan struct{}
	provision       map[string]*provisioning // by function name
}

// revision is one revision of a function in a term.
type revision struct {
	key      string
	function *sophon.Function
	entry    *entry // nil if the registry never told of it
	usage    *usage
	// calls counts the calls that need it.
	calls int
	// retired revisions are not the function's current one any more: their
	// containers end once idle.
	retired bool
}

// usage is what all revisions of a function share.
type usage struct {
	name      string
	revisions []*revision
	underWay  int
	// reserved is the bound, or -1.
	reserved int
	metrics  *functionMetrics
	stats    FunctionStats // only the counters are kept here
}

func newTerm(ctx context.Context, c *Controller, epoch uint64) *term {
	var random [5]byte
	_, _ = rand.Read(random[:]) // never fails
	t := &term{
		c: c, epoch: epoch, began: time.Now(), ctx: ctx,
		peers: map[string]*peer{}, calls: map[string]*call{}, foreign: map[string]*peer{},
		functions: map[string]*revision{}, retired: map[*revision]bool{}, usages: map[string]*usage{},
		idPrefix: "c" + strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(random[:])) + "-",
		backlog:  make(chan struct{}, 1), replan: make(chan struct{}, 1),
		provision: map[string]*provisioning{},
	}
	t.expiry = time.AfterFunc(time.Hour, t.expire)
	t.orphans.results = map[string]orphan{}
	keepAlive := c.cfg.KeepAlive
	if own, ok := c.cfg.Policy.(sophon.KeepAlive); ok && keepAlive == nil {
		keepAlive = own
	}
	t.cluster = sophon.NewCluster(&provisionedLast{inner: keepAlive, term: t})
	t.sched = sophon.NewScheduler(t.cluster, c.cfg.Policy, t.newID)
	for _, e := range c.registry.all() {
		t.usage(e.function.Name) // counts its reservation
	}
	return t
}

// newID names a new container: unique over all terms, and short.
func (t *term) newID() string {
	t.ids++
	return t.idPrefix + strconv.FormatUint(t.ids, 36)
}

// call is one invocation that was accepted.
type call struct {
	inv    function.Invocation
	entry  *entry
	stream string // the subject for pieces, or empty
	async  bool
	// accepted and placed are times of the monotonic clock.
	accepted, placed time.Time
	decision         time.Duration

	// The following are guarded by the term's mutex until done is closed.

	job      sophon.Job
	revision *revision
	// waiting tells that it is in the scheduler's queue.
	waiting bool
	// adopted calls run for an earlier leader and are unknown to the scheduler.
	adopted bool
	// abandoned calls run on, but nobody waits for the result.
	abandoned bool
	refusals  int
	trace     *callTrace

	done   chan struct{}
	result function.Result
	// streamed tells that the payload went to the stream.
	streamed bool
	err      *function.Error
}

// maxRefusals is how often an invocation is given back before it fails.
const maxRefusals = 10

// submit accepts a call, or says why not. Its done is closed at the end.
func (t *term) submit(k *call) error {
	t.mu.Lock()
	defer t.gather()
	k.accepted = time.Now() // under the lock: the scheduler's time must not go back
	if t.ended {
		return stepsDown()
	}
	if t.calls[k.inv.ID] != nil {
		return function.Errorf(function.Conflict, "an invocation of the id %s is under way: give each its own", k.inv.ID)
	}
	rev := t.revisionOf(k.entry)
	if k.async && t.takeOver(k, rev) {
		return nil
	}
	if err := t.admit(rev.usage); err != nil {
		return err
	}
	t.add(k, rev)
	k.job = sophon.Job{ID: k.inv.ID, Function: rev.function, Arrived: k.accepted,
		Deadline: k.accepted.Add(t.c.cfg.Timing.QueueWait), Value: k}
	p, ok := t.sched.Submit(&k.job, k.accepted)
	if ok {
		t.place(p, k.accepted)
		return nil
	}
	if err := t.hopeless(rev.function); err != nil {
		t.sched.Cancel(&k.job)
		t.remove(k)
		return err
	}
	t.wait(k)
	return nil
}

func stepsDown() *function.Error {
	return function.Errorf(function.Unavailable,
		"the controller has lost the lead: whether the function has run is not known; retry")
}

// admit enforces the limits on concurrency.
func (t *term) admit(u *usage) error {
	total := t.c.cfg.Limits.Concurrency
	switch {
	case u.reserved >= 0 && u.underWay >= u.reserved:
		u.stats.Throttled++
		return &function.Error{Code: function.TooManyRequests, Reason: "ReservedFunctionConcurrentInvocationLimitExceeded",
			Message: fmt.Sprintf("Rate Exceeded: the function's reserved concurrency of %d is in use", u.reserved)}
	case u.reserved < 0 && t.unreserved >= total-t.reserved:
		u.stats.Throttled++
		return &function.Error{Code: function.TooManyRequests, Reason: "ConcurrentInvocationLimitExceeded",
			Message: fmt.Sprintf("Rate Exceeded: the %d invocations at once that are not reserved are under way", total-t.reserved)}
	}
	return nil
}

// add counts a call in; remove counts it out.
func (t *term) add(k *call, rev *revision) {
	k.revision = rev
	rev.calls++
	rev.usage.underWay++
	t.underWay++
	if rev.usage.reserved < 0 {
		t.unreserved++
	}
	t.calls[k.inv.ID] = k
}

func (t *term) remove(k *call) {
	rev := k.revision
	rev.calls--
	rev.usage.underWay--
	t.underWay--
	if rev.usage.reserved < 0 {
		t.unreserved--
	}
	delete(t.calls, k.inv.ID)
}

// hopeless says that a function is larger than any invoker that there is.
func (t *term) hopeless(f *sophon.Function) error {
	most := t.cluster.LargestMB()
	if most < 0 || f.MemoryMB <= most {
		return nil
	}
	return &function.Error{Code: function.InvalidParameter, Field: "memoryMB",
		Message: fmt.Sprintf("function %s wants %d MiB and the largest invoker has %d MiB: lower its memory or add an invoker", f.Name, f.MemoryMB, most)}
}

// wait notes that a call is in the scheduler's queue.
func (t *term) wait(k *call) {
	k.waiting = true
	t.armExpiry()
}

// armExpiry sets the timer to the next deadline of a call that waits.
func (t *term) armExpiry() {
	next := t.sched.NextDeadline()
	if next.IsZero() || next.Equal(t.expires) {
		return
	}
	t.expires = next
	t.expiry.Reset(time.Until(next))
}

// expire fails the calls that have waited for a place until their deadline.
func (t *term) expire() {
	t.mu.Lock()
	defer t.release()
	if t.ended {
		return
	}
	t.expires = time.Time{}
	for _, j := range t.sched.Expire(time.Now()) {
		k := j.Value.(*call)
		k.waiting = false
		k.revision.usage.stats.Throttled++
		t.finish(k, t.noCapacity(k))
	}
	t.armExpiry()
}

func (t *term) noCapacity(k *call) *function.Error {
	if t.cluster.LargestMB() < 0 {
		return function.Errorf(function.Unavailable, "no invoker is connected: start one with volley invoker")
	}
	err := function.Errorf(function.TooManyRequests, "no capacity: nothing could run function %s within %v; retry, or add an invoker",
		k.inv.Function, t.c.cfg.Timing.QueueWait)
	err.Reason = "NoCapacity"
	return err
}

// place puts a placement into its invoker's outbox.
func (t *term) place(p sophon.Placement, now time.Time) {
	to := t.byNode[p.Node.Index()]
	rev := t.functions[p.Function.Key]
	run := &wire.Run{
		Expect: p.Expect, Container: p.Container, AnyWarm: p.AnyWarm, Evict: p.Evict,
		FunctionKey: rev.key, Function: rev.entry.json, MemoryMb: rev.function.MemoryMB,
		TimeoutNano: int64(rev.entry.function.Timeout),
	}
	var k *call
	if p.Job != nil {
		k = p.Job.Value.(*call)
		k.waiting = false
		k.placed = time.Now()
		if k.decision == 0 && now.Equal(k.accepted) {
			k.decision = k.placed.Sub(now)
		}
		run.RequestId = k.inv.ID
		run.Payload, run.ClientContext = k.inv.Payload, k.inv.ClientContext
		run.LogTail, run.StreamSubject = k.inv.LogTail, k.stream
		run.TraceParent = k.inv.TraceParent
		run.ReceivedUnixNano = k.inv.Received.UnixNano()
		run.Attempt = int32(k.inv.Attempt)
		// Results are kept until they are acknowledged, so that a job whose
		// invoker does not know of it has certainly not run.
		run.Durable = true
		if k.trace != nil {
			run.TraceParent = k.trace.placed(to.name)
		}
	}
	to.runs = append(to.runs, outgoing{run, p})
	t.touch(to)
}

// drain places what waits, as far as it fits now.
func (t *term) drain(now time.Time) {
	if t.sched.Queued() == 0 {
		return
	}
	for _, p := range t.sched.Drain(now) {
		t.place(p, now)
	}
}

// again puts a placed call that has not run back into the queue; the caller
// drains. Nobody may wait for it any longer: then it ends.
func (t *term) again(k *call) {
	if k.abandoned {
		t.sched.Finish(&k.job)
		t.finish(k, function.Errorf(function.Unavailable, "the caller has gone"))
		return
	}
	t.sched.Requeue(&k.job)
	t.wait(k)
}

// finish ends a call, which the scheduler must not know any more. The result
// has been filled in if err is nil.
func (t *term) finish(k *call, err *function.Error) {
	t.remove(k)
	k.err = err
	u := k.revision.usage
	u.stats.Invocations++
	switch {
	case err != nil:
		u.stats.PlatformErrors++
	case k.result.FunctionError != "":
		u.stats.FunctionErrors++
	}
	if err == nil && k.result.Cold {
		u.stats.ColdStarts++
	}
	close(k.done)
}

// abandon is for a caller that does not wait any longer.
func (t *term) abandon(k *call) {
	t.mu.Lock()
	defer t.release()
	select {
	case <-k.done:
		return
	default:
	}
	if t.ended || k.abandoned {
		return
	}
	if k.waiting {
		if t.sched.Cancel(&k.job) {
			k.waiting = false
			t.finish(k, function.Errorf(function.Unavailable, "the caller has gone"))
		}
		return
	}
	k.abandoned = true
	if n := k.job.Node(); n != nil {
		t.cancel(t.byNode[n.Index()], k)
	}
}

// cancel tells an invoker that nobody waits for a call. What has not been sent
// yet is not sent at all.
func (t *term) cancel(p *peer, k *call) {
	p.cancels = append(p.cancels, k.inv.ID)
	t.touch(p)
}

// revisionOf returns the term's entry for a function in the registry.
func (t *term) revisionOf(e *entry) *revision {
	rev := t.functions[e.key]
	if rev == nil {
		rev = t.intern(e.key, int64(e.function.MemoryMB))
	}
	if rev.entry == nil {
		rev.entry = e
	}
	return rev
}

// intern returns the revision of a key, which it makes if needed.
func (t *term) intern(key string, memoryMB int64) *revision {
	if rev := t.functions[key]; rev != nil {
		return rev
	}
	name, _, _ := strings.Cut(key, "@")
	rev := &revision{key: key, usage: t.usage(name), function: t.cluster.Intern(key, name, memoryMB)}
	t.functions[key] = rev
	rev.usage.revisions = append(rev.usage.revisions, rev)
	if e, err := t.c.registry.lookup(name); err == nil && e.key == key {
		rev.entry = e
	} else {
		t.retire(rev)
	}
	return rev
}

// usage returns what the revisions of a function share.
func (t *term) usage(name string) *usage {
	u := t.usages[name]
	if u == nil {
		u = &usage{name: name, reserved: -1, metrics: t.c.metrics.function(name)}
		u.stats.Name = name
		t.usages[name] = u
		if e, err := t.c.registry.lookup(name); err == nil {
			t.reserve(u, e.function.ReservedConcurrency)
		}
	}
	return u
}

// reserve changes a function's reservation.
func (t *term) reserve(u *usage, n *int) {
	if u.reserved >= 0 {
		t.reserved -= u.reserved
	} else {
		t.unreserved -= u.underWay
	}
	u.reserved = -1
	if n != nil {
		u.reserved = *n
		t.reserved += *n
	} else {
		t.unreserved += u.underWay
	}
}

// functionChanged follows the registry: e.function is nil for a deletion.
func (t *term) functionChanged(name string, e *entry) {
	t.mu.Lock()
	defer t.release()
	if t.ended {
		return
	}
	u := t.usage(name)
	if e.function != nil {
		t.reserve(u, e.function.ReservedConcurrency)
	} else {
		t.reserve(u, nil)
	}
	for _, rev := range u.revisions {
		if e.function == nil || rev.key != e.key {
			t.retire(rev)
			continue
		}
		rev.entry, rev.retired = e, false
		delete(t.retired, rev)
	}
	t.wantPlan()
}

// retire ends a revision's containers: the idle ones now, the others as
// reports tell that they have become idle.
func (t *term) retire(rev *revision) {
	rev.retired = true
	t.retired[rev] = true
	for idle := rev.function.Idle(); len(idle) > 0; idle = rev.function.Idle() {
		t.endContainer(idle[len(idle)-1])
	}
}

// endContainer ends an idle container; nobody gets it from now on.
func (t *term) endContainer(c *sophon.Container) {
	p := t.byNode[c.Node().Index()]
	if !t.sched.End(c, time.Now()) {
		return
	}
	p.ends = append(p.ends, c.ID())
	t.touch(p)
}

// forgetRetired drops revisions that nothing needs any more.
func (t *term) forgetRetired() {
	for rev := range t.retired {
		if rev.calls > 0 || !t.cluster.Forget(rev.function) {
			continue
		}
		delete(t.retired, rev)
		delete(t.functions, rev.key)
		u := rev.usage
		kept := u.revisions[:0]
		for _, r := range u.revisions {
			if r != rev {
				kept = append(kept, r)
			}
		}
		clear(u.revisions[len(kept):])
		u.revisions = kept
		if _, err := t.c.registry.lookup(u.name); err != nil && len(kept) == 0 {
			delete(t.usages, u.name)
			t.c.metrics.forget(u.name)
		}
	}
}

// end fails all calls and gives the policy's view back, empty.
func (t *term) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ended = true
	t.expiry.Stop()
	now := time.Now()
	for _, n := range t.cluster.Nodes() {
		t.sched.Lose(n, now)
	}
	for _, k := range t.calls {
		if k.waiting {
			t.sched.Cancel(&k.job)
			k.waiting = false
		}
		t.finish(k, stepsDown())
	}
	t.touched = nil
}
