package policy

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/volley-run/volley/sophon"
)

// start is some time.
var start = time.Date(2026, time.March, 1, 12, 0, 0, 0, time.UTC) // constant

// bed is a small cluster for a policy to choose in.
type bed struct {
	*sophon.Cluster
	now time.Time
	ids int
}

// newBed returns a cluster of nodes n0, n1, ... with the given capacities.
func newBed(capacities ...int64) *bed {
	b := &bed{Cluster: sophon.NewCluster(nil), now: start}
	for i, mb := range capacities {
		b.AddNode("n"+strconv.Itoa(i), mb)
	}
	return b
}

func (b *bed) node(i int) *sophon.Node { return b.Nodes()[i] }

func (b *bed) function(name string, memoryMB int64) *sophon.Function {
	return b.Intern(name+"@1", name, memoryMB)
}

// busy adds a container that is in use.
func (b *bed) busy(node int, name string, memoryMB int64) *sophon.Container {
	b.ids++
	c := b.Start(b.node(node), b.function(name, memoryMB), name+strconv.Itoa(b.ids), memoryMB, b.now)
	b.SetState(c, sophon.Busy, b.now)
	return c
}

// idle adds a container that has been idle for so long.
func (b *bed) idle(node int, name string, memoryMB int64, idle time.Duration) *sophon.Container {
	c := b.busy(node, name, memoryMB)
	b.SetState(c, sophon.Idle, b.now.Add(-idle))
	return c
}

func (b *bed) choose(p sophon.Policy, f *sophon.Function) sophon.Decision {
	return p.Choose(sophon.ViewOf(b.Cluster), sophon.Request{Function: f, Now: b.now})
}

