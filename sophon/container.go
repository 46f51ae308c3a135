package sophon

import (
	"fmt"
	"time"
)

// State is what a container is doing.
type State uint8

// The states of a container.
const (
	// Starting: being made, for an invocation or in advance.
	Starting State = iota + 1
	// Busy: running an invocation.
	Busy
	// Idle: ready for an invocation; may be evicted.
	Idle
	// Paused: idle and frozen; ready after a resume.
	Paused
	// Gone: no longer there. Only reports name this state.
	Gone
)

func (s State) String() string {
	switch s {
	case Starting:
		return "starting"
	case Busy:
		return "busy"
	case Idle:
		return "idle"
	case Paused:
		return "paused"
	case Gone:
		return "gone"
	}
	return fmt.Sprintf("State(%d)", uint8(s))
}

// evictable reports whether a container in this state counts as idle memory.
func (s State) evictable() bool { return s == Idle || s == Paused }

// Container is one container of a Cluster. Only the Cluster changes it.
type Container struct {
	group    *Group
	memoryMB int64
	state    State
	// priority orders eviction within the node if there is a KeepAlive: lower
	// goes first.
	priority float64
	// lastUsed is when it last changed between busy and idle.
	lastUsed time.Time
	// next and prev link the node's evictable containers in the order of
	// eviction, older and newer those of the group by last use.
	next, prev, older, newer *Container
	// claim is the job that the Scheduler gave it to, or nil.
	claim *Job
	// order is what the invoker was told when this container was asked for,
	// for as long as the invoker has not reported it; else nil.
	order *order
	id    string
	// rested is how long it was idle before it last became active.
	rested time.Duration
	// uses counts the invocations that it was given.
	uses int
	// made is when it was first heard of.
	made time.Time
}

// order is a container that was asked for and not yet reported.
type order struct {
	// advance says that it is for no job. Then seq is the message that asks for
	// it, 0 if not known, and spared whether a full report has spared it
	// because of that.
	advance, spared bool
	seq             uint64
	// evict names the containers that the same message ends.
	evict []string
}

// ID is the container's name, unique in the cluster.
func (c *Container) ID() string { return c.id }

// Function is the function that it serves.
func (c *Container) Function() *Function { return c.group.function }

// Node is the invoker that it is on.
func (c *Container) Node() *Node { return c.group.node }

// Group is the containers of the same function on the same node.
func (c *Container) Group() *Group { return c.group }

// MemoryMB is the memory reserved for it, in MiB.
func (c *Container) MemoryMB() int64 { return c.memoryMB }

// State is what it is doing.
func (c *Container) State() State { return c.state }

// LastUsed is when it last became busy or idle.
func (c *Container) LastUsed() time.Time { return c.lastUsed }

// Rested is how long it had been idle when it last became busy; 0 if it never
// was.
func (c *Container) Rested() time.Duration { return c.rested }

// Made is when the cluster first heard of it.
func (c *Container) Made() time.Time { return c.made }

// Uses is how many invocations it was given.
func (c *Container) Uses() int { return c.uses }

// Priority is what the KeepAlive said when it last became idle: the lowest on
// a node goes first. It is 0 without a KeepAlive.
func (c *Container) Priority() float64 { return c.priority }

// Job is the job that the Scheduler gave it to, or nil.
func (c *Container) Job() *Job { return c.claim }

// NextVictim is the container that would be evicted after this one, or nil.
func (c *Container) NextVictim() *Container { return c.next }

// Older is the idle container of the same function on the same node that was
// used next before this idle one, or nil.
func (c *Container) Older() *Container { return c.older }

// Group is the containers of one function on one node. It exists for as long
// as there are any.
type Group struct {
	function *Function
	node     *Node
	// newest is the idle container used last; the others follow by older.
	newest *Container
	// containers counts all of them.
	containers int
	// slot is the index in the function's list of warm groups, or -1.
	slot int
	// node's index, here since it is needed more often than the node.
	nodeIndex int
}

// Function is the function of the containers.
func (g *Group) Function() *Function { return g.function }

// Node is the node of the containers.
func (g *Group) Node() *Node { return g.node }

// NodeIndex is the index of the node.
func (g *Group) NodeIndex() int { return g.nodeIndex }

// Newest is the idle container that was used last, or nil; go on with
// Container.Older.
func (g *Group) Newest() *Container { return g.newest }

// Containers is how many containers there are, in any state.
func (g *Group) Containers() int { return g.containers }

// Function is what the cluster knows of one function revision.
type Function struct {
	// Key names the revision (function.Function.Key); Name the function. They
	// and MemoryMB must not be changed.
	Key, Name string
	MemoryMB  int64

	// hash is HashName of Name; index is its number in the cluster.
	hash  uint32
	index int
	// warm are the groups that have evictable containers, in no order;
	// warmNodes are the indexes of their nodes.
	warm      []*Group
	warmNodes []int32
	// containers counts all of its containers.
	containers int
	// jobs counts the jobs of a Scheduler that wait or run; queue holds those
	// that wait.
	jobs  int
	queue *queue
	// retired says that it is to be forgotten once it is unused.
	retired bool
}

// Index is a small number that no other function of the cluster has. That of a
// forgotten function is given to another.
func (f *Function) Index() int { return f.index }

// Idle returns the function's idle and paused containers, those of one node
// together, the one used last first. The slice is the caller's; Warm is the way
// to look at them without making one.
func (f *Function) Idle() []*Container {
	var idle []*Container
	for _, g := range f.warm {
		for c := g.newest; c != nil; c = c.older {
			idle = append(idle, c)
		}
	}
	return idle
}

// Warm returns the function's groups that have an idle container, in no order.
// The slice belongs to the cluster and is valid until its next change.
func (f *Function) Warm() []*Group { return f.warm }

// WarmNodes returns the indexes of the nodes of Warm, in the same order: with
// View.OfferMB, most groups can be dismissed without looking at them. The slice
// belongs to the cluster as that of Warm does.
func (f *Function) WarmNodes() []int32 { return f.warmNodes }

// Containers is how many containers it has in any state.
func (f *Function) Containers() int { return f.containers }

// Jobs is how many of its jobs wait or run, of those given to a Scheduler.
func (f *Function) Jobs() int { return f.jobs }

// Waiting is how many of its jobs wait for a place.
func (f *Function) Waiting() int {
	if f.queue == nil {
		return 0
	}
	return f.queue.len
}

// NameHash is HashName of the function's name.
func (f *Function) NameHash() uint32 { return f.hash }

// HashName hashes a function's name as Java hashes a string of ASCII, which is
// how OpenWhisk finds a function's home (thesis 4.1.3). The absolute value of
// the signed hash is returned.
func HashName(name string) uint32 {
	var h int32
	for i := range len(name) {
		h = 31*h + int32(name[i])
	}
	if h < 0 {
		return uint32(-int64(h))
	}
	return uint32(h)
}
