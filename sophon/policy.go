package sophon

import (
	"math"
	"time"
)

// View is the cluster as a policy sees it: everything can be read, nothing
// changed. It is valid during one call.
type View struct{ cluster *Cluster }

// ViewOf returns the read-only side of a cluster.
func ViewOf(c *Cluster) View { return View{c} }

// Nodes returns all nodes, offline ones too, by index. The slice must not be changed.
func (v View) Nodes() []*Node { return v.cluster.nodes }

// Version grows whenever a node is added or removed, so that a policy knows
// when to renew what it derived from the set of nodes.
func (v View) Version() uint64 { return v.cluster.version }

// MostAvailable returns the node with the most available memory of those that
// take work, the lowest index among equals, or nil. It takes constant time
// where nothing fits and logarithmic time else.
func (v View) MostAvailable() *Node {
	i := v.cluster.offers.leader()
	if i < 0 {
		return nil
	}
	return v.cluster.nodes[i]
}

// Fits reports in constant time whether any node fits (Node.Fits).
func (v View) Fits(memoryMB int64) bool {
	most := v.cluster.offers.most()
	return most != math.MinInt64 && most >= memoryMB
}

// OfferMB returns what the node of that index could give, in MiB: its available
// memory, or the smallest number if it takes no work. It is faster than to look
// at the node.
func (v View) OfferMB(index int) int64 { return v.cluster.offers.of(index) }

// Load returns the memory of the starting and busy containers on all online
// nodes, and the capacity of these nodes, in MiB.
func (v View) Load() (busyMB, capacityMB int64) { return v.cluster.busyMB, v.cluster.capacityMB }

// Request is what a policy decides about.
type Request struct {
	Function *Function
	Now      time.Time
}

// Decision is a policy's choice.
type Decision struct {
	// Node is where the invocation runs; nil if it fits nowhere, and then it
	// waits (there is no forced placement).
	Node *Node
	// Container is the idle container on Node to use. Nil from a
	// container-grained policy is a cold start; from a node-grained one it
	// leaves the choice to the invoker.
	Container *Container
	// Victims are the containers on Node to evict for a cold start. Nil lets
	// the Scheduler take Node.Victims.
	Victims []*Container
}

// Policy chooses where invocations run. Choose is a function of the view, the
// request, the policy's seeded random source and what it has observed; it does
// no I/O and has no clock. A Policy is used by one goroutine at a time.
type Policy interface {
	// Name is the name on the command line.
	Name() string
	// Grain tells whether it looks at containers.
	Grain() Grain
	// Choose decides. It must not return a node that does not fit
	// (Node.Fits), nor a container that is not idle.
	Choose(v View, r Request) Decision
}

// Grain is what a policy looks at.
type Grain uint8

// The grains (thesis 4.1.3 and 4.4).
const (
	// NodeGrained policies know the memory in use on each node.
	NodeGrained Grain = iota
	// ContainerGrained policies know every container.
	ContainerGrained
)

// Observer is a Policy that learns. The Scheduler tells it what happens, after
// it has happened.
type Observer interface {
	// Arrived tells of each invocation, once, before it is placed.
	Arrived(f *Function, now time.Time)
	// Became tells that a container has changed to a state; Gone comes last.
	Became(c *Container, s State, now time.Time)
	// ColdStarted tells how long a cold start of the function took.
	ColdStarted(f *Function, took time.Duration, now time.Time)
}

// Restarter is a Policy that keeps something of the cluster it chooses in.
// NewScheduler tells it to forget that: there is another cluster, as after a
// change of the leading controller.
type Restarter interface {
	Restart()
}

// Forgetter is a Policy that is told when a function is forgotten
// (Cluster.Forget), so that it can drop what it has learnt of it.
type Forgetter interface {
	Forgot(f *Function)
}

// Prewarmer is a Policy that starts and ends containers ahead of need.
type Prewarmer interface {
	// Plan returns what to do now, and when to ask again (zero: no need
	// before the next change).
	Plan(v View, now time.Time) (actions []Prewarm, next time.Time)
}

// Prewarm is one action of a Prewarmer.
type Prewarm struct {
	// Function gets a new idle container on Node, or
	Function *Function
	Node     *Node
	// End, an idle container, is ended.
	End *Container
}