func newPolicy(t interface{ Fatal(...any) }, name string, o Options) sophon.Policy {
	p, err := New(name, o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// homed returns a function's name whose home among n nodes is the given one,
// and whose step is 1.
func homed(n, home int) string {
	steps := uint32(len(pairwiseCoprimes(n)))
	for i := 0; ; i++ {
		name := "f" + strconv.Itoa(i)
		if h := sophon.HashName(name); h%uint32(n) == uint32(home) && h%steps == 0 {
			return name
		}
	}
}

func TestPoliciesChooseAsTheyShould(t *testing.T) {
	home2 := homed(4, 2)
	for _, tc := range []struct {
		name   string
		policy string
		build  func(b *bed)
		want   string // node, or node/container
	}{
		{"the most memory available", "max-available", func(b *bed) { b.busy(0, "x", 300); b.busy(1, "x", 100); b.busy(2, "x", 200); b.busy(3, "x", 300) }, "n1"},
		{"idle containers count as available", "max-available", func(b *bed) { b.idle(0, "x", 900, 0); b.busy(1, "x", 100); b.busy(2, "x", 100); b.busy(3, "x", 100) }, "n0"},
		{"the lowest index among equals", "max-available", func(b *bed) {}, "n0"},
		{"home", "sticky-random", func(b *bed) {}, "n2"},
		{"the next after a full home", "sticky-random", func(b *bed) { b.busy(2, "x", 901) }, "n3"},
		{"the next after one offline", "sticky-random", func(b *bed) { b.SetOnline(b.node(2), false); b.busy(3, "x", 1000); b.busy(0, "x", 1000) }, "n1"},
		// With alpha 0.3 on four nodes, a step from home costs 0.075.
		{"home as long as it is not much fuller", "sticky-max-available", func(b *bed) { b.busy(2, "x", 100) }, "n2"},
		{"away from a home that is much fuller", "sticky-max-available", func(b *bed) { b.busy(2, "x", 110) }, "n3"},
		{"further away if that is emptier still", "sticky-max-available", func(b *bed) { b.busy(2, "x", 900); b.busy(3, "x", 500) }, "n0"},
		{"a warm container where most is available", "ma-ma", func(b *bed) {
			b.idle(0, home2, 100, 0)
			b.busy(0, "x", 500)
			b.idle(2, home2, 100, time.Hour)
			b.busy(2, "x", 400)
		}, "n2/" + home2 + "3"},
		{"the warm container used last on a node", "ma-mc", func(b *bed) {
			b.idle(0, home2, 100, 2*time.Second)
			b.idle(0, home2, 100, time.Second)
			b.idle(0, home2, 100, 3*time.Second)
		}, "n0/" + home2 + "2"},
		{"a warm container even on the fullest node", "ma-mc", func(b *bed) { b.idle(3, home2, 100, time.Hour); b.busy(3, "x", 900) }, "n3/" + home2 + "1"},
		{"cold where most is available", "sr-ma", func(b *bed) { b.busy(0, "x", 300); b.busy(1, "x", 100); b.busy(2, "x", 200); b.busy(3, "x", 300) }, "n1"},
		{"warm nearest to home", "sr-mc", func(b *bed) { b.idle(0, home2, 100, 0); b.idle(3, home2, 100, 0); b.busy(3, "x", 500) }, "n3/" + home2 + "2"},
		{"warm at home", "sr-ma", func(b *bed) { b.idle(0, home2, 100, 0); b.idle(2, home2, 100, 0); b.busy(2, "x", 500) }, "n2/" + home2 + "2"},
		{"cold where nothing is evicted", "ma-mc", func(b *bed) {
			b.idle(0, "x", 1000, time.Hour)
			b.busy(1, "x", 500)
			b.idle(2, "x", 1000, time.Hour)
			b.idle(3, "x", 1000, time.Hour)
		}, "n1"},
		{"of such nodes, where most is available", "ma-mc", func(b *bed) { b.busy(0, "x", 300); b.busy(1, "x", 200); b.busy(2, "x", 100); b.idle(3, "x", 1000, 0) }, "n2"},
		{"cold where the container idle longest goes", "ma-mc", func(b *bed) {
			b.idle(0, "x", 1000, 5*time.Second)
			b.idle(1, "x", 1000, 7*time.Second)
			b.idle(2, "x", 1000, 6*time.Second)
			b.busy(3, "x", 1000)
		}, "n1"},
		// Two containers idle for 5 s cost 2*exp(-1.5) = 0.446, one idle for
		// 3 s exp(-0.9) = 0.407, one idle for 2 s 0.549.
		{"cold where the sum costs least", "sr-mc", func(b *bed) {
			b.idle(0, "x", 50, 5*time.Second)
			b.idle(0, "x", 950, 5*time.Second)
			b.idle(1, "x", 1000, 3*time.Second)
			b.idle(2, "x", 1000, 2*time.Second)
			b.busy(3, "x", 1000)
		}, "n1"},
		{"the fewest running, not the least memory", "hiku", func(b *bed) {
			b.busy(0, "x", 500)
			b.busy(1, "x", 1)
			b.busy(1, "x", 1)
			b.busy(2, "x", 1)
			b.busy(2, "x", 1)
			b.busy(3, "x", 1000)
		}, "n0"},
		{"warm with the fewest running", "hiku", func(b *bed) {
			b.idle(0, home2, 100, 0)
			b.busy(0, "x", 1)
			b.busy(0, "x", 1)
			b.idle(2, home2, 100, 0)
			b.busy(2, "x", 500)
		}, "n2/" + home2 + "4"},
		{"the warm container used last anywhere", "mru-weighted", func(b *bed) {
			b.idle(0, home2, 100, 9*time.Second)
			b.idle(2, home2, 100, time.Second)
			b.busy(2, "x", 500)
			b.idle(3, home2, 100, 5*time.Second)
		}, "n2/" + home2 + "2"},
		{"cold where evicting costs least", "weighted", func(b *bed) {
			b.idle(0, "x", 1000, 5*time.Second)
			b.idle(1, "x", 1000, 7*time.Second)
			b.idle(2, "x", 1000, 6*time.Second)
			b.busy(3, "x", 1000)
		}, "n1"},
	} {
		t.Run(tc.policy+" chooses "+tc.name, func(t *testing.T) {
			b := newBed(1000, 1000, 1000, 1000)
			tc.build(b)
			d := b.choose(newPolicy(t, tc.policy, Options{}), b.function(home2, 100))
			got := "nothing"
			if d.Node != nil {
				got = d.Node.Name()
			}
			if d.Container != nil {
				got += "/" + d.Container.ID()
			}
			if got != tc.want {
				t.Errorf("chose %s, want %s", got, tc.want)
			}
		})
	}
}

func TestAlphaTurnsStickyMaxAvailableIntoItsNeighbours(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := newBed(1000, 1000, 1000, 1000, 1000)
		for i := range 5 {
			b.busy(i, "x", rapid.Int64Range(0, 1000).Draw(t, "busy"))
		}
		f := b.function(rapid.StringMatching("[a-z]{1,9}").Draw(t, "name"), 200)
		for _, tc := range []struct {
			alpha float64
			like  string
		}{{1, "sticky-random"}, {-1, "max-available"}} {
			got, want := b.choose(newPolicy(t, "sticky-max-available", Options{Alpha: tc.alpha}), f).Node, b.choose(newPolicy(t, tc.like, Options{}), f).Node
			if (got == nil) != (want == nil) || got != nil && tc.alpha == 1 && got != want || got != nil && got.AvailableMB() < want.AvailableMB() && tc.alpha < 0 {
				t.Fatalf("alpha %v chose %v, %s %v", tc.alpha, got, tc.like, want)
			}
		}
	})
}

