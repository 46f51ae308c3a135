package controller

import (
	"context"
	"math"
	"slices"
	"time"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/sophon"
)

// Provisioned says how far a function's provisioned concurrency is there.
type Provisioned struct {
	Function string `json:"function"`
	// Requested containers are to be kept; Available ones are there and Ready
	// of them idle.
	Requested int `json:"requested"`
	Available int `json:"available"`
	Ready     int `json:"ready"`
	// Problem says why it is not there yet, if that is known.
	Problem string `json:"problem,omitempty"`
}

// provisioning is what is known of the efforts for one function.
type provisioning struct {
	// wait is the time between attempts and until when the next one waits.
	wait    time.Duration
	until   time.Time
	problem string
}

// maxProvisionWait bounds the time between attempts to start containers that
// do not come to stay.
const maxProvisionWait = 30 * time.Second

// PutProvisionedConcurrency has n containers of a function kept ready, spread
// over the invokers. It returns at once; GetProvisionedConcurrency tells how
// far it is.
func (c *Controller) PutProvisionedConcurrency(ctx context.Context, name string, n int) (Provisioned, error) {
	if n < 1 {
		return Provisioned{}, &function.Error{Code: function.InvalidParameter, Field: "provisionedConcurrency",
			Message: "it must be at least 1: to have none, delete it"}
	}
	if err := c.setProvisioned(ctx, name, n); err != nil {
		return Provisioned{}, err
	}
	return c.GetProvisionedConcurrency(ctx, name)
}

func (c *Controller) setProvisioned(ctx context.Context, name string, n int) error {
	_, err := c.registry.change(ctx, name, "", func(f *function.Function) error {
		f.ProvisionedConcurrency = n
		return nil
	})
	return err
}

// DeleteProvisionedConcurrency keeps no containers any longer; those that are
// there stay until they are evicted.
func (c *Controller) DeleteProvisionedConcurrency(ctx context.Context, name string) error {
	return c.setProvisioned(ctx, name, 0)
}

// GetProvisionedConcurrency tells how far a function's provisioned concurrency
// is there. It returns NotFound if the function has none.
func (c *Controller) GetProvisionedConcurrency(ctx context.Context, name string) (Provisioned, error) {
	f, err := c.GetFunction(ctx, name)
	if err != nil {
		return Provisioned{}, err
	}
	if f.ProvisionedConcurrency == 0 {
		return Provisioned{}, function.Errorf(function.NotFound, "No Provisioned Concurrency Config found for this function: %s", name)
	}
	t, err := c.leading()
	if err != nil {
		return Provisioned{}, err
	}
	return t.provisioned(&f), nil
}

// ListProvisionedConcurrency returns all functions that have some, by name.
func (c *Controller) ListProvisionedConcurrency(ctx context.Context) ([]Provisioned, error) {
	if err := c.awaitOpen(ctx); err != nil {
		return nil, err
	}
	t, err := c.leading()
	if err != nil {
		return nil, err
	}
	var out []Provisioned
	for _, e := range c.registry.all() {
		if e.function.ProvisionedConcurrency > 0 {
			out = append(out, t.provisioned(e.function))
		}
	}
	return out, nil
}

func (t *term) provisioned(f *function.Function) Provisioned {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := Provisioned{Function: f.Name, Requested: f.ProvisionedConcurrency}
	if rev := t.functions[f.Key()]; rev != nil {
		p.Ready = len(rev.function.Idle())
		p.Available = min(t.standing(rev.function), p.Requested)
	}
	if pr := t.provision[f.Name]; pr != nil && p.Available < p.Requested {
		p.Problem = pr.problem
	}
	return p
}

// standing counts a function's containers that are past their start.
func (t *term) standing(f *sophon.Function) int {
	n := 0
	for _, node := range t.cluster.Nodes() {
		for c := range node.Containers {
			if c.Function() == f && c.State() != sophon.Starting {
				n++
			}
		}
	}
	return n
}

// wantPlan has plan run soon.
func (t *term) wantPlan() {
	select {
	case t.replan <- struct{}{}:
	default:
	}
}

