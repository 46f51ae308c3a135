// Package policy holds the scheduling policies: pure choices of a node or
// container for an invocation (sophon.Policy), to be compared and plugged into
// the live controller and the simulator alike.
//
// The node-grained policies (thesis 4.3) know the memory in use on each node,
// as OpenWhisk's scheduler does. The container-grained ones (thesis 4.4) take a
// warm container wherever there is one, and differ in which they take and in
// where they start one cold. The others go beyond the thesis.
package policy

import (
	"fmt"
	"math/rand/v2"
	"strings"

	"github.com/volley-run/volley/sophon"
)

// Default is the name of the policy to use where nobody chooses another.
const Default = "ma-mc"

// The defaults of Options, all from the thesis.
const (
	// DefaultAlpha weighs distance against load (thesis 4.3.1).
	DefaultAlpha = 0.3
	// DefaultLambda is the decay of an idle container's worth, per second
	// (thesis 4.4.2).
	DefaultLambda = 0.3
	// DefaultSample is how many nodes to sample at scale (thesis 4.4.3). It
	// is not what Options.Sample is if left out.
	DefaultSample = 10
)

// Options are the parameters of the policies. Each policy uses those that
// concern it. The zero value is the thesis's parameters without sampling.
type Options struct {
	// Seed starts the random source of the policies that have one.
	Seed uint64
	// Sample is how many nodes that fit a decision looks at; 0 is all.
	Sample int
	// Alpha weighs distance from home (1) against load (0) in
	// sticky-max-available. 0 is DefaultAlpha; a negative number is 0.
	Alpha float64
	// Lambda is the decay, per second, of the chance that an idle container is
	// needed again, for min-cost. 0 is DefaultLambda; a negative number is 0.
	Lambda float64
}

func (o *Options) check() error {
	if o.Sample < 0 {
		return fmt.Errorf("sample of %d nodes: must be 0 (all) or more", o.Sample)
	}
	if o.Alpha > 1 || o.Alpha != o.Alpha {
		return fmt.Errorf("alpha of %v: must be at most 1", o.Alpha)
	}
	if o.Lambda != o.Lambda {
		return fmt.Errorf("lambda of %v: must be a number", o.Lambda)
	}
	o.Alpha = withDefault(o.Alpha, DefaultAlpha)
	o.Lambda = withDefault(o.Lambda, DefaultLambda)
	return nil
}

func withDefault(v, otherwise float64) float64 {
	if v == 0 {
		return otherwise
	}
	return max(v, 0)
}

// entry is one policy of the registry.
type entry struct {
	name  string
	doc   string
	build func(o Options) sophon.Policy
}

// registry lists the policies, in the order that tables show them.
func registry() []entry {
	return []entry{
		{"random", "node-grained: any node that fits",
			func(o Options) sophon.Policy { return newRandom(o) }},
		{"max-available", "node-grained: the node with the most available memory",
			func(o Options) sophon.Policy { return newMaxAvailable(o) }},
		{"sticky-random", "node-grained: the first node that fits, from the function's home on (OpenWhisk)",
			func(Options) sophon.Policy { return &stickyRandom{} }},
		{"sticky-max-available", "node-grained: the least alpha x distance from home + (1 - alpha) x load",
			func(o Options) sophon.Policy { return newStickyMaxAvailable(o) }},
		{"ma-ma", "container-grained: warm and cold starts where the most memory is available",
			func(o Options) sophon.Policy { return newWarmFirst("ma-ma", o, warmMaxAvailable, coldMaxAvailable) }},
		{"ma-mc", "container-grained: warm starts where the most memory is available, cold ones where evictions cost least",
			func(o Options) sophon.Policy { return newWarmFirst("ma-mc", o, warmMaxAvailable, coldMinCost) }},
		{"sr-ma", "container-grained: warm starts nearest to the function's home, cold ones where the most memory is available",
			func(o Options) sophon.Policy { return newStickyWarm("sr-ma", o, coldMaxAvailable) }},
		{"sr-mc", "container-grained: warm starts nearest to the function's home, cold ones where evictions cost least",
			func(o Options) sophon.Policy { return newStickyWarm("sr-mc", o, coldMinCost) }},
		{"hiku", "container-grained: pull; warm starts on the node with the fewest running, cold ones too (Akbari and Hauswirth)",
			func(o Options) sophon.Policy { return newWarmFirst("hiku", o, warmLeastActive, coldLeastActive) }},
		{"ch-rlu", "node-grained: consistent hashing with bounded load, popular functions spill over sooner (Fuerst and Sharma)",
			func(o Options) sophon.Policy { return newCHRLU(o) }},
		{"hybrid", "container-grained: ma-mc, and containers end and start ahead by a histogram of idle times (Shahrad et al.)",
			func(o Options) sophon.Policy { return newHybrid(o) }},
		{"weighted", "container-grained: ma-mc, and idle containers weigh by cold start, time to reuse and memory",
			func(o Options) sophon.Policy { return newWeighted("weighted", o, warmMaxAvailable) }},
		{"mru-weighted", "container-grained: warm starts in the container used last, cold ones as weighted",
			func(o Options) sophon.Policy { return newWeighted("mru-weighted", o, warmNewest) }},
	}
}

// Names returns the names of all policies, in the order that tables show them.
func Names() []string {
	var names []string
	for _, e := range registry() {
		names = append(names, e.name)
	}
	return names
}

// Describe returns what a policy does in half a sentence; empty if there is
// none of that name.
func Describe(name string) string {
	for _, e := range registry() {
		if e.name == name {
			return e.doc
		}
	}
	return ""
}

// New returns a new policy of that name. One policy serves one Scheduler.
func New(name string, o Options) (sophon.Policy, error) {
	for _, e := range registry() {
		if e.name == name {
			if err := o.check(); err != nil {
				return nil, fmt.Errorf("make policy %s: %w", name, err)
			}
			return e.build(o), nil
		}
	}
	return nil, fmt.Errorf("there is no policy %q; there are %s", name, strings.Join(Names(), ", "))
}

// source returns the random source of a policy. The stream keeps policies of
// the same seed apart.
func source(o Options, stream uint64) *rand.Rand {
	return rand.New(rand.NewPCG(o.Seed, stream))
}