// randomBed draws a cluster in any state, and a function.
func randomBed(t *rapid.T, nodes int) (*bed, *sophon.Function) {
	b := newBed()
	for i := range nodes {
		n := b.AddNode("n"+strconv.Itoa(i), rapid.Int64Range(100, 1500).Draw(t, "capacity"))
		for range rapid.IntRange(0, 6).Draw(t, "containers") {
			name := rapid.SampledFrom([]string{"a", "b", "c", "d"}).Draw(t, "of")
			mb := map[string]int64{"a": 100, "b": 200, "c": 300, "d": 400}[name]
			if n.FreeMB() < mb {
				continue
			}
			c := b.busy(i, name, mb)
			if rapid.IntRange(0, 2).Draw(t, "state") > 0 {
				b.SetState(c, rapid.SampledFrom([]sophon.State{sophon.Idle, sophon.Paused}).Draw(t, "idle"), b.now.Add(-time.Duration(rapid.IntRange(0, 5000).Draw(t, "seconds"))*time.Second))
			}
		}
		b.SetOnline(n, rapid.IntRange(0, 4).Draw(t, "online") > 0)
	}
	name := rapid.SampledFrom([]string{"a", "b", "c", "d", "new"}).Draw(t, "function")
	return b, b.function(name, map[string]int64{"a": 100, "b": 200, "c": 300, "d": 400, "new": 700}[name])
}

func TestEveryPolicyKeepsTheRules(t *testing.T) {
	for _, name := range Names() {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				b, f := randomBed(t, rapid.IntRange(0, 12).Draw(t, "nodes"))
				o := Options{Seed: rapid.Uint64().Draw(t, "seed"), Sample: rapid.IntRange(0, 3).Draw(t, "sample")}
				p, twin := newPolicy(t, name, o), newPolicy(t, name, o)
				fits := slices.ContainsFunc(b.Nodes(), func(n *sophon.Node) bool { return n.Fits(f.MemoryMB) })
				for range 3 {
					d := b.choose(p, f)
					if again := b.choose(twin, f); again.Node != d.Node || again.Container != d.Container {
						t.Fatalf("chose %v and with the same seed %v", d, again)
					}
					switch c := d.Container; {
					case d.Node == nil:
						if fits || c != nil {
							t.Fatal("chose nothing although there is a node that fits")
						}
						continue
					case !d.Node.Fits(f.MemoryMB):
						t.Fatalf("chose node %s, which does not fit", d.Node.Name())
					case c != nil && (c.Node() != d.Node || c.Function() != f || c.State() != sophon.Idle && c.State() != sophon.Paused):
						t.Fatalf("chose container %s, which is %v, of function %s on node %s", c.ID(), c.State(), c.Function().Name, c.Node().Name())
					}
					warm := slices.ContainsFunc(f.Warm(), func(g *sophon.Group) bool { return g.Node().Fits(f.MemoryMB) })
					if (d.Container != nil) != (warm && p.Grain() == sophon.ContainerGrained) {
						t.Fatalf("chose container %v where there is a warm one: %v", d.Container, warm)
					}
				}
			})
		})
	}
}

// costOf is the cost of a cold start by its definition (thesis 4.4.2).
func costOf(n *sophon.Node, f *sophon.Function, now time.Time) float64 {
	victims, _ := n.Victims(f.MemoryMB)
	cost := 0.0
	for _, v := range victims {
		cost += math.Exp(-DefaultLambda * now.Sub(v.LastUsed()).Seconds())
	}
	return cost
}

func TestMinCostIsLeastByItsDefinition(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b, _ := randomBed(t, rapid.IntRange(1, 12).Draw(t, "nodes"))
		f := b.function("new", 700)
		d := b.choose(newPolicy(t, "ma-mc", Options{}), f)
		if d.Node == nil {
			t.Skip("nothing fits")
		}
		got := costOf(d.Node, f, b.now)
		for _, n := range b.Nodes() {
			if n.Fits(f.MemoryMB) && costOf(n, f, b.now) < got*(1-1e-12) {
				t.Fatalf("chose %s at cost %v, but %s costs %v", d.Node.Name(), got, n.Name(), costOf(n, f, b.now))
			}
		}
	})
}

func TestRandomGivesEveryNodeThatFitsTheSameChance(t *testing.T) {
	for _, fitting := range []int{2, 50} { // by looking at all, and by drawing
		b := newBed(slices.Repeat([]int64{1000}, 100)...)
		for i := fitting; i < 100; i++ {
			b.busy(i, "x", 950)
		}
		p, f := newPolicy(t, "random", Options{Seed: 7}), b.function("f", 100)
		const draws = 20_000
		counts := map[*sophon.Node]int{}
		for range draws {
			counts[b.choose(p, f).Node]++
		}
		mean := float64(draws) / float64(fitting)
		for i := range fitting {
			if c := float64(counts[b.node(i)]); math.Abs(c-mean) > 6*math.Sqrt(mean) {
				t.Errorf("%d nodes fit: node %d was chosen %v times, others %v on average", fitting, i, c, mean)
			}
		}
	}
}

