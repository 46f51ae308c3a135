package sophon

import (
	"math"
	"slices"
	"time"
)

// KeepAlive orders the idle containers of a node for eviction.
type KeepAlive interface {
	// Priority is asked whenever c becomes idle; the lowest goes first.
	Priority(c *Container, now time.Time) float64
	// Evicted tells that c was chosen to make room.
	Evicted(c *Container)
}

// Cluster is what is known of all invokers and their containers, with two
// indexes (thesis 4.5.2): function to containers, and invoker to containers. A
// third finds the node with the most available memory. It is not safe for
// concurrent use.
type Cluster struct {
	nodes     []*Node
	byName    map[string]*Node
	functions map[string]*Function
	indexes   []int // of functions that were forgotten
	keepAlive KeepAlive
	offers    offers
	// busyMB and capacityMB are the sums over the online nodes.
	busyMB, capacityMB int64
	// version counts the changes to the set of nodes.
	version uint64
	// largest is the largest capacity, or math.MinInt64 if not known.
	largest int64
	// forgot is told of each function that is forgotten; may be nil.
	forgot func(*Function)
}

// NewCluster returns an empty cluster. Nil for keepAlive is least recently
// used first.
func NewCluster(keepAlive KeepAlive) *Cluster {
	return &Cluster{byName: map[string]*Node{}, functions: map[string]*Function{}, keepAlive: keepAlive, largest: math.MinInt64}
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
		n = &Node{name: name, index: len(c.nodes), containers: map[string]*Container{}, groups: map[*Function]*Group{}}
		c.nodes = append(c.nodes, n)
		c.byName[name] = n
		c.version++
	}
	n.capacityMB, n.online = capacityMB, true
	c.largest = math.MinInt64
	c.offer(n)
	return n
}

// RemoveNode forgets a node and its containers. The nodes after it move down
// by one, so that functions may get new homes. No job may be placed there
// (Scheduler.Lose).
func (c *Cluster) RemoveNode(n *Node) {
	if c.byName[n.name] != n {
		return
	}
	c.Clear(n)
	c.SetOnline(n, false)
	delete(c.byName, n.name)
	c.nodes = slices.Delete(c.nodes, n.index, n.index+1)
	c.version++
	c.offers.reset(len(c.nodes))
	for i, m := range c.nodes {
		m.index = i
		for _, g := range m.groups {
			g.nodeIndex = i
			if g.slot >= 0 {
				g.function.warmNodes[g.slot] = int32(i)
			}
		}
		c.offer(m)
	}
}

// SetOnline marks a node as answering or not. Its containers stay known.
func (c *Cluster) SetOnline(n *Node, online bool) {
	n.online = online
	c.largest = math.MinInt64
	c.offer(n)
}

func (c *Cluster) hold(n *Node, held bool) {
	n.held = held
	c.offer(n)
}

// offer brings what is summed up over the nodes up to date with one of them.
func (c *Cluster) offer(n *Node) {
	c.offers.set(n.index, n.offerMB())
	var busy, capacity int64
	if n.online {
		busy, capacity = n.busyMB, n.capacityMB
	}
	c.busyMB += busy - n.countedBusyMB
	c.capacityMB += capacity - n.countedCapacityMB
	n.countedBusyMB, n.countedCapacityMB = busy, capacity
}

// LargestMB is the capacity of the largest online node, in MiB: a function
// that needs more never runs. It is -1 if no node is online.
func (c *Cluster) LargestMB() int64 {
	if c.largest == math.MinInt64 {
		c.largest = -1
		for _, n := range c.nodes {
			if n.online {
				c.largest = max(c.largest, n.capacityMB)
			}
		}
	}
	return c.largest
}

// Clear removes all containers of a node.
func (c *Cluster) Clear(n *Node) {
	for _, ct := range n.sorted() {
		c.Remove(ct)
	}
}

// Intern returns the function of that key, which it makes if needed.
func (c *Cluster) Intern(key, name string, memoryMB int64) *Function {
	f := c.functions[key]
	if f == nil {
		f = &Function{Key: key, Name: name, MemoryMB: memoryMB, hash: HashName(name), index: len(c.functions)}
		if last := len(c.indexes) - 1; last >= 0 {
			f.index = c.indexes[last]
			c.indexes = c.indexes[:last]
		}
		c.functions[key] = f
	}
	f.retired = false
	return f
}

// Functions is how many functions are known.
func (c *Cluster) Functions() int { return len(c.functions) }

// Forget drops a function that has neither containers nor jobs. It reports
// whether it did.
func (c *Cluster) Forget(f *Function) bool {
	if f.containers > 0 || f.jobs > 0 {
		return false
	}
	if c.functions[f.Key] == f {
		delete(c.functions, f.Key)
		c.indexes = append(c.indexes, f.index)
		if c.forgot != nil {
			c.forgot(f)
		}
	}
	return true
}

// Retire forgets a function as soon as it has neither containers nor jobs,
// unless it is interned again before. Whoever deploys many revisions retires
// the old ones, or their records stay for ever.
func (c *Cluster) Retire(f *Function) {
	f.retired = true
	c.Forget(f)
}

