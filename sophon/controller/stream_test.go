package controller

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"

	"google.golang.org/protobuf/proto"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/sophon/wire"
)

// streamed runs an invocation whose response the invoker sends in pieces.
func (w *world) streamed(c *process, onPiece func([]byte) error) (kind, text string, pieces int, res function.Result, err error) {
	var b strings.Builder
	res, err = c.InvokeStream(context.Background(), function.Invocation{ID: "r1", Function: "f", Payload: []byte(`"whole"`)},
		func(contentType string) { kind = contentType },
		func(p []byte) error {
			pieces++
			b.Write(p)
			return onPiece(p)
		})
	return kind, b.String(), pieces, res, err
}

func fine([]byte) error { return nil }

// pieces sends pieces with these numbers, the last one marked so.
func (f *fakeInvoker) pieces(t testing.TB, subject string, seqs ...uint64) {
	for i, seq := range seqs {
		data, err := proto.Marshal(&wire.Piece{Seq: seq, Data: []byte{byte('a' + i)}, ContentType: "text/plain", Last: i == len(seqs)-1})
		if err == nil {
			err = f.conn.Publish(subject, data)
		}
		if err != nil {
			t.Error(err)
		}
	}
}

func TestAStreamIsPassedOnPieceByPiece(t *testing.T) {
	inWorld(t, func(w *world) {
		inv := w.invoker("inv-0", 1024)
		inv.run = func(r *wire.Run) (*wire.Result, bool) {
			inv.pieces(t, r.StreamSubject, 1, 2, 3)
			return &wire.Result{RequestId: r.RequestId, Streamed: true}, false
		}
		c := w.controller("a")
		w.ready(c)
		w.create(c, "f")
		kind, text, n, res, err := w.streamed(c, fine)
		if err != nil || kind != "text/plain" || text != "abc" || n != 3 || !res.Cold {
			t.Errorf("%q of type %q in %d pieces, %+v, %v", text, kind, n, res, err)
		}
	})
}

func TestAResponseThatIsNotStreamedIsOnePiece(t *testing.T) {
	inWorld(t, func(w *world) {
		w.invoker("inv-0", 1024)
		c := w.controller("a")
		w.ready(c)
		w.create(c, "f")
		_, text, n, res, err := w.streamed(c, fine)
		if err != nil || text != `"whole"` || n != 1 || res.Payload != nil {
			t.Errorf("%q in %d pieces, %+v, %v", text, n, res, err)
		}
	})
}

func TestAStreamWithAGapIsBroken(t *testing.T) {
	for name, seqs := range map[string][]uint64{"in the middle": {1, 3}, "at the start": {2}} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				inv := w.invoker("inv-0", 1024)
				inv.run = func(r *wire.Run) (*wire.Result, bool) {
					inv.pieces(w.t, r.StreamSubject, seqs...)
					return nil, true
				}
				c := w.controller("a")
				w.ready(c)
				w.create(c, "f")
				_, _, _, _, err := w.streamed(c, fine)
				contains(w.t, wantCode(w.t, err, function.Internal).Message, "was lost")
				synctest.Wait()
				inv.set(func(f *fakeInvoker) {
					if f.cancelled["r1"] != 1 {
						w.t.Error("the function was not cancelled")
					}
				})
			})
		})
	}
}

func TestAStreamWhoseEndIsLostIsBroken(t *testing.T) {
	inWorld(t, func(w *world) {
		inv := w.invoker("inv-0", 1024)
		inv.run = func(r *wire.Run) (*wire.Result, bool) {
			return &wire.Result{RequestId: r.RequestId, Streamed: true}, false
		}
		c := w.controller("a")
		w.ready(c)
		w.create(c, "f")
		_, _, _, _, err := w.streamed(c, fine)
		wantCode(t, err, function.Internal)
	})
}

func TestAFailureBeforeTheFirstPieceIsAResult(t *testing.T) {
	inWorld(t, func(w *world) {
		inv := w.invoker("inv-0", 1024)
		inv.run = func(r *wire.Run) (*wire.Result, bool) { return failed(r), false }
		c := w.controller("a")
		w.ready(c)
		w.create(c, "f")
		_, _, n, res, err := w.streamed(c, fine)
		if err != nil || n != 0 || res.FunctionError != function.Unhandled || len(res.Payload) == 0 {
			t.Errorf("%d pieces, %+v, %v", n, res, err)
		}
	})
}

func TestAReaderThatFailsCancelsTheStream(t *testing.T) {
	inWorld(t, func(w *world) {
		inv := w.invoker("inv-0", 1024)
		inv.run = func(r *wire.Run) (*wire.Result, bool) {
			inv.pieces(t, r.StreamSubject, 1, 2)
			return nil, true
		}
		c := w.controller("a")
		w.ready(c)
		w.create(c, "f")
		gone := errors.New("the client has gone")
		_, _, n, _, err := w.streamed(c, func([]byte) error { return gone })
		if n != 1 || !errors.Is(err, gone) {
			t.Errorf("%d pieces, %v", n, err)
		}
		synctest.Wait()
		inv.set(func(f *fakeInvoker) {
			if f.cancelled["r1"] != 1 {
				t.Error("the function was not cancelled")
			}
		})
	})
}
