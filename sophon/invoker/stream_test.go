package invoker

import (
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/sophon/bus"
	"github.com/volley-run/volley/sophon/wire"
)

// reader takes a stream. It answers only if it follows.
type reader struct {
	mu      sync.Mutex
	follows bool
	pieces  []*wire.Piece
	bytes   int
	pending []string // replies that wait until it follows
}

func newReader(t *testing.T, b bus.Bus, subject string, follows bool) *reader {
	t.Helper()
	r := &reader{follows: follows}
	_, err := b.Subscribe(subject, func(m bus.Message) {
		p := &wire.Piece{}
		if err := proto.Unmarshal(m.Data, p); err != nil {
			t.Error(err)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.pieces = append(r.pieces, p)
		r.bytes += len(p.GetData())
		if m.Reply == "" {
			return
		}
		if !r.follows {
			r.pending = append(r.pending, m.Reply)
			return
		}
		if err := b.Publish(m.Reply, nil); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// follow lets the stream go on.
func (r *reader) follow(t *testing.T, b bus.Bus) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.follows = true
	for _, reply := range r.pending {
		if err := b.Publish(reply, nil); err != nil {
			t.Fatal(err)
		}
	}
}

// check checks that the pieces come without a gap, and returns the last one.
func (r *reader) check(t *testing.T) *wire.Piece {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, p := range r.pieces {
		if p.GetSeq() != uint64(i+1) || p.GetLast() != (i == len(r.pieces)-1) {
			t.Fatalf("piece %d has number %d, last %v", i, p.GetSeq(), p.GetLast())
		}
	}
	return r.pieces[len(r.pieces)-1]
}

func (r *reader) size() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.bytes
}

// streamed is a job whose response is streamed to the subject "s".
func streamed(w fakeWork) *wire.Run {
	run := job("j", "c1", w)
	run.StreamSubject = "s"
	run.TimeoutNano = int64(10 * time.Minute)
	return run
}

func TestInvokerStreamsAResponseInOrder(t *testing.T) {
	tests := []struct {
		name  string
		work  fakeWork
		bytes int
	}{
		{"of small pieces", fakeWork{Stream: []int{1, 10, 100}}, 111},
		{"of pieces that are too large for the bus", fakeWork{Stream: []int{3 << 20, 1}}, 3<<20 + 1},
		{"of a function that does not stream", fakeWork{Answer: 1000}, 1000},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			live(t, nil, func(t *testing.T, r *rig) {
				s := newReader(t, r.own, "s", true)
				r.run(streamed(tt.work))
				r.after(time.Second)
				res := r.result("j")
				if !res.GetStreamed() || len(res.GetPayload()) > 0 {
					t.Errorf("the result is %v", res)
				}
				if s.check(t); s.size() != tt.bytes {
					t.Errorf("%d bytes were streamed", s.size())
				}
			}, bus.WithMaxMessageBytes(1<<20))
		})
	}
}

func TestStreamWaitsForASlowReader(t *testing.T) {
	live(t, nil, func(t *testing.T, r *rig) {
		s := newReader(t, r.own, "s", false)
		r.run(streamed(fakeWork{Stream: []int{1 << 20, 1 << 20, 1 << 20}}))
		r.after(20 * time.Second)
		if s.size() > streamWindowBytes {
			t.Errorf("%d bytes were sent to a reader that does not follow", s.size())
		}
		s.follow(t, r.own)
		r.after(time.Second)
		r.result("j")
		if s.check(t); s.size() != 3<<20 {
			t.Errorf("%d bytes were streamed", s.size())
		}
	})
}

func TestStreamEndsTheInvocationWhenItsReaderDoesNot(t *testing.T) {
	tests := []struct {
		name  string
		there bool // but does not follow
		after time.Duration
	}{{"read", false, time.Second}, {"follow", true, streamPatience + 5*time.Second}}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			live(t, nil, func(t *testing.T, r *rig) {
				if tt.there {
					newReader(t, r.own, "s", false)
				}
				r.run(streamed(fakeWork{Stream: []int{1 << 20, 1 << 20}}))
				r.after(tt.after)
				if e := errorOf(t, r.result("j")); !strings.Contains(e.Message, "reader") && !strings.Contains(e.Message, "nobody reads") {
					t.Errorf("the error is %v", e)
				}
				if len(r.containers()) != 0 {
					t.Errorf("containers: %v", r.containers())
				}
			})
		})
	}
}

func TestStreamTellsOfAFailureOfTheFunction(t *testing.T) {
	live(t, nil, func(t *testing.T, r *rig) {
		s := newReader(t, r.own, "s", true)
		r.run(streamed(fakeWork{Fail: true}))
		r.after(time.Second)
		res := r.result("j")
		last := s.check(t)
		if last.GetFunctionError() != function.Unhandled || string(last.GetErrorPayload()) != string(res.GetPayload()) || res.GetStreamed() {
			t.Errorf("the last piece is %v, the result %v", last, res)
		}
	})
}

func TestStreamIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := bus.NewMemory()
		b := server.Connect()
		defer func() { _ = b.Close() }()
		newReader(t, b, "s", true)
		s := newStream(b, "s", 1<<20)
		part := make([]byte, 1<<20)
		for range function.MaxStreamBytes >> 20 {
			if err := s.write(t.Context(), part); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.write(t.Context(), part); function.CodeOf(err) != function.TooLarge {
			t.Errorf("beyond the bound the error is %v", err)
		}
	})
}
