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

// Container is one container of a Cluster. Only the Cluster changes it.
type Container struct {
	id       string
	function *Function
	node     *Node
	memoryMB int64
	state    State
	// lastUsed is when it last changed between busy and idle; made, when it
	// was first heard of.
	lastUsed, made time.Time
	// uses counts the invocations that it was given.
	uses int
	// priority orders eviction within the node: lower goes first.
	priority float64
	// next and prev link the node's evictable containers; slot is the index
	// in the function's list of idle ones.
	next, prev *Container
	slot       int
	// claim is the job that the Scheduler gave it to, or nil.
	claim *Job
}

// ID is the container's name, unique in the cluster.
func (c *Container) ID() string { return c.id }

// Function is the function that it serves.
func (c *Container) Function() *Function { return c.function }

// Node is the invoker that it is on.
func (c *Container) Node() *Node { return c.node }

// MemoryMB is the memory reserved for it, in MiB.
func (c *Container) MemoryMB() int64 { return c.memoryMB }

// State is what it is doing.
func (c *Container) State() State { return c.state }

// LastUsed is when it last became busy or idle.
func (c *Container) LastUsed() time.Time { return c.lastUsed }

// Made is when the cluster first heard of it.
func (c *Container) Made() time.Time { return c.made }

// Uses is how many invocations it was given.
func (c *Container) Uses() int { return c.uses }

// evictable reports whether the container counts as idle memory.
func (c *Container) evictable() bool { return c.state == Idle || c.state == Paused }

// NextVictim is the container that would be evicted after this one, or nil.
func (c *Container) NextVictim() *Container { return c.next }

// Function is what the cluster knows of one function revision.
type Function struct {
	// Key names the revision (function.Function.Key); Name the function.
	Key, Name string
	MemoryMB  int64
	// idle are its evictable containers, on whatever node, in no order.
	idle []*Container
	// containers counts all of its containers.
	containers int
}

// Idle returns the function's idle and paused containers, in no order. The
// slice belongs to the cluster and is valid until its next change.
func (f *Function) Idle() []*Container { return f.idle }

// Containers is how many containers it has in any state.
func (f *Function) Containers() int { return f.containers }

// Node is one invoker. Only the Cluster changes it.
type Node struct {
	name       string
	index      int
	online     bool
	capacityMB int64
	busyMB     int64
	idleMB     int64
	containers map[string]*Container
	// first and last are the ends of the list of evictable containers,
	// lowest priority first.
	first, last *Container
}

// Name is the invoker's name.
func (n *Node) Name() string { return n.name }

// Index is the node's place in the cluster, from 0.
func (n *Node) Index() int { return n.index }

// Online reports whether the invoker answers.
func (n *Node) Online() bool { return n.online }

// CapacityMB is the memory for containers, in MiB.
func (n *Node) CapacityMB() int64 { return n.capacityMB }

// BusyMB is the memory of starting and busy containers.
func (n *Node) BusyMB() int64 { return n.busyMB }

// IdleMB is the memory of idle and paused containers.
func (n *Node) IdleMB() int64 { return n.idleMB }

// AvailableMB is the memory that is not in use by active containers: what an
// invocation could get if every idle container made room (thesis 4.3.1).
func (n *Node) AvailableMB() int64 { return n.capacityMB - n.busyMB }

// FreeMB is the memory that no container holds (thesis 4.3.2). It is negative
// for as long as an eviction is under way.
func (n *Node) FreeMB() int64 { return n.capacityMB - n.busyMB - n.idleMB }

// Fits reports whether the node is online and could run a container of that
// size after evictions.
func (n *Node) Fits(memoryMB int64) bool { return n.online && n.AvailableMB() >= memoryMB }

// FirstVictim is the container that would be evicted first, or nil; go on with
// Container.NextVictim.
func (n *Node) FirstVictim() *Container { return n.first }

// Containers calls yield for every container of the node, in no order.
func (n *Node) Containers(yield func(*Container) bool) {
	for _, c := range n.containers {
		if !yield(c) {
			return
		}
	}
}

// Victims returns the containers to evict so that memoryMB fits, in order;
// none if it fits as it is, and ok false if evicting everything is not enough.
func (n *Node) Victims(memoryMB int64) (victims []*Container, ok bool) {
	free := n.FreeMB()
	for c := n.first; free < memoryMB; c = c.next {
		if c == nil {
			return nil, false
		}
		victims = append(victims, c)
		free += c.memoryMB
	}
	return victims, true
}

// KeepAlive orders the idle containers of a node for eviction.
type KeepAlive interface {
	// Priority is asked whenever c becomes idle; the lowest goes first.
	Priority(c *Container, now time.Time) float64
	// Evicted tells that c was chosen to make room.
	Evicted(c *Container)
}

// Cluster is what is known of all invokers and their containers, with two
// indexes (thesis 4.5.2): function to containers, and invoker to containers.
// It is not safe for concurrent use.
type Cluster struct {
	nodes     []*Node
	byName    map[string]*Node
	functions map[string]*Function
	keepAlive KeepAlive
}

