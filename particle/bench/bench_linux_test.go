package bench

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/volley-run/volley/internal/testenv"
	"github.com/volley-run/volley/particle"
)

func openCluster(t *testing.T, nodes int) *Cluster {
	t.Helper()
	testenv.Need(t, testenv.NetAdmin)
	c, err := OpenCluster(context.Background(), nodes)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func TestEveryDesignIsMeasured(t *testing.T) {
	c := openCluster(t, 2)
	for _, six := range []bool{false, true} {
		for _, d := range particle.Designs() {
			s, err := c.Setup(context.Background(), Network{Design: d, Endpoints: 3, IPv6: six})
			if err != nil {
				t.Fatal(err)
			}
			var sum time.Duration
			var names []string
			for _, step := range s.Steps {
				sum += step.Duration
				names = append(names, step.Name)
			}
			if s.Apply <= 0 || s.Close <= 0 || s.Settled < s.Close || sum > s.Apply {
				t.Errorf("%+v", s)
			}
			if d == particle.Baseline {
				for _, want := range []string{"S1", "S2", "S3", "S4", "S5", "S6"} {
					if !slices.Contains(names, want) {
						t.Errorf("baseline has the steps %v", names)
					}
				}
			}
		}
	}
	_, err := c.Setup(context.Background(), Network{Design: particle.Baseline, Endpoints: 1200})
	if !errors.Is(err, particle.ErrBridgeFull) {
		t.Errorf("more endpoints than ports: %v", err)
	}
}

func TestProcessesSpeakFromTheirOwnAddresses(t *testing.T) {
	c := openCluster(t, 2)
	testenv.Need(t, testenv.CgroupBPF)
	for _, d := range []particle.Design{"", particle.Baseline, particle.Direct, particle.AnyIP} {
		p, err := c.Processes(context.Background(), d, 5)
		if err != nil {
			t.Fatalf("%q: %v", d, err)
		}
		if p.Total <= p.Network || (p.Network > 0) != (d != "") {
			t.Errorf("%+v", p)
		}
		t.Logf("%+v", p)
	}
}

func TestTrafficIsMeasured(t *testing.T) {
	c := openCluster(t, 2)
	for _, n := range []Network{
		{Design: particle.Direct},
		{Design: particle.AnyIP, Discipline: particle.DisciplineNone},
		{Design: particle.AnyIP},
	} {
		m, err := c.Traffic(context.Background(), n, 3, 100*time.Millisecond)
		if err != nil {
			t.Fatalf("%+v: %v", n, err)
		}
		if m.BytesPerSecond < 1e6 || m.P50 <= 0 || m.P99 < m.P50 {
			t.Errorf("%+v", m)
		}
		t.Logf("%+v", m)
	}
}

func TestACancelledMeasurementLeavesNothing(t *testing.T) {
	c := openCluster(t, 2)
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(100*time.Millisecond, cancel)
	if _, err := c.Processes(ctx, particle.Baseline, 200); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	list, err := c.nodes[0].List(context.Background())
	if err != nil || len(list) > 0 {
		t.Errorf("%v is left, %v", list, err)
	}
}

// wire is a control plane without messages: all nodes share it.
type wire struct{ *sharedTable }

type sharedTable struct {
	mu      sync.Mutex
	members []particle.Member
	changed chan struct{}
}

func (w wire) Announce(_ context.Context, m particle.Member) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.members = append(w.members, m)
	close(w.changed)
	w.changed = make(chan struct{})
	return nil
}

func (w wire) Watch(ctx context.Context, m particle.Member, tell func([]particle.Peer)) error {
	for {
		var others []particle.Peer
		w.mu.Lock()
		for _, o := range w.members {
			if o.Network == m.Network && o.Self.Node != m.Self.Node {
				others = append(others, o.Self)
			}
		}
		changed := w.changed
		w.mu.Unlock()
		tell(others)
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (wire) Withdraw(context.Context, particle.Member) error { return nil }
func (wire) Close() error                                    { return nil }

func TestNodesHearOfEachOther(t *testing.T) {
	c := openCluster(t, 4)
	w := wire{&sharedTable{changed: make(chan struct{})}}
	m, err := c.Nodes(context.Background(), Network{Design: particle.AnyIP, Endpoints: 10}, func(int) (particle.ControlPlane, error) { return w, nil })
	if err != nil {
		t.Fatal(err)
	}
	if m.Nodes != 4 || m.Applied <= 0 || m.Known < m.Applied || m.Connected < m.Known {
		t.Errorf("%+v", m)
	}
	t.Logf("%+v", m)
}
