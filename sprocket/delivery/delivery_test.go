package delivery

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/volley-run/volley/sprocket"
)

// frames is an item of one object, with frames at the given times.
func frames(seq, start, end int64, pts ...int64) sprocket.Item {
	it := sprocket.Item{Type: sprocket.Frames, Seq: seq, Chunk: seq, Start: start, End: end}
	if len(pts) > 0 {
		it.Pixels = pixels(320)
		it.Frames = []sprocket.FrameRange{run(seq, pts...)}
	}
	return it
}

func key(seq int64) string { return "object-" + string(rune('a'+seq)) }

func pixels(width int) *sprocket.Pixels {
	return &sprocket.Pixels{Width: width, Height: 180, Format: "rgb24"}
}

func withCuts(it sprocket.Item, cuts ...int64) sprocket.Item {
	it.Cuts = cuts
	return it
}

// regrouped is the one item that a regrouping function hands on.
func regrouped(seq, chunk, start, end int64, runs ...sprocket.FrameRange) Delivery {
	return Delivery{Seq: seq, Inputs: [][]sprocket.Item{{{
		Type: sprocket.Frames, Seq: seq, Chunk: chunk, Start: start, End: end, Frames: runs, Pixels: pixels(320),
	}}}}
}

func run(seq int64, pts ...int64) sprocket.FrameRange {
	return sprocket.FrameRange{Key: key(seq), Base: 10 * seq, PTS: pts}
}

func together(seq int64, items ...sprocket.Item) Delivery {
	d := Delivery{Seq: seq}
	for _, it := range items {
		d.Inputs = append(d.Inputs, []sprocket.Item{it})
	}
	return d
}

// step is one call: an item that arrives at port, or the end of port when end
// is set.
type step struct {
	port  int
	item  sprocket.Item
	end   bool
	count int64
	want  []Delivery
}

func arrives(port int, it sprocket.Item, want ...Delivery) step {
	return step{port: port, item: it, want: want}
}

func ends(port int, count int64, want ...Delivery) step {
	return step{port: port, end: true, count: count, want: want}
}

func (s step) take(f Func) ([]Delivery, error) {
	if s.end {
		return f.Close(s.port, s.count)
	}
	return f.Deliver(s.port, s.item)
}