// plan starts the containers that are missing of provisioned concurrency, and
// does what a policy that looks ahead asks for. It returns when to plan again;
// zero is at the next change or tick.
func (t *term) plan() time.Duration {
	t.mu.Lock()
	defer t.release()
	if t.ended {
		return 0
	}
	now := time.Now()
	for _, e := range t.c.registry.all() {
		if e.function.ProvisionedConcurrency > 0 {
			t.fill(e, now)
		} else {
			delete(t.provision, e.function.Name)
		}
	}
	p, ok := t.c.cfg.Policy.(sophon.Prewarmer)
	if !ok {
		return 0
	}
	actions, next := p.Plan(sophon.ViewOf(t.cluster), now)
	for _, a := range actions {
		switch {
		case a.End != nil:
			if !t.keeps(a.End) {
				t.endContainer(a.End)
			}
		case a.Function != nil && a.Node != nil:
			if rev := t.functions[a.Function.Key]; rev != nil && rev.entry != nil && !rev.retired {
				t.prewarm(rev, a.Node, now)
			}
		}
	}
	if next.IsZero() {
		return 0
	}
	return max(time.Until(next), time.Millisecond)
}

// keeps reports whether a container is needed for provisioned concurrency.
func (t *term) keeps(c *sophon.Container) bool {
	rev := t.functions[c.Function().Key]
	return rev != nil && !rev.retired && rev.entry != nil &&
		rev.entry.function.ProvisionedConcurrency >= c.Function().Containers()
}

// fill starts the containers that a function lacks.
func (t *term) fill(e *entry, now time.Time) {
	rev := t.revisionOf(e)
	pr := t.provision[e.function.Name]
	if pr == nil {
		pr = &provisioning{}
		t.provision[e.function.Name] = pr
	}
	missing := e.function.ProvisionedConcurrency - rev.function.Containers()
	if missing <= 0 {
		pr.problem = ""
		if len(rev.function.Idle()) > 0 {
			pr.wait = 0
		}
		return
	}
	if now.Before(pr.until) {
		return
	}
	for range missing {
		n := t.emptiest(rev.function)
		if n == nil {
			pr.problem = "no invoker has room"
			break
		}
		t.prewarm(rev, n, now)
	}
	// Containers that fail at once must not be started in a loop.
	pr.wait = min(max(2*pr.wait, t.c.cfg.Timing.Tick), maxProvisionWait)
	pr.until = now.Add(pr.wait)
}

// emptiest returns the node that has the fewest containers of a function, and
// most memory free among those. Containers that another function's provisioned
// concurrency needs are not evicted for it.
func (t *term) emptiest(f *sophon.Function) *sophon.Node {
	var best *sophon.Node
	fewest := math.MaxInt
	for _, n := range t.cluster.Nodes() {
		if !n.Fits(f.MemoryMB) || !t.hasRoom(n, f.MemoryMB) {
			continue
		}
		have := 0
		if g := n.Group(f); g != nil {
			have = g.Containers()
		}
		if have < fewest || have == fewest && n.FreeMB() > best.FreeMB() {
			best, fewest = n, have
		}
	}
	return best
}

func (t *term) hasRoom(n *sophon.Node, memoryMB int64) bool {
	victims, ok := n.Victims(memoryMB)
	return ok && !slices.ContainsFunc(victims, t.keeps)
}

// prewarm starts a container in advance.
func (t *term) prewarm(rev *revision, n *sophon.Node, now time.Time) {
	if p, ok := t.sched.Prewarm(rev.function, n, now); ok {
		t.place(p, now)
	}
}

// provisionedLast puts containers of provisioned concurrency at the end of the
// order of eviction.
type provisionedLast struct {
	inner sophon.KeepAlive // nil is least recently used first
	term  *term
}

// provisionedPriority is above all that others give.
const provisionedPriority = 1e300

func (k *provisionedLast) Priority(c *sophon.Container, now time.Time) float64 {
	rev := k.term.functions[c.Function().Key]
	if rev != nil && !rev.retired && rev.entry != nil && rev.entry.function.ProvisionedConcurrency > 0 {
		return provisionedPriority
	}
	if k.inner != nil {
		return k.inner.Priority(c, now)
	}
	return c.LastUsed().Sub(k.term.began).Seconds()
}

func (k *provisionedLast) Evicted(c *sophon.Container) {
	if k.inner != nil {
		k.inner.Evicted(c)
	}
}
