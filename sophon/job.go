package sophon

import "time"

// Job is one invocation on its way through a Scheduler. The caller makes it
// and fills in the exported fields; one job is submitted once.
type Job struct {
	ID       string
	Function *Function
	Arrived  time.Time
	// Deadline is until when it may wait for a place; zero is for ever. It
	// must not change while the job waits.
	Deadline time.Time
	// Seq is the number of the message that sent it to its node, counted by
	// the caller for each node from 1; 0 is not sent yet. See Sync.
	Seq uint64
	// Value is the caller's.
	Value any

	node      *Node
	container *Container
	// reservedMB is what the node keeps for it until it is known in which
	// container it runs.
	reservedMB int64
	// spare is the name that its container gets if a new one is made.
	spare string
	// number counts the jobs of the Scheduler, to tell those apart that
	// arrived at once.
	number uint64
	// next and prev link the jobs that wait for a function, or run on a node.
	next, prev *Job
	// waiting tells whether it is in its function's queue; expiry is the
	// index in the heap of deadlines, or -1.
	waiting bool
	expiry  int
}

// Node is where the job runs or is being sent, or nil.
func (j *Job) Node() *Node { return j.node }

// Container is the container that the job is thought to run in. It is nil while
// that is not known: after a node-grained choice the invoker has to tell.
func (j *Job) Container() *Container { return j.container }

// before orders jobs by arrival.
func (j *Job) before(k *Job) bool {
	if c := j.Arrived.Compare(k.Arrived); c != 0 {
		return c < 0
	}
	return j.number < k.number
}

// jobList is a doubly linked list of jobs.
type jobList struct{ first, last *Job }

func (l *jobList) pushBack(j *Job) {
	j.prev, j.next = l.last, nil
	if l.last == nil {
		l.first = j
	} else {
		l.last.next = j
	}
	l.last = j
}

// insert puts a job before the first one that arrived after it.
func (l *jobList) insert(j *Job) {
	at := l.first
	for at != nil && !j.before(at) {
		at = at.next
	}
	if at == nil {
		l.pushBack(j)
		return
	}
	j.next, j.prev = at, at.prev
	at.prev = j
	if j.prev == nil {
		l.first = j
	} else {
		j.prev.next = j
	}
}

func (l *jobList) remove(j *Job) {
	if j.prev == nil {
		l.first = j.next
	} else {
		j.prev.next = j.next
	}
	if j.next == nil {
		l.last = j.prev
	} else {
		j.next.prev = j.prev
	}
	j.next, j.prev = nil, nil
}

// find returns the job of that id, or nil; those added last are looked at first.
func (l *jobList) find(id string) *Job {
	for j := l.last; j != nil; j = j.prev {
		if j.ID == id {
			return j
		}
	}
	return nil
}
