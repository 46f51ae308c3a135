package delivery

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/volley-run/volley/sprocket"
)

// frame is one picture, wherever it is stored.
type frame struct {
	key  string
	base int64
	pts  int64
}

// drawStream makes a stream of frames whose items tile the time, with any
// chunking: items may be empty, and may be made of several objects.
func drawStream(t *rapid.T, label string) []sprocket.Item {
	var items []sprocket.Item
	var now int64
	for seq := range rapid.IntRange(0, 12).Draw(t, label+" items") {
		it := sprocket.Item{Type: sprocket.Frames, Seq: int64(seq), Chunk: int64(seq / 2), Start: now}
		for run := range rapid.IntRange(0, 3).Draw(t, "runs") {
			r := sprocket.FrameRange{Key: fmt.Sprintf("%s-%d-%d", label, seq, run), Base: now}
			for range rapid.IntRange(0, 6).Draw(t, "frames") {
				now += int64(rapid.IntRange(1, 3).Draw(t, "gap"))
				r.PTS = append(r.PTS, now)
			}
			it.Frames = append(it.Frames, r)
		}
		now += int64(rapid.IntRange(1, 3).Draw(t, "rest"))
		it.End = now
		it.Cuts = rapid.SliceOfN(rapid.Int64Range(it.Start, it.End-1), 0, 2).Draw(t, "cuts")
		items = append(items, it)
	}
	return items
}

// drawArrivals puts the items and ends of streams into any order in which they
// may come: each end after the items of its port.
func drawArrivals(t *rapid.T, streams [][]sprocket.Item) []step {
	queues := make([][]step, len(streams))
	for port, items := range streams {
		for _, it := range rapid.Permutation(items).Draw(t, "order") {
			queues[port] = append(queues[port], arrives(port, it))
		}
		queues[port] = append(queues[port], ends(port, int64(len(items))))
	}
	var steps []step
	for {
		var busy []int
		for port, q := range queues {
			if len(q) > 0 {
				busy = append(busy, port)
			}
		}
		if len(busy) == 0 {
			return steps
		}
		port := rapid.SampledFrom(busy).Draw(t, "port")
		steps = append(steps, queues[port][0])
		queues[port] = queues[port][1:]
	}
}

func mustNew(t *rapid.T, fn string, ports int, opts Options) Func {
	f, err := New(fn, ports, opts)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// deliver carries out steps and returns all deliveries by Seq. It checks that
// the Seqs are dense and that Total is right.
func deliver(t *rapid.T, f Func, steps []step) []Delivery {
	bySeq := make(map[int64]Delivery)
	for _, s := range steps {
		if f.Total() != -1 {
			t.Fatalf("Total() = %d before the end", f.Total())
		}
		out, err := s.take(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range out {
			if _, twice := bySeq[d.Seq]; twice {
				t.Fatalf("task %d was delivered twice", d.Seq)
			}
			bySeq[d.Seq] = d
		}
	}
	if f.Total() != int64(len(bySeq)) {
		t.Fatalf("Total() = %d but there were %d deliveries", f.Total(), len(bySeq))
	}
	var all []Delivery
	for i, seq := range slices.Sorted(maps.Keys(bySeq)) {
		if seq != int64(i) {
			t.Fatalf("there is no task %d", i)
		}
		all = append(all, bySeq[seq])
	}
	return all
}

func framesOf(items []sprocket.Item) []frame {
	var out []frame
	for _, it := range items {
		for _, r := range it.Frames {
			for _, pts := range r.PTS {
				out = append(out, frame{r.Key, r.Base, pts})
			}
		}
	}
	return out
}

func clone(items []sprocket.Item) []sprocket.Item {
	out := slices.Clone(items)
	for i := range out {
		out[i].Cuts = slices.Clone(out[i].Cuts)
		out[i].Frames = slices.Clone(out[i].Frames)
		for j := range out[i].Frames {
			out[i].Frames[j].PTS = slices.Clone(out[i].Frames[j].PTS)
		}
	}
	return out
}

func drawOptions(t *rapid.T) Options {
	return Options{FramesPerTask: rapid.IntRange(1, 7).Draw(t, "frames per task")}
}

func TestEveryFrameIsDeliveredOnceWhateverTheOrderOfArrival(t *testing.T) {
	for _, fn := range []string{"default", "pair", "frames", "split", "scene", "all"} {
		t.Run(fn, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				items := drawStream(t, "a")
				before := clone(items)
				opts := drawOptions(t)
				inOrder := make([]step, 0, len(items)+1)
				for _, it := range items {
					inOrder = append(inOrder, arrives(0, it))
				}
				inOrder = append(inOrder, ends(0, int64(len(items))))

				want := deliver(t, mustNew(t, fn, 1, opts), inOrder)
				got := deliver(t, mustNew(t, fn, 1, opts), drawArrivals(t, [][]sprocket.Item{items}))
				if diff := cmp.Diff(want, got); diff != "" {
					t.Fatalf("the order of arrival matters (-in order +permuted):\n%s", diff)
				}
				var delivered []frame
				for _, d := range got {
					delivered = append(delivered, framesOf(d.Inputs[0])...)
				}
				if !slices.Equal(delivered, framesOf(items)) {
					t.Fatalf("frames in = %v\nframes out = %v", framesOf(items), delivered)
				}
				if diff := cmp.Diff(before, items); diff != "" {
					t.Fatalf("items were changed (-before +after):\n%s", diff)
				}
			})
		})
	}
}

