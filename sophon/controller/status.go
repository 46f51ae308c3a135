package controller

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/sophon"
	"github.com/volley-run/volley/sophon/bus"
	"github.com/volley-run/volley/sophon/wire"
)

// newRequestID makes a request id.
func newRequestID() string { return uuid.NewString() }

// Container is one container, as `volley ps` shows it.
type Container struct {
	ID       string `json:"id"`
	Function string `json:"function"`
	Revision string `json:"revision"`
	Invoker  string `json:"invoker"`
	State    string `json:"state"`
	// MemoryMB is what is reserved for it, RSSBytes what it used when its
	// invoker last sent a full report, 0 if unknown.
	MemoryMB int64 `json:"memoryMB"`
	RSSBytes int64 `json:"rssBytes,omitempty"`
	// Age is the time since it was made, Unused since its last use.
	Age    time.Duration `json:"age"`
	Unused time.Duration `json:"unused"`
	// Uses is how many invocations it was given.
	Uses int `json:"uses"`
	// Request is the request that it starts or runs for, if any.
	Request string `json:"request,omitempty"`
}

// Node is one invoker, as `volley nodes` shows it.
type Node struct {
	Name       string `json:"name"`
	Online     bool   `json:"online"`
	Leaving    bool   `json:"leaving,omitempty"`
	CapacityMB int64  `json:"capacityMB"`
	BusyMB     int64  `json:"busyMB"`
	IdleMB     int64  `json:"idleMB"`
	Containers int    `json:"containers"`
	// Silent is the time since its last report.
	Silent    time.Duration `json:"silent"`
	Driver    string        `json:"driver"`
	Isolation string        `json:"isolation"`
	// Stale counts the decisions that did not find what they expected.
	Stale uint64 `json:"stale"`
}

// FunctionStats is what a function did since this controller began to lead.
type FunctionStats struct {
	Name string `json:"name"`
	// Starting to Paused count containers by state.
	Starting int `json:"starting"`
	Busy     int `json:"busy"`
	Idle     int `json:"idle"`
	Paused   int `json:"paused"`
	// Queued is how many invocations wait, UnderWay how many were accepted and
	// have not ended, those included.
	Queued   int `json:"queued"`
	UnderWay int `json:"underWay"`
	// Invocations have ended, of which ColdStarts had a container started,
	// FunctionErrors failed in the function and PlatformErrors otherwise.
	Invocations    uint64 `json:"invocations"`
	ColdStarts     uint64 `json:"coldStarts"`
	FunctionErrors uint64 `json:"functionErrors"`
	PlatformErrors uint64 `json:"platformErrors"`
	// Throttled were refused, or waited for a place in vain.
	Throttled uint64 `json:"throttled"`
}

// detail is what invokers tell of a container beyond what the cluster keeps.
type detail struct {
	made     time.Time
	rssBytes int64
}

// Containers returns all containers, by invoker and name.
func (c *Controller) Containers(context.Context) ([]Container, error) {
	t, err := c.leading()
	if err != nil {
		return nil, err
	}
	wall := c.cfg.WallClock()
	var out []Container
	t.mu.Lock()
	now := time.Now()
	for _, n := range t.cluster.Nodes() {
		p := t.byNode[n.Index()]
		for ct := range n.Containers {
			name, revision, _ := strings.Cut(ct.Function().Key, "@")
			o := Container{
				ID: ct.ID(), Function: name, Revision: revision, Invoker: n.Name(), State: ct.State().String(),
				MemoryMB: ct.MemoryMB(), Age: now.Sub(ct.Made()), Unused: now.Sub(ct.LastUsed()), Uses: ct.Uses(),
			}
			if d, ok := p.details[ct.ID()]; ok {
				o.RSSBytes, o.Age = d.rssBytes, max(0, wall.Sub(d.made))
			}
			if j := ct.Job(); j != nil {
				o.Request = j.ID
			}
			out = append(out, o)
		}
	}
	t.mu.Unlock()
	slices.SortFunc(out, func(a, b Container) int {
		return cmp.Or(cmp.Compare(a.Invoker, b.Invoker), cmp.Compare(a.ID, b.ID))
	})
	return out, nil
}

// Nodes returns all invokers that were heard of, by name.
func (c *Controller) Nodes(context.Context) ([]Node, error) {
	t, err := c.leading()
	if err != nil {
		return nil, err
	}
	var out []Node
	t.mu.Lock()
	now := time.Now()
	for _, n := range t.cluster.Nodes() {
		p := t.byNode[n.Index()]
		o := Node{
			Name: n.Name(), Online: n.Online(), Leaving: p.leaving, CapacityMB: n.CapacityMB(), BusyMB: n.BusyMB(), IdleMB: n.IdleMB(),
			Silent: now.Sub(p.heard), Driver: p.driver, Isolation: p.isolation, Stale: p.stale,
		}
		for range n.Containers {
			o.Containers++
		}
		out = append(out, o)
	}
	t.mu.Unlock()
	slices.SortFunc(out, func(a, b Node) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}

// Functions returns the statistics of all functions, by name.
func (c *Controller) Functions(context.Context) ([]FunctionStats, error) {
	t, err := c.leading()
	if err != nil {
		return nil, err
	}
	entries := c.registry.all()
	out := make([]FunctionStats, 0, len(entries))
	t.mu.Lock()
	defer t.mu.Unlock()
	index := map[*usage]int{}
	for _, e := range entries {
		u := t.usage(e.function.Name)
		s := u.stats
		s.UnderWay = u.underWay
		for _, rev := range u.revisions {
			s.Queued += rev.function.Waiting()
		}
		index[u] = len(out)
		out = append(out, s)
	}
	for _, n := range t.cluster.Nodes() {
		for ct := range n.Containers {
			rev := t.functions[ct.Function().Key]
			i, ok := index[rev.usage]
			if !ok {
				continue
			}
			switch ct.State() {
			case sophon.Starting:
				out[i].Starting++
			case sophon.Busy:
				out[i].Busy++
			case sophon.Idle:
				out[i].Idle++
			case sophon.Paused:
				out[i].Paused++
			}
		}
	}
	return out, nil
}

// Logs calls handle for each log line of a function (of all, if the name is
// empty) since a time, oldest first; with follow it goes on with new ones until
// the context ends, which is no error. An error of handle ends it and is
// returned.
func (c *Controller) Logs(ctx context.Context, name string, since time.Time, follow bool, handle func(function.LogLine) error) error {
	if err := c.awaitOpen(ctx); err != nil {
		return err
	}
	if name == "" {
		name = "*"
	}
	log := *c.logs.Load()
	return log.Read(ctx, wire.LogSubject(name), since, follow, func(r bus.Record) error {
		for lines := json.NewDecoder(bytes.NewReader(r.Data)); ; {
			var line function.LogLine
			if lines.Decode(&line) != nil {
				return nil // the end, or not ours
			}
			if line.Time.Before(since) {
				continue
			}
			if err := handle(line); err != nil {
				return err
			}
		}
	})
}
