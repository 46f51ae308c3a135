package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/google/uuid"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/sophon/bus"
	"github.com/volley-run/volley/sophon/wire"
)

// registry holds all functions: the bus keeps them, and a watch keeps a copy
// here. Changes are made on the bus with the revision that was read, and
// repeated where somebody else was faster.
type registry struct {
	c       *Controller
	kv      bus.KV
	objects bus.Objects

	// code keeps packages from being removed between their upload and the
	// moment that a function names them: uploads share it, removal excludes.
	code sync.RWMutex

	mu      sync.RWMutex
	entries map[string]*entry
}

// entry is one function at one revision in the bucket. It never changes.
type entry struct {
	function *function.Function // nil once deleted
	key      string
	json     []byte
	revision uint64
}

func newRegistry(c *Controller) *registry {
	return &registry{c: c, entries: map[string]*entry{}}
}

// open reads all functions and follows their changes until stop is called.
func (r *registry) open(ctx context.Context, b bus.Bus) (stop func(), err error) {
	if r.objects, err = b.Objects(ctx, wire.CodeBucket); err != nil {
		return nil, fmt.Errorf("open objects %s: %w", wire.CodeBucket, err)
	}
	if r.kv, err = b.KV(ctx, wire.FunctionsBucket, bus.KVOptions{}); err != nil {
		return nil, fmt.Errorf("open bucket %s: %w", wire.FunctionsBucket, err)
	}
	ready := make(chan struct{})
	stop, err = r.kv.Watch(ctx, r.take, func() { close(ready) })
	if err != nil {
		return nil, fmt.Errorf("watch bucket %s: %w", wire.FunctionsBucket, err)
	}
	select {
	case <-ready:
		return stop, nil
	case <-ctx.Done():
		stop()
		return nil, ctx.Err()
	}
}

// take applies what the watch tells, or what this controller wrote itself.
func (r *registry) take(e bus.Entry) {
	n := &entry{revision: e.Revision, json: e.Value}
	if !e.Deleted {
		var f function.Function
		if err := json.Unmarshal(e.Value, &f); err != nil {
			r.c.log.Error("the registry holds a function that cannot be read", "function", e.Key, "error", err)
			return
		}
		n.function, n.key = &f, f.Key()
	}
	r.mu.Lock()
	old := r.entries[e.Key]
	if old != nil && old.revision >= n.revision {
		r.mu.Unlock()
		return
	}
	r.entries[e.Key] = n
	r.mu.Unlock()
	if t := r.c.reporting.Load(); t != nil {
		t.functionChanged(e.Key, n)
	}
}

// lookup returns a function's entry, or an *function.Error with NotFound.
func (r *registry) lookup(name string) (*entry, error) {
	r.mu.RLock()
	e := r.entries[name]
	r.mu.RUnlock()
	if e == nil || e.function == nil {
		return nil, notFound(name)
	}
	return e, nil
}

func notFound(name string) *function.Error {
	return function.Errorf(function.NotFound, "Function not found: %s", function.ARN(name))
}

// all returns the present functions by name.
func (r *registry) all() []*entry {
	r.mu.RLock()
	out := make([]*entry, 0, len(r.entries))
	for _, e := range r.entries {
		if e.function != nil {
			out = append(out, e)
		}
	}
	r.mu.RUnlock()
	slices.SortFunc(out, func(a, b *entry) int {
		if a.function.Name < b.function.Name {
			return -1
		}
		return 1
	})
	return out
}

// forget marks a function as deleted that was deleted at or after a revision,
// ahead of the watch.
func (r *registry) forget(name string, revision uint64) {
	n := &entry{revision: revision}
	r.mu.Lock()
	old := r.entries[name]
	if old == nil || old.revision > revision {
		r.mu.Unlock()
		return
	}
	r.entries[name] = n
	r.mu.Unlock()
	if t := r.c.reporting.Load(); t != nil {
		t.functionChanged(name, n)
	}
}

// reserved is the concurrency that all functions but one have reserved.
func (r *registry) reserved(except string) int {
	r.mu.RLock()
	defer r.mu.RUnlock()
	sum := 0
	for name, e := range r.entries {
		if e.function != nil && e.function.ReservedConcurrency != nil && name != except {
			sum += *e.function.ReservedConcurrency
		}
	}
	return sum
}

// maxCollisions is how often a change is tried again that others overtook.
const maxCollisions = 10

// change applies a change to a function on the bus. With revision not empty,
// the function must still have it. change gets a copy that it may alter.
func (r *registry) change(ctx context.Context, name, revision string, change func(f *function.Function) error) (function.Function, error) {
	if err := r.c.awaitOpen(ctx); err != nil {
		return function.Function{}, err
	}
	ctx, cancel := onBus(ctx)
	defer cancel()
	for range maxCollisions {
		have, err := r.kv.Get(ctx, name)
		if errors.Is(err, bus.ErrNotFound) {
			return function.Function{}, notFound(name)
		}
		if err != nil {
			return function.Function{}, busError("read function "+name, err)
		}
		var f function.Function
		if err := json.Unmarshal(have.Value, &f); err != nil {
			return function.Function{}, function.Errorf(function.Internal, "read function %s: %v", name, err)
		}
		if revision != "" && revision != f.Revision {
			return function.Function{}, function.Errorf(function.PreconditionFailed,
				"the function's revision is %s and not %s: get the function again", f.Revision, revision)
		}
		if err := change(&f); err != nil {
			return function.Function{}, err
		}
		if err := f.Validate(); err != nil {
			return function.Function{}, err
		}
		value, err := json.Marshal(&f)
		if err != nil {
			return function.Function{}, function.Errorf(function.Internal, "encode function %s: %v", name, err)
		}
		rev, err := r.kv.Update(ctx, name, value, have.Revision)
		if errors.Is(err, bus.ErrExists) || errors.Is(err, bus.ErrNotFound) {
			continue
		}
		if err != nil {
			return function.Function{}, busError("write function "+name, err)
		}
		r.take(bus.Entry{Key: name, Value: value, Revision: rev})
		return f, nil
	}
	return function.Function{}, function.Errorf(function.Conflict, "others keep changing function %s: try again", name)
}

// revise is change for what makes a new revision of the function, so that its
// containers are replaced.
func (r *registry) revise(ctx context.Context, name, revision string, change func(f *function.Function) error) (function.Function, error) {
	return r.change(ctx, name, revision, func(f *function.Function) error {
		if err := change(f); err != nil {
			return err
		}
		f.Name = name
		f.Revision = uuid.NewString()
		f.Modified = r.c.cfg.WallClock().UTC()
		return nil
	})
}

// busError says that the bus did not do what was asked.
func busError(what string, err error) *function.Error {
	if errors.Is(err, bus.ErrTooLarge) {
		return function.Errorf(function.TooLarge, "%s: %v", what, err)
	}
	return function.Errorf(function.Unavailable, "%s: %v: try again", what, err)
}

// clone returns a copy that shares nothing that can be changed.
func clone(f *function.Function) function.Function {
	g := *f
	g.Environment = maps.Clone(f.Environment)
	g.Tags = maps.Clone(f.Tags)
	g.ImageConfig.EntryPoint = slices.Clone(f.ImageConfig.EntryPoint)
	g.ImageConfig.Command = slices.Clone(f.ImageConfig.Command)
	if f.ReservedConcurrency != nil {
		n := *f.ReservedConcurrency
		g.ReservedConcurrency = &n
	}
	return g
}