func TestDeliveries(t *testing.T) {
	a0, a1, a2 := frames(0, 0, 10, 0, 5), frames(1, 10, 20, 10, 15), frames(2, 20, 30, 20, 25)
	empty1 := frames(1, 10, 20)
	b0, b1 := frames(0, 0, 10, 0, 2, 4), frames(1, 10, 20, 12)
	tests := []struct {
		name    string
		fn      string
		ports   int
		opts    Options
		steps   []step
		total   int64
		dropped int64
	}{
		{
			name: "default delivers an item at once although an earlier one is missing", fn: "default", ports: 1,
			steps: []step{
				arrives(0, a2, together(2, a2)),
				arrives(0, a0, together(0, a0)),
				arrives(0, empty1, together(1, empty1)),
				ends(0, 3),
			},
			total: 3,
		},
		{
			name: "default makes no task of an empty stream", fn: "default", ports: 1,
			steps: []step{ends(0, 0)},
		},
		{
			name: "pair delivers a group when its last item arrives", fn: "pair", ports: 2,
			steps: []step{
				arrives(0, a1), arrives(0, a0),
				arrives(1, b1, together(1, a1, b1)),
				arrives(1, b0, together(0, a0, b0)),
				ends(0, 2), ends(1, 2),
			},
			total: 2,
		},
		{
			name: "pair ends with the shortest stream and counts what it drops before and after", fn: "pair", ports: 2,
			steps: []step{
				arrives(0, a1), arrives(0, a0), arrives(1, b0, together(0, a0, b0)),
				ends(1, 1),
				arrives(0, a2),
				ends(0, 3),
			},
			total: 1, dropped: 2,
		},
		{
			name: "pair does not mind the times of items beyond the shortest stream", fn: "pair", ports: 3,
			steps: []step{
				arrives(0, a0), arrives(1, frames(0, 7, 9)),
				ends(2, 0), ends(0, 1), ends(1, 1),
			},
			dropped: 2,
		},
		{
			name: "pair with one stream is one to one", fn: "pair", ports: 1,
			steps: []step{arrives(0, a1, together(1, a1)), arrives(0, a0, together(0, a0)), ends(0, 2)},
			total: 2,
		},
		{
			name: "anypair joins the first arrivals whatever their places", fn: "anypair", ports: 2,
			steps: []step{
				arrives(0, a2), arrives(0, a0),
				arrives(1, b1, together(0, a2, b1)),
				arrives(1, b0, together(1, a0, b0)),
				ends(1, 2),
				arrives(0, a1),
				ends(0, 3),
			},
			total: 2, dropped: 1,
		},
		{
			name: "anypair drops what waits when the other stream ends", fn: "anypair", ports: 2,
			steps:   []step{arrives(0, a0), arrives(0, a1), ends(1, 0), ends(0, 2)},
			dropped: 2,
		},
		{
			name: "frames splits and joins objects and flushes the remainder", fn: "frames", ports: 1,
			opts: Options{FramesPerTask: 3},
			steps: []step{
				arrives(0, a0),
				arrives(0, a1, regrouped(0, 0, 0, 15, run(0, 0, 5), run(1, 10))),
				arrives(0, a2, regrouped(1, 1, 15, 30, run(1, 15), run(2, 20, 25))),
				arrives(0, frames(3, 30, 40, 30)),
				ends(0, 4, regrouped(2, 3, 30, 40, run(3, 30))),
			},
			total: 3,
		},
		{
			name: "frames cuts several tasks out of one item and waits for its turn", fn: "frames", ports: 1,
			opts: Options{FramesPerTask: 2},
			steps: []step{
				arrives(0, frames(1, 10, 20, 10, 12, 14)),
				arrives(0, a0,
					regrouped(0, 0, 0, 10, run(0, 0, 5)),
					regrouped(1, 1, 10, 14, run(1, 10, 12))),
				ends(0, 2, regrouped(2, 1, 14, 20, run(1, 14))),
			},
			total: 3,
		},
		{
			name: "frames passes over items without frames", fn: "frames", ports: 1,
			opts: Options{FramesPerTask: 3},
			steps: []step{
				arrives(0, frames(0, 0, 0)), arrives(0, frames(1, 0, 10, 5)), arrives(0, frames(2, 10, 20)),
				arrives(0, frames(3, 20, 30, 20)), arrives(0, frames(4, 30, 40)),
				ends(0, 5, regrouped(0, 1, 5, 30, run(1, 5), run(3, 20))),
			},
			total: 1,
		},
		{
			name: "frames keeps the objects of one item apart", fn: "frames", ports: 1,
			opts: Options{FramesPerTask: 2},
			steps: []step{
				arrives(0, sprocket.Item{Type: sprocket.Frames, End: 40, Chunk: 9, Pixels: pixels(320), Frames: []sprocket.FrameRange{
					run(0, 0), {Key: "nothing"}, run(1, 10, 20), run(2, 30),
				}},
					regrouped(0, 9, 0, 20, run(0, 0), run(1, 10)),
					regrouped(1, 9, 20, 40, run(1, 20), run(2, 30))),
				ends(0, 1),
			},
			total: 2,
		},
		{
			name: "split makes a task of each frame", fn: "split", ports: 1,
			steps: []step{
				arrives(0, empty1),
				arrives(0, a0, regrouped(0, 0, 0, 5, run(0, 0)), regrouped(1, 0, 5, 10, run(0, 5))),
				arrives(0, a2, regrouped(2, 2, 20, 25, run(2, 20)), regrouped(3, 2, 25, 30, run(2, 25))),
				ends(0, 3),
			},
			total: 4,
		},
		{
			name: "scene cuts inside and between items", fn: "scene", ports: 1,
			steps: []step{
				arrives(0, withCuts(a0, 0)),
				arrives(0, withCuts(a1, 15), regrouped(0, 0, 0, 15, run(0, 0, 5), run(1, 10))),
				arrives(0, withCuts(a2, 20), regrouped(1, 1, 15, 20, run(1, 15))),
				ends(0, 3, regrouped(2, 2, 20, 30, run(2, 20, 25))),
			},
			total: 3,
		},
		{
			name: "scene takes a cut between frames to mean the next one, even of another item", fn: "scene", ports: 1,
			steps: []step{
				arrives(0, withCuts(a0, 8, 3, 4), regrouped(0, 0, 0, 5, run(0, 0))),
				arrives(0, withCuts(empty1, 11)),
				arrives(0, a2, regrouped(1, 0, 5, 20, run(0, 5))),
				ends(0, 3, regrouped(2, 2, 20, 30, run(2, 20, 25))),
			},
			total: 3,
		},
		{
			name: "scene without cuts is one task", fn: "scene", ports: 1,
			steps: []step{
				arrives(0, a1), arrives(0, a0),
				ends(0, 2, regrouped(0, 0, 0, 20, run(0, 0, 5), run(1, 10, 15))),
			},
			total: 1,
		},
		{
			name: "scene makes no task when there is no frame", fn: "scene", ports: 1,
			steps: []step{arrives(0, withCuts(frames(0, 0, 10), 0, 5)), ends(0, 1)},
		},
		{
			name: "all waits for the end and restores the order", fn: "all", ports: 1,
			steps: []step{
				arrives(0, a2), arrives(0, a0), arrives(0, empty1),
				ends(0, 3, Delivery{Inputs: [][]sprocket.Item{{a0, empty1, a2}}}),
			},
			total: 1,
		},
		{
			name: "all waits for every stream, of which one may be empty", fn: "all", ports: 2,
			steps: []step{
				arrives(1, b1), ends(0, 0), arrives(1, b0),
				ends(1, 2, Delivery{Inputs: [][]sprocket.Item{nil, {b0, b1}}}),
			},
			total: 1,
		},
		{
			name: "all makes no task of empty streams", fn: "all", ports: 2,
			steps: []step{ends(0, 0), ends(1, 0)},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f, err := New(tt.fn, tt.ports, tt.opts)
			if err != nil {
				t.Fatal(err)
			}
			for i, s := range tt.steps {
				if got := f.Total(); got != -1 {
					t.Errorf("before step %d: Total() = %d, want -1", i, got)
				}
				got, err := s.take(f)
				if err != nil {
					t.Fatalf("step %d: %v", i, err)
				}
				if diff := cmp.Diff(s.want, got); diff != "" {
					t.Errorf("step %d: deliveries (-want +got):\n%s", i, diff)
				}
			}
			if got := f.Total(); got != tt.total {
				t.Errorf("Total() = %d, want %d", got, tt.total)
			}
			var dropped int64
			if d, ok := f.(Dropper); ok {
				dropped = d.Dropped()
			}
			if dropped != tt.dropped {
				t.Errorf("dropped = %d, want %d", dropped, tt.dropped)
			}
		})
	}
}

