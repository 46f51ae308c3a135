package controller

import (
	"context"
	"encoding/json"
	"errors"

	"github.com/google/uuid"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/sophon/bus"
)

// DefaultAsync is what functions have that say nothing about asynchronous
// invocations. It is constant.
var DefaultAsync = function.AsyncConfig{MaxRetries: function.MaxAsyncRetries, MaxAge: function.MaxAsyncAge}

// CreateFunction registers a function with its code, and returns it with
// revision, times, defaults and code filled in. Errors are *function.Error:
// Conflict if the name is taken, InvalidParameter, TooLarge, InvalidCode,
// InvalidImage or Unavailable.
func (c *Controller) CreateFunction(ctx context.Context, f function.Function, p Package) (function.Function, error) {
	if err := c.awaitOpen(ctx); err != nil {
		return function.Function{}, err
	}
	f = clone(&f)
	f.SetDefaults()
	if f.Async.Modified.IsZero() {
		f.Async = DefaultAsync
	}
	f.Revision = uuid.NewString()
	f.Created = c.cfg.WallClock().UTC()
	f.Modified = f.Created
	if err := f.Validate(); err != nil {
		return function.Function{}, err
	}
	if err := c.checkReserved(f.Name, f.ReservedConcurrency); err != nil {
		return function.Function{}, err
	}
	if _, err := c.registry.lookup(f.Name); err == nil {
		return function.Function{}, taken(f.Name)
	}
	release, err := c.registry.store(ctx, &f, p)
	if err != nil {
		return function.Function{}, err
	}
	defer release()
	value, err := json.Marshal(&f)
	if err != nil {
		return function.Function{}, function.Errorf(function.Internal, "encode function %s: %v", f.Name, err)
	}
	ctx, cancel := onBus(ctx)
	defer cancel()
	rev, err := c.registry.kv.Create(ctx, f.Name, value)
	if errors.Is(err, bus.ErrExists) {
		return function.Function{}, taken(f.Name)
	}
	if err != nil {
		return function.Function{}, busError("write function "+f.Name, err)
	}
	c.registry.take(bus.Entry{Key: f.Name, Value: value, Revision: rev})
	c.log.Info("created function", "function", f.Name, "revision", f.Revision, "sha256", f.Code.SHA256)
	return f, nil
}

func taken(name string) *function.Error {
	return function.Errorf(function.Conflict, "Function already exist: %s: choose another name, or update it", name)
}

// UpdateCode gives a function new code. With revision not empty the function
// must still have it, else PreconditionFailed. Containers of the old code end
// as they become idle.
func (c *Controller) UpdateCode(ctx context.Context, name, revision string, p Package) (function.Function, error) {
	if err := c.awaitOpen(ctx); err != nil {
		return function.Function{}, err
	}
	e, err := c.registry.lookup(name)
	if err != nil {
		return function.Function{}, err
	}
	with := clone(e.function)
	release, err := c.registry.store(ctx, &with, p)
	if err != nil {
		return function.Function{}, err
	}
	var old function.Code
	f, err := c.registry.revise(ctx, name, revision, func(f *function.Function) error {
		if f.PackageType != with.PackageType {
			return function.Errorf(function.Conflict, "the package type of function %s was changed meanwhile: try again", name)
		}
		old, f.Code = f.Code, with.Code
		return nil
	})
	release()
	if err != nil {
		return function.Function{}, err
	}
	c.registry.dropCode(ctx, old)
	c.log.Info("updated code", "function", name, "revision", f.Revision, "sha256", f.Code.SHA256)
	return f, nil
}

// UpdateConfiguration changes what change alters: anything but name, package
// type, code and revision. change may be called several times. With revision
// not empty the function must still have it, else PreconditionFailed.
// Containers of the old configuration end as they become idle.
func (c *Controller) UpdateConfiguration(ctx context.Context, name, revision string, change func(f *function.Function)) (function.Function, error) {
	return c.registry.revise(ctx, name, revision, func(f *function.Function) error {
		was := *f
		change(f)
		f.PackageType, f.Code, f.Created = was.PackageType, was.Code, was.Created
		f.ReservedConcurrency, f.ProvisionedConcurrency, f.Async = was.ReservedConcurrency, was.ProvisionedConcurrency, was.Async
		f.SetDefaults()
		return nil
	})
}

// SetTags replaces a function's tags, without making a new revision.
func (c *Controller) SetTags(ctx context.Context, name string, change func(tags map[string]string)) error {
	_, err := c.registry.change(ctx, name, "", func(f *function.Function) error {
		if f.Tags == nil {
			f.Tags = map[string]string{}
		}
		change(f.Tags)
		return nil
	})
	return err
}

