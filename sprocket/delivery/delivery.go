// Package delivery decides which items make a task: it holds Sprocket's
// delivery functions (thesis 2.2.5).
//
// A delivery function stands between the streams that lead to a node and the
// tasks of that node. It is told of every item as it arrives, in any order, and
// answers at once with whatever can be worked on: it is no barrier. It does no
// I/O and starts no goroutine.
//
// The built-in functions are:
//
//   - default: one item, one task.
//   - pair: the items of the same place in every stream, together.
//   - anypair: the n-th arrivals of every stream, together.
//   - frames: tasks of a fixed number of consecutive frames.
//   - split: one frame, one task.
//   - scene: one scene, one task.
//   - all: one task for everything, at the end.
package delivery

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/volley-run/volley/sprocket"
)

// ErrUnknown is wrapped by the errors of New for a name that no delivery
// function has.
var ErrUnknown = errors.New("unknown delivery function")

// Delivery is the input of one task.
type Delivery struct {
	// Seq is the task's place in its stage, from 0 without gaps. It does not
	// depend on the order in which items arrived, except with anypair.
	Seq int64
	// Inputs holds one list for each upstream port, in port order.
	Inputs [][]sprocket.Item
}

// Func decides which items make a task. It belongs to one node of one run and
// is not safe for concurrent use. An error is permanent: the streams are not
// what the function can work on, and it must not be used any more.
type Func interface {
	// Deliver takes one item that arrived at port (from 0) and returns every
	// delivery that it completes. Items of a port may come in any order, each
	// Seq once. The function keeps the item until it is part of a delivery and
	// never changes what its slices point to.
	Deliver(port int, it sprocket.Item) ([]Delivery, error)
	// Close says that port has ended and that all of its count items, Seq 0 to
	// count-1, have been given to Deliver. It returns what that completes: the
	// remainders. Once all ports are closed nothing is held back.
	Close(port int, count int64) ([]Delivery, error)
	// Total is the number of deliveries that there are, known once all ports
	// are closed; -1 before.
	Total() int64
}

// Dropper is a Func that leaves out the items of longer streams when a shorter
// one has ended.
type Dropper interface {
	// Dropped is how many items were left out so far.
	Dropped() int64
}

// Options are what delivery functions can be told.
type Options struct {
	// FramesPerTask is the length of the tasks of "frames", at least 1. Other
	// functions ignore it.
	FramesPerTask int
}

// Constructor makes the delivery function of a node with the given number of
// upstream ports, at least 1. It returns an error for a number of ports or for
// options that the function cannot work with.
type Constructor func(ports int, opts Options) (Func, error)

// Registry holds delivery functions by name. To add one, put it into the map
// that Builtin returned.
type Registry map[string]Constructor

// Builtin returns a new Registry of the functions in this package.
func Builtin() Registry {
	return Registry{
		"default": newDirect,
		"pair":    newPair,
		"anypair": newAnyPair,
		"frames":  newFrames,
		"split":   newSplit,
		"scene":   newScene,
		"all":     newAll,
	}
}

// New makes the delivery function called name. The error wraps ErrUnknown when
// there is none.
func (r Registry) New(name string, ports int, opts Options) (Func, error) {
	construct, ok := r[name]
	if !ok {
		return nil, fmt.Errorf("%w %q; there are %s", ErrUnknown, name, strings.Join(r.Names(), ", "))
	}
	if ports < 1 {
		return nil, fmt.Errorf("delivery function %s: a node needs at least one incoming stream, not %d", name, ports)
	}
	f, err := construct(ports, opts)
	if err != nil {
		return nil, fmt.Errorf("delivery function %s: %w", name, err)
	}
	return f, nil
}

// Names returns the names in r, sorted.
func (r Registry) Names() []string { return slices.Sorted(maps.Keys(r)) }

// New makes the built-in delivery function called name; see Registry.New.
func New(name string, ports int, opts Options) (Func, error) {
	return Builtin().New(name, ports, opts)
}

// Names returns the names of the built-in functions, sorted.
func Names() []string { return Builtin().Names() }

// needOnePort returns an error unless ports is 1.
func needOnePort(ports int) error {
	if ports == 1 {
		return nil
	}
	return fmt.Errorf("it takes one incoming stream, not %d; to join streams use pair (same times) or anypair (any times)", ports)
}
