package invoker

import (
	"fmt"
	"strings"
	"time"

	"github.com/volley-run/volley/sophon"
)

// The names of the eviction orders.
const (
	// LRU evicts the least recently used container first.
	LRU = "lru"
	// GreedyDualName is GreedyDual.
	GreedyDualName = "greedy-dual"
)

// Evictions returns the names that NewKeepAlive knows.
func Evictions() []string { return []string{LRU, GreedyDualName} }

// NewKeepAlive returns an eviction order by its name; empty is LRU.
func NewKeepAlive(name string) (sophon.KeepAlive, error) {
	switch name {
	case "", LRU:
		return nil, nil // what a Cluster does by itself
	case GreedyDualName:
		return NewGreedyDual(), nil
	}
	return nil, fmt.Errorf("eviction order %q is unknown: use one of %s", name, strings.Join(Evictions(), ", "))
}

// unknownCost stands for the cost of a cold start that was not measured yet.
const unknownCost = time.Second

// GreedyDual orders containers as FaasCache does (Fuerst and Sharma, ASPLOS
// 2021): by clock + frequency * cost / size, where frequency counts the
// invocations of the function on this node, cost is its measured cold start,
// size its memory, and the clock is the priority of the last container that was
// evicted, so that what is no longer used ages. It is not safe for concurrent use.
type GreedyDual struct {
	clock     float64
	functions map[string]*functionCost
}

// functionCost is what GreedyDual knows of one function.
type functionCost struct {
	uses int
	cold time.Duration // moving average; 0 if unknown
}

// NewGreedyDual returns an order that has seen nothing.
func NewGreedyDual() *GreedyDual { return &GreedyDual{functions: map[string]*functionCost{}} }

var (
	_ sophon.KeepAlive = (*GreedyDual)(nil)
	_ learner          = (*GreedyDual)(nil)
)

func (g *GreedyDual) function(key string) *functionCost {
	f := g.functions[key]
	if f == nil {
		f = &functionCost{}
		g.functions[key] = f
	}
	return f
}

// Priority implements sophon.KeepAlive, and counts the use that has just ended.
func (g *GreedyDual) Priority(c *sophon.Container, _ time.Time) float64 {
	f := g.function(c.Function().Key)
	if c.Uses() > 0 {
		f.uses++
	}
	cost := f.cold
	if cost == 0 {
		cost = unknownCost
	}
	return g.clock + float64(max(1, f.uses))*cost.Seconds()/float64(max(1, c.MemoryMB()))
}

// Evicted implements sophon.KeepAlive.
func (g *GreedyDual) Evicted(c *sophon.Container) { g.clock = max(g.clock, c.Priority()) }

// ColdStarted takes in how long a cold start took.
func (g *GreedyDual) ColdStarted(f *sophon.Function, took time.Duration) {
	c := g.function(f.Key)
	if c.cold == 0 {
		c.cold = took
		return
	}
	c.cold += (took - c.cold) / 4
}

// Forgotten drops what is known of a function that has no containers left, as
// FaasCache does.
func (g *GreedyDual) Forgotten(f *sophon.Function) { delete(g.functions, f.Key) }

// learner is a sophon.KeepAlive that a Pool tells more than the order needs.
type learner interface {
	// ColdStarted tells how long a cold start of the function took.
	ColdStarted(f *sophon.Function, took time.Duration)
	// Forgotten tells that the function's last container is gone.
	Forgotten(f *sophon.Function)
}