func TestRegroupedTasksAreCutWhereTheFunctionSays(t *testing.T) {
	for _, fn := range []string{"frames", "split", "scene"} {
		t.Run(fn, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				items := drawStream(t, "a")
				opts := drawOptions(t)
				tasks := deliver(t, mustNew(t, fn, 1, opts), drawArrivals(t, [][]sprocket.Item{items}))

				all := framesOf(items)
				begins := beginnings(fn, opts, items)
				var got []int
				n := 0
				for i, d := range tasks {
					if len(d.Inputs) != 1 || len(d.Inputs[0]) != 1 {
						t.Fatalf("task %d has not one item: %v", i, d)
					}
					it := d.Inputs[0][0]
					if it.Seq != d.Seq || it.Type != sprocket.Frames || it.FrameCount() == 0 {
						t.Fatalf("task %d has item %+v", i, it)
					}
					got = append(got, n)
					if it.Start != all[n].pts || it.Chunk != chunkOf(items, all[n]) {
						t.Fatalf("task %d starts at %d, chunk %d; its first frame is %v", i, it.Start, it.Chunk, all[n])
					}
					n += it.FrameCount()
					if last := all[n-1].pts; it.End <= last || (n < len(all) && it.End > all[n].pts) {
						t.Fatalf("task %d ends at %d, after a frame at %d", i, it.End, last)
					}
				}
				if !slices.Equal(got, begins) {
					t.Fatalf("tasks begin at frames %v, want %v", got, begins)
				}
			})
		})
	}
}

// beginnings says by the plainest means at which frames tasks begin.
func beginnings(fn string, opts Options, items []sprocket.Item) []int {
	all := framesOf(items)
	var begins []int
	switch fn {
	case "frames", "split":
		n := opts.FramesPerTask
		if fn == "split" {
			n = 1
		}
		for i := 0; i < len(all); i += n {
			begins = append(begins, i)
		}
	case "scene":
		if len(all) > 0 {
			begins = append(begins, 0)
		}
		for _, it := range items {
			for _, cut := range it.Cuts {
				if i := slices.IndexFunc(all, func(f frame) bool { return f.pts >= cut }); i >= 0 {
					begins = append(begins, i)
				}
			}
		}
		slices.Sort(begins)
		begins = slices.Compact(begins)
	}
	return begins
}

func chunkOf(items []sprocket.Item, f frame) int64 {
	for _, it := range items {
		if slices.Contains(framesOf([]sprocket.Item{it}), f) {
			return it.Chunk
		}
	}
	return -1
}

func TestFramesDeliversWhatIsCompleteAtOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		items := drawStream(t, "a")
		opts := drawOptions(t)
		f := mustNew(t, "frames", 1, opts)
		arrived := make([]bool, len(items)+1)
		var delivered int
		for _, it := range rapid.Permutation(items).Draw(t, "order") {
			out, err := f.Deliver(0, it)
			if err != nil {
				t.Fatal(err)
			}
			delivered += len(out)
			arrived[it.Seq] = true
			contiguous := len(framesOf(items[:slices.Index(arrived, false)]))
			if want := contiguous / opts.FramesPerTask; delivered != want {
				t.Fatalf("%d consecutive frames gave %d tasks of %d", contiguous, delivered, opts.FramesPerTask)
			}
		}
	})
}

// drawStreams makes streams of the same grid, which may end at different times.
func drawStreams(t *rapid.T) [][]sprocket.Item {
	grid := drawStream(t, "a")
	streams := make([][]sprocket.Item, rapid.IntRange(1, 4).Draw(t, "ports"))
	for port := range streams {
		streams[port] = clone(grid[:rapid.IntRange(0, len(grid)).Draw(t, "length")])
	}
	return streams
}

func TestPairDeliversEachGroupWhenItsLastItemArrives(t *testing.T) {
	for _, fn := range []string{"default", "pair"} {
		t.Run(fn, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				streams := drawStreams(t)
				if fn == "default" {
					streams = streams[:1]
				}
				f := mustNew(t, fn, len(streams), Options{})
				have := make(map[int64]int)
				for _, s := range drawArrivals(t, streams) {
					out, err := s.take(f)
					if err != nil {
						t.Fatal(err)
					}
					if s.end {
						if len(out) > 0 {
							t.Fatalf("the end of port %d completed %v", s.port, out)
						}
						continue
					}
					have[s.item.Seq]++
					complete := have[s.item.Seq] == len(streams)
					if complete != (len(out) == 1) {
						t.Fatalf("item %d of port %d: complete = %v, deliveries %v", s.item.Seq, s.port, complete, out)
					}
					for _, d := range out {
						checkGroup(t, d, streams)
					}
				}
				checkSurplus(t, f, streams)
			})
		})
	}
}

func checkGroup(t *rapid.T, d Delivery, streams [][]sprocket.Item) {
	for port, items := range streams {
		if diff := cmp.Diff([]sprocket.Item{items[d.Seq]}, d.Inputs[port]); diff != "" {
			t.Fatalf("task %d, port %d (-want +got):\n%s", d.Seq, port, diff)
		}
	}
}

// checkSurplus checks that a join ended with the shortest stream and counted
// the rest.
func checkSurplus(t *rapid.T, f Func, streams [][]sprocket.Item) {
	shortest, sum := len(streams[0]), 0
	for _, items := range streams {
		shortest = min(shortest, len(items))
		sum += len(items)
	}
	if f.Total() != int64(shortest) {
		t.Fatalf("Total() = %d, want %d", f.Total(), shortest)
	}
	if d, ok := f.(Dropper); ok && d.Dropped() != int64(sum-shortest*len(streams)) {
		t.Fatalf("Dropped() = %d, want %d", d.Dropped(), sum-shortest*len(streams))
	}
}

func TestAnyPairJoinsTheNthArrivals(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		streams := drawStreams(t)
		steps := drawArrivals(t, streams)
		arrivals := make([][]sprocket.Item, len(streams))
		for _, s := range steps {
			if !s.end {
				arrivals[s.port] = append(arrivals[s.port], s.item)
			}
		}
		f := mustNew(t, "anypair", len(streams), Options{})
		for n, d := range deliver(t, f, steps) {
			for port := range streams {
				if diff := cmp.Diff([]sprocket.Item{arrivals[port][n]}, d.Inputs[port]); diff != "" {
					t.Fatalf("task %d, port %d (-want +got):\n%s", n, port, diff)
				}
			}
		}
		checkSurplus(t, f, streams)
	})
}

func TestNothingIsHeldOnceAllPortsHaveEnded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		streams := drawStreams(t)
		for _, fn := range []string{"pair", "anypair"} {
			f := mustNew(t, fn, len(streams), Options{})
			deliver(t, f, drawArrivals(t, streams))
			held := 0
			switch f := f.(type) {
			case *pair:
				held = len(f.held)
			case *anyPair:
				for _, q := range f.queues {
					held += len(q)
				}
			}
			if held != 0 {
				t.Fatalf("%s holds %d items or groups", fn, held)
			}
		}
	})
}