func TestSamplingWidensWhenNothingInTheSampleFits(t *testing.T) {
	for _, name := range []string{"max-available", "ma-ma", "ma-mc", "sr-ma", "sr-mc", "hiku", "weighted", "mru-weighted", "hybrid", "sticky-max-available"} {
		b := newBed(slices.Repeat([]int64{1000}, 2000)...)
		for i := range 2000 {
			if i != 1234 {
				b.busy(i, "x", 950)
			}
		}
		p := newPolicy(t, name, Options{Sample: DefaultSample})
		for range 20 {
			if n := b.choose(p, b.function("f", 100)).Node; n == nil || n.Index() != 1234 {
				t.Fatalf("%s chose %v, and not the only node that fits", name, n)
			}
		}
	}
}

func TestSamplingFindsGoodNodesWithoutLookingAtAll(t *testing.T) {
	b := newBed(slices.Repeat([]int64{1000}, 1000)...)
	for i := range 1000 {
		b.busy(i, "x", int64(i%900))
	}
	f := b.function("f", 100)
	p := newPolicy(t, "max-available", Options{Sample: DefaultSample})
	chosen := map[*sophon.Node]bool{}
	sum := int64(0)
	const draws = 1000
	for range draws {
		n := b.choose(p, f).Node
		chosen[n] = true
		sum += n.BusyMB()
	}
	if mean := float64(sum) / draws; mean > 150 || len(chosen) < 100 {
		t.Errorf("the nodes chosen have %.0f MiB busy on average (the best of ten have about 80), and are %d", mean, len(chosen))
	}
}

func TestASampleHasNothingTwice(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := newBed(slices.Repeat([]int64{1000}, rapid.IntRange(41, 80).Draw(t, "nodes"))...)
		s := &sampler{rng: source(Options{Seed: rapid.Uint64().Draw(t, "seed")}, 1), size: 10}
		for range 5 {
			nodes := slices.Clone(s.nodes(sophon.ViewOf(b.Cluster), 100))
			seen := map[*sophon.Node]bool{}
			for _, n := range nodes {
				seen[n] = true
			}
			if len(nodes) != 10 || len(seen) != 10 {
				t.Fatalf("a sample of %d nodes has %d different ones", len(nodes), len(seen))
			}
		}
	})
}

func TestNewRefusesWhatItCannotMake(t *testing.T) {
	for _, tc := range []struct {
		name string
		o    Options
		want string
	}{
		{"best", Options{}, `there is no policy "best"; there are random, max-available,`},
		{"ma-mc", Options{Sample: -1}, "sample of -1 nodes"},
		{"ma-mc", Options{Lambda: math.NaN()}, "lambda of NaN"},
		{"random", Options{Alpha: 1.5}, "alpha of 1.5"},
	} {
		if _, err := New(tc.name, tc.o); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("New(%q, %+v): %v, want %q", tc.name, tc.o, err, tc.want)
		}
	}
}

func TestTheRegistryDescribesEveryPolicy(t *testing.T) {
	for _, name := range Names() {
		grain := strings.SplitN(Describe(name), ":", 2)[0]
		p := newPolicy(t, name, Options{})
		if p.Name() != name || grain != map[sophon.Grain]string{sophon.NodeGrained: "node-grained", sophon.ContainerGrained: "container-grained"}[p.Grain()] {
			t.Errorf("%s is called %s, of grain %d, and described as %q", name, p.Name(), p.Grain(), Describe(name))
		}
	}
	if Describe("none") != "" || !slices.Contains(Names(), Default) {
		t.Error("a policy that is not there is described, or the default is not there")
	}
}

func TestEveryPolicyRunsAWholeLoad(t *testing.T) {
	for _, name := range Names() {
		for _, sample := range []int{0, 2} {
			t.Run(fmt.Sprint(name, " sampling ", sample), func(t *testing.T) {
				l := newLoad(newPolicy(t, name, Options{Seed: 3, Sample: sample}), 3, MeasureConfig{Invokers: 20, MemoryMB: 2048})
				for range 5000 {
					l.step(false)
				}
				if l.placed == 0 || l.warm == 0 || l.evicting == 0 {
					t.Errorf("%d were placed, %d warm, %d evicted", l.placed, l.warm, l.evicting)
				}
			})
		}
	}
}