func TestFaultsOfStreams(t *testing.T) {
	a0, a1 := frames(0, 0, 10, 0, 5), frames(1, 10, 20, 10, 15)
	otherChunk := a0
	otherChunk.Chunk = 4
	wide := a1
	wide.Pixels = pixels(640)
	tests := []struct {
		name  string
		fn    string
		ports int
		steps []step // the last one fails
		want  string
	}{
		{"an item that comes twice in a row", "default", 1, []step{arrives(0, a0), arrives(0, a0)}, "deliver item 0: port 0: an item with this seq came before"},
		{"an early item that comes twice", "pair", 2, []step{arrives(1, a1), arrives(1, a1)}, "deliver item 1: port 1: an item with this seq came before"},
		{"an item with a negative seq", "all", 1, []step{arrives(0, frames(-1, 0, 0))}, "seq is negative"},
		{"an item after the end", "anypair", 2, []step{ends(0, 0), arrives(0, a0)}, "port 0 has ended after 0 items"},
		{"an item at a port that there is not", "pair", 2, []step{arrives(2, a0)}, "there is no port 2, only ports 0 to 1"},
		{"the end of a port that there is not", "default", 1, []step{ends(-1, 0)}, "there is no port -1, only port 0"},
		{"a port that ends twice", "frames", 1, []step{ends(0, 0), ends(0, 0)}, "it has ended before"},
		{"a missing item", "scene", 1, []step{arrives(0, a1), ends(0, 2)}, "close port 0 after 2 items: item 0 has not arrived"},
		{"more items than announced", "default", 1, []step{arrives(0, a0), ends(0, 0)}, "close port 0 after 0 items: 1 have arrived"},
		{"an item beyond those announced", "default", 1, []step{arrives(0, a1), ends(0, 0)}, "items beyond that have arrived"},
		{"a pair of different times", "pair", 2, []step{arrives(1, frames(0, 0, 9)), arrives(0, a0)}, "pair item 0: port 0 covers 0 to 10 but port 1 covers 0 to 9"},
		{"a pair of different chunks", "pair", 2, []step{arrives(0, a0), arrives(1, otherChunk)}, "pair item 0: at 0 to 10, port 0 is of chunk 0 but port 1 is of chunk 4"},
		{"chunks where frames are needed", "frames", 1, []step{arrives(0, sprocket.Item{Type: sprocket.Chunks})}, `frames are needed, but the item carries "chunks"`},
		{"frames out of order in an item", "split", 1, []step{arrives(0, frames(0, 0, 10, 5, 4))}, "deliver item 0: the frame at 4 follows one at 5"},
		{"frames out of order between items", "frames", 1, []step{arrives(0, frames(1, 10, 20, 5)), arrives(0, a0)}, "deliver item 1: the frame at 5 follows one at 5"},
		{"pictures of different sizes in one task", "frames", 1, []step{arrives(0, wide), arrives(0, a0)}, "the frame at 10 is {Width:640 "},
		{"a scene that starts before its item", "scene", 1, []step{arrives(0, withCuts(a0, 0)), arrives(0, withCuts(a1, 9))}, "deliver item 1: a scene cannot start at 9"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f, err := New(tt.fn, tt.ports, Options{FramesPerTask: 3})
			if err != nil {
				t.Fatal(err)
			}
			for i, s := range tt.steps {
				got, err := s.take(f)
				if i < len(tt.steps)-1 {
					if err != nil {
						t.Fatalf("step %d: %v", i, err)
					}
					continue
				}
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("error = %v, want one with %q", err, tt.want)
				}
				if got != nil {
					t.Errorf("deliveries beside the error: %v", got)
				}
			}
		})
	}
}