// DeleteFunction removes a function and the code that no other one uses. What
// runs goes on; its containers end as they become idle.
func (c *Controller) DeleteFunction(ctx context.Context, name string) error {
	if err := c.awaitOpen(ctx); err != nil {
		return err
	}
	ctx, cancel := onBus(ctx)
	defer cancel()
	have, err := c.registry.kv.Get(ctx, name)
	if errors.Is(err, bus.ErrNotFound) {
		return notFound(name)
	}
	if err != nil {
		return busError("read function "+name, err)
	}
	if err := c.registry.kv.Delete(ctx, name); err != nil {
		return busError("delete function "+name, err)
	}
	c.registry.forget(name, have.Revision)
	var f function.Function
	if err := json.Unmarshal(have.Value, &f); err == nil {
		c.registry.dropCode(ctx, f.Code)
	}
	c.log.Info("deleted function", "function", name)
	return nil
}

// GetFunction returns a function, or NotFound. Its maps and slices must not be
// changed.
func (c *Controller) GetFunction(ctx context.Context, name string) (function.Function, error) {
	if err := c.awaitOpen(ctx); err != nil {
		return function.Function{}, err
	}
	e, err := c.registry.lookup(name)
	if err != nil {
		return function.Function{}, err
	}
	return *e.function, nil
}

// ListFunctions returns functions by name: at most limit (0: all) of those
// after marker. next is the marker for the rest, empty at the end.
func (c *Controller) ListFunctions(ctx context.Context, marker string, limit int) (functions []function.Function, next string, err error) {
	if err := c.awaitOpen(ctx); err != nil {
		return nil, "", err
	}
	for _, e := range c.registry.all() {
		if e.function.Name <= marker {
			continue
		}
		if limit > 0 && len(functions) == limit {
			return functions, functions[limit-1].Name, nil
		}
		functions = append(functions, *e.function)
	}
	return functions, "", nil
}

// Concurrency returns how many invocations may be under way at once, and how
// many of these no function has reserved.
func (c *Controller) Concurrency() (total, unreserved int) {
	total = c.cfg.Limits.Concurrency
	return total, total - c.registry.reserved("")
}

// checkReserved refuses a reservation that would take more than there is.
func (c *Controller) checkReserved(name string, n *int) error {
	if n == nil {
		return nil
	}
	left := c.cfg.Limits.Concurrency - c.registry.reserved(name)
	if *n > left {
		return &function.Error{Code: function.InvalidParameter, Field: "reservedConcurrency",
			Message: function.Errorf("", "%d is more than the %d that are not reserved: use less", *n, left).Message}
	}
	return nil
}

// PutReservedConcurrency sets aside n invocations at once for a function, and
// allows it no more.
func (c *Controller) PutReservedConcurrency(ctx context.Context, name string, n int) error {
	if err := c.checkReserved(name, &n); err != nil {
		return err
	}
	_, err := c.registry.change(ctx, name, "", func(f *function.Function) error {
		f.ReservedConcurrency = &n
		return nil
	})
	return err
}

// GetReservedConcurrency returns the function's bound, nil if it has none.
func (c *Controller) GetReservedConcurrency(ctx context.Context, name string) (*int, error) {
	f, err := c.GetFunction(ctx, name)
	return f.ReservedConcurrency, err
}

// DeleteReservedConcurrency takes the function's bound away.
func (c *Controller) DeleteReservedConcurrency(ctx context.Context, name string) error {
	_, err := c.registry.change(ctx, name, "", func(f *function.Function) error {
		f.ReservedConcurrency = nil
		return nil
	})
	return err
}

// PutAsyncConfig sets what becomes of the function's asynchronous invocations.
func (c *Controller) PutAsyncConfig(ctx context.Context, name string, a function.AsyncConfig) (function.AsyncConfig, error) {
	f, err := c.registry.change(ctx, name, "", func(f *function.Function) error {
		f.Async = a
		if f.Async.MaxAge == 0 {
			f.Async.MaxAge = function.MaxAsyncAge
		}
		f.Async.Modified = c.cfg.WallClock().UTC()
		return nil
	})
	return f.Async, err
}

// GetAsyncConfig returns what was set by PutAsyncConfig, or NotFound.
func (c *Controller) GetAsyncConfig(ctx context.Context, name string) (function.AsyncConfig, error) {
	f, err := c.GetFunction(ctx, name)
	if err != nil {
		return function.AsyncConfig{}, err
	}
	if f.Async.Modified.IsZero() {
		return function.AsyncConfig{}, function.Errorf(function.NotFound,
			"The function %s doesn't have an EventInvokeConfig", function.ARN(name))
	}
	return f.Async, nil
}

// DeleteAsyncConfig returns to the defaults.
func (c *Controller) DeleteAsyncConfig(ctx context.Context, name string) error {
	_, err := c.registry.change(ctx, name, "", func(f *function.Function) error {
		f.Async = DefaultAsync
		return nil
	})
	return err
}
