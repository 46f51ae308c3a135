package sim

import "time"

// kind is what an event is.
type kind uint8

const (
	// ordered: a message reaches an invoker.
	ordered kind = iota
	// reported: a message reaches the controller.
	reported
	// created: a node has made a container, unless the event is outdated.
	created
	// initialised: a new container is ready.
	initialised
	// finished: an invocation has run.
	finished
	// ticked: a second has passed.
	ticked
	// planned: it is time to ask a sophon.Prewarmer.
	planned
)

// event is something that happens at a time. Which fields are used depends on
// its kind.
type event struct {
	at time.Duration
	// order tells events of the same time apart: they happen in the order in
	// which they were scheduled.
	order   uint64
	kind    kind
	node    *node
	run     *run
	start   *start
	message *message
	version uint64
}

// agenda is the events to come: a binary heap.
type agenda struct {
	heap []event
	next uint64
}

func (a *agenda) empty() bool { return len(a.heap) == 0 }

func (e *event) before(f *event) bool {
	return e.at < f.at || (e.at == f.at && e.order < f.order)
}

func (a *agenda) add(e event) {
	a.next++
	e.order = a.next
	a.heap = append(a.heap, e)
	i := len(a.heap) - 1
	for i > 0 {
		parent := (i - 1) / 2
		if !a.heap[i].before(&a.heap[parent]) {
			break
		}
		a.heap[i], a.heap[parent] = a.heap[parent], a.heap[i]
		i = parent
	}
}

// take removes the first event.
func (a *agenda) take() event {
	first := a.heap[0]
	last := len(a.heap) - 1
	a.heap[0] = a.heap[last]
	a.heap[last] = event{}
	a.heap = a.heap[:last]
	i := 0
	for {
		least := i
		for child := 2*i + 1; child <= 2*i+2 && child < last; child++ {
			if a.heap[child].before(&a.heap[least]) {
				least = child
			}
		}
		if least == i {
			return first
		}
		a.heap[i], a.heap[least] = a.heap[least], a.heap[i]
		i = least
	}
}