func TestNewRefuses(t *testing.T) {
	tests := []struct {
		name  string
		fn    string
		ports int
		want  string
	}{
		{"an unknown name and lists the known ones", "pears", 1, `unknown delivery function "pears"; there are all, anypair, default, frames, pair, scene, split`},
		{"a node without streams", "pair", 0, "at least one incoming stream"},
		{"default for several streams and names pair", "default", 2, "delivery function default: it takes one incoming stream, not 2; to join streams use pair"},
		{"split for several streams", "split", 3, "it takes one incoming stream, not 3"},
		{"scene for several streams", "scene", 2, "it takes one incoming stream"},
		{"frames without a number of frames", "frames", 1, "delivery function frames: the number of frames in a task must be at least 1, not 0"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f, err := New(tt.fn, tt.ports, Options{})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("error = %v, want one with %q", err, tt.want)
			}
			if f != nil {
				t.Errorf("a function beside the error: %v", f)
			}
			if got, want := errors.Is(err, ErrUnknown), tt.fn == "pears"; got != want {
				t.Errorf("errors.Is(err, ErrUnknown) = %v, want %v", got, want)
			}
		})
	}
}

func TestRegistryTakesFunctionsOfUsers(t *testing.T) {
	r := Builtin()
	r["mine"] = r["all"]
	f, err := r.New("mine", 2, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Close(0, 0); err != nil {
		t.Error(err)
	}
	if _, err := New("mine", 2, Options{}); !errors.Is(err, ErrUnknown) {
		t.Errorf("a registry changed the built-in one: %v", err)
	}
}