// NewCluster returns an empty cluster. Nil for keepAlive is least recently
// used first.
func NewCluster(keepAlive KeepAlive) *Cluster {
	return &Cluster{byName: map[string]*Node{}, functions: map[string]*Function{}, keepAlive: keepAlive}
}

// Nodes returns all nodes in the order they were added, offline ones too. The
// slice belongs to the cluster.
func (c *Cluster) Nodes() []*Node { return c.nodes }

// Node returns the node of that name, or nil.
func (c *Cluster) Node(name string) *Node { return c.byName[name] }

// AddNode adds an online invoker, or brings one of that name online again with
// a new capacity.
func (c *Cluster) AddNode(name string, capacityMB int64) *Node {
	n := c.byName[name]
	if n == nil {
		n = &Node{name: name, index: len(c.nodes), containers: map[string]*Container{}}
		c.nodes = append(c.nodes, n)
		c.byName[name] = n
	}
	n.capacityMB, n.online = capacityMB, true
	return n
}

// SetOnline marks a node as answering or not. Its containers stay known.
func (c *Cluster) SetOnline(n *Node, online bool) { n.online = online }

// Clear removes all containers of a node.
func (c *Cluster) Clear(n *Node) {
	for _, ct := range n.containers {
		c.Remove(ct)
	}
}

// Intern returns the function of that key, which it makes if needed.
func (c *Cluster) Intern(key, name string, memoryMB int64) *Function {
	f := c.functions[key]
	if f == nil {
		f = &Function{Key: key, Name: name, MemoryMB: memoryMB}
		c.functions[key] = f
	}
	return f
}

// Forget drops a function that has no containers. It reports whether it did.
func (c *Cluster) Forget(f *Function) bool {
	if f.containers > 0 {
		return false
	}
	delete(c.functions, f.Key)
	return true
}

// Lookup returns a node's container, or nil.
func (c *Cluster) Lookup(n *Node, id string) *Container { return n.containers[id] }

// Start adds a container in state Starting. The id must be new on the node.
func (c *Cluster) Start(n *Node, f *Function, id string, memoryMB int64, now time.Time) *Container {
	ct := &Container{id: id, function: f, node: n, memoryMB: memoryMB, state: Starting, lastUsed: now, made: now, slot: -1}
	n.containers[id] = ct
	n.busyMB += memoryMB
	f.containers++
	return ct
}

// SetState moves a container to a state other than Gone, and counts a use when
// it becomes busy.
func (c *Cluster) SetState(ct *Container, s State, now time.Time) {
	was := ct.evictable()
	if s == Busy && ct.state != Busy {
		ct.uses++
	}
	ct.state = s
	is := ct.evictable()
	if was && is { // pausing is no use
		return
	}
	ct.lastUsed = now
	switch {
	case was:
		c.unlink(ct)
		ct.node.idleMB -= ct.memoryMB
		ct.node.busyMB += ct.memoryMB
	case is:
		ct.node.busyMB -= ct.memoryMB
		ct.node.idleMB += ct.memoryMB
		c.link(ct, now)
	}
}

// Remove forgets a container, whatever its state.
func (c *Cluster) Remove(ct *Container) {
	if ct.evictable() {
		c.unlink(ct)
		ct.node.idleMB -= ct.memoryMB
	} else {
		ct.node.busyMB -= ct.memoryMB
	}
	ct.function.containers--
	delete(ct.node.containers, ct.id)
	ct.state = Gone
}

// Evict removes an idle container to make room, and tells the KeepAlive.
func (c *Cluster) Evict(ct *Container) {
	if c.keepAlive != nil {
		c.keepAlive.Evicted(ct)
	}
	c.Remove(ct)
}

// link puts an idle container into its node's and its function's list.
func (c *Cluster) link(ct *Container, now time.Time) {
	if c.keepAlive != nil {
		ct.priority = c.keepAlive.Priority(ct, now)
	}
	n := ct.node
	// Newcomers mostly belong at the end: with least recently used, always.
	after := n.last
	for c.keepAlive != nil && after != nil && after.priority > ct.priority {
		after = after.prev
	}
	ct.prev = after
	if after == nil {
		ct.next, n.first = n.first, ct
	} else {
		ct.next, after.next = after.next, ct
	}
	if ct.next == nil {
		n.last = ct
	} else {
		ct.next.prev = ct
	}
	ct.slot = len(ct.function.idle)
	ct.function.idle = append(ct.function.idle, ct)
}

func (c *Cluster) unlink(ct *Container) {
	n := ct.node
	if ct.prev == nil {
		n.first = ct.next
	} else {
		ct.prev.next = ct.next
	}
	if ct.next == nil {
		n.last = ct.prev
	} else {
		ct.next.prev = ct.prev
	}
	ct.next, ct.prev = nil, nil
	idle := ct.function.idle
	last := idle[len(idle)-1]
	idle[ct.slot] = last
	last.slot = ct.slot
	idle[len(idle)-1] = nil
	ct.function.idle = idle[:len(idle)-1]
	ct.slot = -1
}
