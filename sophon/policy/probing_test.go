package policy

import (
	"slices"
	"strconv"
	"testing"

	"pgregory.net/rapid"

	"github.com/volley-run/volley/sophon"
)

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// greedyCoprimes is OpenWhisk's definition, word for word.
func greedyCoprimes(n int) []int {
	var out []int
	for i := 1; i <= n; i++ {
		if gcd(i, n) == 1 && !slices.ContainsFunc(out, func(o int) bool { return gcd(i, o) != 1 }) {
			out = append(out, i)
		}
	}
	return out
}

func TestPairwiseCoprimesAreOpenWhisks(t *testing.T) {
	for n, want := range map[int][]int{1: {1}, 2: {1}, 3: {1, 2}, 4: {1, 3}, 5: {1, 2, 3}, 9: {1, 2, 5, 7}, 10: {1, 3, 7}, 12: {1, 5, 7, 11}} {
		if got := pairwiseCoprimes(n); !slices.Equal(got, want) {
			t.Errorf("%d: %v, want %v", n, got, want)
		}
	}
	for n := 1; n <= 600; n++ {
		if got, want := pairwiseCoprimes(n), greedyCoprimes(n); !slices.Equal(got, want) {
			t.Fatalf("%d: %v, want %v", n, got, want)
		}
	}
}

// The order in which OpenWhisk probes is (home + i*step) mod n, with the home
// hash mod n, and the step steps[hash mod len(steps)].
func TestNodesAreProbedInOpenWhisksOrder(t *testing.T) {
	for _, tc := range []struct {
		name  string
		nodes int
		want  []uint64
	}{
		// hash 99162322; steps 1 3 7, 99162322 mod 3 = 1.
		{"hello", 10, []uint64{2, 5, 8, 1, 4, 7, 0, 3, 6, 9}},
		// hash 97; steps 1 2 3, 97 mod 3 = 1.
		{"a", 5, []uint64{2, 4, 1, 3, 0}},
		{"a", 1, []uint64{0}},
	} {
		b := newBed(slices.Repeat([]int64{1}, tc.nodes)...)
		var p probing
		seq := p.of(sophon.ViewOf(b.Cluster), b.function(tc.name, 1))
		var got []uint64
		for i, index := 0, seq.home; i < tc.nodes; i, index = i+1, seq.next(index) {
			got = append(got, index)
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("%s on %d nodes: %v, want %v", tc.name, tc.nodes, got, tc.want)
		}
	}
}

func TestProbingComesToEveryNodeOnceAndKnowsTheDistance(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 300).Draw(t, "nodes")
		b := newBed(slices.Repeat([]int64{1}, n)...)
		var p probing
		seq := p.of(sophon.ViewOf(b.Cluster), b.function(rapid.StringMatching("[a-zA-Z0-9_-]{1,64}").Draw(t, "name"), 1))
		seen := make([]bool, n)
		index := seq.home
		for i := range n {
			if seen[index] {
				t.Fatalf("node %d is probed twice", index)
			}
			seen[index] = true
			if at := seq.at(uint64(i)); at != index {
				t.Fatalf("after %d steps comes node %d, not %d", i, at, index)
			}
			if d := seq.distance(int(index)); d != uint64(i) {
				t.Fatalf("node %d is %d steps from home, not %d", index, i, d)
			}
			index = seq.next(index)
		}
	})
}

func TestStickyWarmStartsAreTheNearestHoweverTheyAreFound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 150).Draw(t, "nodes")
		b := newBed(slices.Repeat([]int64{1000}, n)...)
		f := b.function("f"+strconv.Itoa(rapid.IntRange(0, 99).Draw(t, "function")), 100)
		p := newPolicy(t, "sr-mc", Options{}).(*stickyWarm)
		var containers []*sophon.Container
		for range rapid.IntRange(0, 300).Draw(t, "steps") {
			switch rapid.IntRange(0, 19).Draw(t, "do") {
			case 0:
				b.SetOnline(b.node(rapid.IntRange(0, n-1).Draw(t, "node")), rapid.Bool().Draw(t, "online"))
			case 1: // of which the policy is not told
				if i := rapid.IntRange(0, n-1).Draw(t, "node"); b.node(i).FreeMB() >= 100 {
					b.idle(i, f.Name, 100, 0)
				}
			case 2, 3, 4, 5, 6, 7, 8, 9:
				if i := rapid.IntRange(0, n-1).Draw(t, "node"); b.node(i).FreeMB() >= 100 {
					containers = append(containers, b.idle(i, f.Name, 100, 0))
					p.Became(containers[len(containers)-1], sophon.Idle, b.now)
				}
			case 10:
				if len(containers) > 0 {
					i := rapid.IntRange(0, len(containers)-1).Draw(t, "container")
					b.Remove(containers[i])
					p.Became(containers[i], sophon.Gone, b.now)
					containers = slices.Delete(containers, i, i+1)
				}
			default:
				var want *sophon.Group
				seq := p.probing.of(sophon.ViewOf(b.Cluster), f)
				for i, index := 0, seq.home; i < n && want == nil; i, index = i+1, seq.next(index) {
					if g := b.node(int(index)).Group(f); g != nil && g.Newest() != nil && g.Node().Fits(100) {
						want = g
					}
				}
				if got := p.nearest(sophon.ViewOf(b.Cluster), f); got != want {
					t.Fatalf("chose %v, want %v", got, want)
				}
				if want == nil {
					continue
				}
				c := want.Newest()
				b.SetState(c, sophon.Busy, b.now)
				p.Became(c, sophon.Busy, b.now)
				if rapid.Bool().Draw(t, "back") {
					b.SetState(c, sophon.Idle, b.now)
					p.Became(c, sophon.Idle, b.now)
				}
			}
		}
	})
}