// release forgets a retired function that may have become unused.
func (c *Cluster) release(f *Function) {
	if f.retired {
		c.Forget(f)
	}
}

// Lookup returns a node's container, or nil.
func (c *Cluster) Lookup(n *Node, id string) *Container { return n.containers[id] }

// Start adds a container in state Starting. The id must be new on the node.
func (c *Cluster) Start(n *Node, f *Function, id string, memoryMB int64, now time.Time) *Container {
	g := n.groups[f]
	if g == nil {
		g = &Group{function: f, node: n, nodeIndex: n.index, slot: -1}
		n.groups[f] = g
	}
	ct := &Container{id: id, group: g, memoryMB: memoryMB, state: Starting, lastUsed: now, made: now}
	n.containers[id] = ct
	n.busyMB += memoryMB
	g.containers++
	f.containers++
	c.offer(n)
	return ct
}

// SetState moves a container to a state other than Gone, and counts a use when
// it becomes busy.
func (c *Cluster) SetState(ct *Container, s State, now time.Time) {
	was, is := ct.state.evictable(), s.evictable()
	if s == Busy && ct.state != Busy {
		ct.uses++
	}
	ct.state = s
	if was && is { // pausing is no use
		return
	}
	if was {
		ct.rested = now.Sub(ct.lastUsed)
	}
	ct.lastUsed = now
	n := ct.group.node
	switch {
	case was:
		c.unlink(ct)
		n.idle--
		n.idleMB -= ct.memoryMB
		n.busyMB += ct.memoryMB
		c.offer(n)
	case is:
		n.idle++
		n.busyMB -= ct.memoryMB
		n.idleMB += ct.memoryMB
		c.offer(n)
		c.link(ct, now)
	}
}

// Remove forgets a container, whatever its state.
func (c *Cluster) Remove(ct *Container) {
	if ct.state == Gone {
		return
	}
	g := ct.group
	n, f := g.node, g.function
	if ct.state.evictable() {
		c.unlink(ct)
		n.idle--
		n.idleMB -= ct.memoryMB
	} else {
		n.busyMB -= ct.memoryMB
		c.offer(n)
	}
	if g.containers--; g.containers == 0 {
		delete(n.groups, f)
	}
	f.containers--
	delete(n.containers, ct.id)
	ct.state = Gone
	c.release(f)
}

// reserve changes what a job's node keeps for it.
func (c *Cluster) reserve(j *Job, memoryMB int64) {
	if d := memoryMB - j.reservedMB; d != 0 {
		j.reservedMB = memoryMB
		j.node.reservedMB += d
		j.node.busyMB += d
		c.offer(j.node)
	}
}

// Evict removes an idle container to make room, and tells the KeepAlive.
func (c *Cluster) Evict(ct *Container) {
	if c.keepAlive != nil {
		c.keepAlive.Evicted(ct)
	}
	c.Remove(ct)
}

// link puts an idle container into the lists of its node, its group and its
// function.
func (c *Cluster) link(ct *Container, now time.Time) {
	if c.keepAlive != nil {
		ct.priority = c.keepAlive.Priority(ct, now)
	}
	c.linkNode(ct)
	linkGroup(ct)
}

// linkNode puts an idle container into its node's order of eviction.
func (c *Cluster) linkNode(ct *Container) {
	n := ct.group.node
	// Newcomers mostly belong at the end: with least recently used, nearly
	// always.
	after := n.last
	for after != nil && c.evictedBefore(ct, after) {
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
}

func (c *Cluster) evictedBefore(a, b *Container) bool {
	if c.keepAlive != nil {
		return a.priority < b.priority
	}
	return a.lastUsed.Before(b.lastUsed)
}

// linkGroup puts an idle container into its group's order of last use.
func linkGroup(ct *Container) {
	g := ct.group
	var newer *Container
	older := g.newest
	for older != nil && ct.lastUsed.Before(older.lastUsed) {
		newer, older = older, older.older
	}
	ct.older, ct.newer = older, newer
	if older != nil {
		older.newer = ct
	}
	if newer != nil {
		newer.older = ct
	} else {
		g.newest = ct
	}
	if g.slot < 0 {
		f := g.function
		g.slot = len(f.warm)
		f.warm = append(f.warm, g)
		f.warmNodes = append(f.warmNodes, int32(g.nodeIndex))
	}
}

func (c *Cluster) unlink(ct *Container) {
	g := ct.group
	n := g.node
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
	if ct.newer == nil {
		g.newest = ct.older
	} else {
		ct.newer.older = ct.older
	}
	if ct.older != nil {
		ct.older.newer = ct.newer
	}
	ct.next, ct.prev, ct.older, ct.newer = nil, nil, nil, nil

	if g.newest == nil {
		f := g.function
		last := len(f.warm) - 1
		end := f.warm[last]
		f.warm[g.slot], end.slot = end, g.slot
		f.warmNodes[g.slot] = f.warmNodes[last]
		f.warm[last] = nil
		f.warm, f.warmNodes = f.warm[:last], f.warmNodes[:last]
		g.slot = -1
	}
}
