package sophon

import (
	"maps"
	"math"
	"slices"
)

// Node is one invoker. Only the Cluster changes it.
type Node struct {
	name   string
	index  int
	online bool
	// held keeps a node free of new work: the Scheduler saves it for a job.
	held       bool
	capacityMB int64
	busyMB     int64
	idleMB     int64
	// reservedMB is the part of busyMB that is for jobs of which it is not yet
	// known in which container they run.
	reservedMB int64
	// countedBusyMB and countedCapacityMB are what the cluster's sums hold of
	// this node.
	countedBusyMB, countedCapacityMB int64
	// idle is how many containers are idle or paused.
	idle       int
	containers map[string]*Container
	groups     map[*Function]*Group
	// first and last are the ends of the list of evictable containers, the
	// next victim first.
	first, last *Container
	// jobs are the jobs that a Scheduler has placed here.
	jobs jobList
	// orphans are containers whose job has ended before they were reported;
	// most of them will be in the same report.
	orphans []*Container
}

// Name is the invoker's name.
func (n *Node) Name() string { return n.name }

// Index is the node's place in the cluster, from 0.
func (n *Node) Index() int { return n.index }

// Online reports whether the invoker answers.
func (n *Node) Online() bool { return n.online }

// CapacityMB is the memory for containers, in MiB.
func (n *Node) CapacityMB() int64 { return n.capacityMB }

// BusyMB is the memory of starting and busy containers, and ReservedMB.
func (n *Node) BusyMB() int64 { return n.busyMB }

// ReservedMB is the memory for jobs that a node-grained policy has placed, and
// of which the invoker has not told yet in which container they run.
func (n *Node) ReservedMB() int64 { return n.reservedMB }

// IdleMB is the memory of idle and paused containers.
func (n *Node) IdleMB() int64 { return n.idleMB }

// Active is how many containers are starting or busy.
func (n *Node) Active() int { return len(n.containers) - n.idle }

// AvailableMB is the memory that is not in use by active containers: what an
// invocation could get if every idle container made room (thesis 4.3.1).
func (n *Node) AvailableMB() int64 { return n.capacityMB - n.busyMB }

// FreeMB is the memory that no container holds (thesis 4.3.2). It is negative
// while an invoker makes room that the cluster has not heard of.
func (n *Node) FreeMB() int64 { return n.capacityMB - n.busyMB - n.idleMB }

// Fits reports whether the node takes work and could run a container of that
// size after evictions. A node that is offline, or that the Scheduler saves
// for a large job, takes none.
func (n *Node) Fits(memoryMB int64) bool { return n.open() && n.AvailableMB() >= memoryMB }

func (n *Node) open() bool { return n.online && !n.held }

// offerMB is what the node could give now, for the cluster's index.
func (n *Node) offerMB() int64 {
	if !n.open() {
		return math.MinInt64
	}
	return n.AvailableMB()
}

// FirstVictim is the container that would be evicted first, or nil; go on with
// Container.NextVictim.
func (n *Node) FirstVictim() *Container { return n.first }

// Group returns the function's containers on this node, or nil if there are
// none.
func (n *Node) Group(f *Function) *Group { return n.groups[f] }

// Containers calls yield for every container of the node, in no order.
func (n *Node) Containers(yield func(*Container) bool) {
	for _, c := range n.containers {
		if !yield(c) {
			return
		}
	}
}

// sorted returns the containers by id, for changes that touch all of them in
// an order that does not depend on chance.
func (n *Node) sorted() []*Container {
	out := make([]*Container, 0, len(n.containers))
	for _, id := range slices.Sorted(maps.Keys(n.containers)) {
		out = append(out, n.containers[id])
	}
	return out
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
