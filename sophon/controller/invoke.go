package controller

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/sophon/bus"
	"github.com/volley-run/volley/sophon/wire"
)

// Invoke runs an invocation and waits for its result. A function that fails is
// no error but a Result with FunctionError. Errors are *function.Error: among
// them NotFound; TooManyRequests when a limit on concurrency is reached, or
// when nothing fits until the queue's deadline; InvokerLost; Unavailable when
// this controller does not lead or ceases to; TooLarge. When the context ends
// first, its error is wrapped and the function is cancelled.
//
// An empty ID and a zero Received are filled in.
func (c *Controller) Invoke(ctx context.Context, inv function.Invocation) (function.Result, error) {
	return c.invoke(ctx, inv, nil)
}

// stream receives the pieces of a streamed response.
type stream struct {
	start func(contentType string)
	piece func([]byte) error
	inbox string
	// pieces come from the bus; broken is closed when one is missing.
	pieces chan received
}

// received is one piece; what follows it waits until reply is answered.
type received struct {
	piece *wire.Piece
	reply string
}

// InvokeStream is Invoke with the response handed on as it is made: onStart
// once with its content type (empty if the function named none), then onPiece
// for each piece, in order, from the calling goroutine. An error of onPiece
// cancels the invocation and is returned, wrapped. The Result has no payload
// unless the function failed. A function that does not stream gives one piece;
// one that fails before it has sent anything gives none.
func (c *Controller) InvokeStream(ctx context.Context, inv function.Invocation, onStart func(contentType string), onPiece func([]byte) error) (function.Result, error) {
	return c.invoke(ctx, inv, &stream{start: onStart, piece: onPiece})
}

// pieceBuffer is how many pieces wait for a slow reader; the invoker waits for
// an answer long before.
const pieceBuffer = 1024

func (c *Controller) invoke(ctx context.Context, inv function.Invocation, s *stream) (function.Result, error) {
	t, err := c.leading()
	if err != nil {
		return function.Result{}, err
	}
	k, err := c.newCall(inv)
	if err != nil {
		return function.Result{}, err
	}
	if s != nil {
		sub, err := c.listen(s)
		if err != nil {
			return function.Result{}, err
		}
		defer func() { _ = sub.Unsubscribe() }() // nothing comes any more
		k.stream = s.inbox
	}
	k.trace = c.tracing.begin(ctx, k)
	if err := t.submit(k); err != nil {
		c.metrics.refused(k, err)
		k.trace.end(t, k, err)
		return function.Result{}, err
	}
	err = t.await(ctx, k, s)
	if err == nil && k.err != nil {
		err = k.err
	}
	c.metrics.observe(k, err)
	k.trace.end(t, k, err)
	if err != nil {
		return function.Result{}, err
	}
	return k.result, nil
}

// newCall checks an invocation and makes a call of it.
func (c *Controller) newCall(inv function.Invocation) (*call, error) {
	e, err := c.registry.lookup(inv.Function)
	if err != nil {
		return nil, err
	}
	if inv.ID == "" {
		inv.ID = newRequestID()
	}
	if inv.Received.IsZero() {
		inv.Received = c.cfg.WallClock()
	}
	if inv.Attempt == 0 {
		inv.Attempt = 1
	}
	size := int64(len(inv.Payload) + len(inv.ClientContext) + len(e.json))
	if limit := c.cfg.Bus.MaxMessageBytes() - messageOverhead; size > limit {
		return nil, function.Errorf(function.TooLarge, "the payload has %d bytes; use at most %d",
			len(inv.Payload), limit-int64(len(inv.ClientContext)+len(e.json)))
	}
	return &call{inv: inv, entry: e, done: make(chan struct{})}, nil
}

// messageOverhead is more than what a Run adds to what it carries.
const messageOverhead = 16 << 10

// await waits for the end of a call, and passes its pieces on.
func (t *term) await(ctx context.Context, k *call, s *stream) error {
	if s == nil {
		select {
		case <-k.done:
			return nil
		case <-ctx.Done():
			t.abandon(k)
			return gone(ctx, k)
		}
	}
	if err := t.pump(ctx, k, s); err != nil {
		t.abandon(k)
		return err
	}
	return nil
}

func gone(ctx context.Context, k *call) error {
	return fmt.Errorf("wait for function %s: %w", k.inv.Function, context.Cause(ctx))
}

// lastPieces is how long the end of a stream may take after the result.
const lastPieces = 5 * time.Second

// pump passes pieces on until stream and call have ended.
func (t *term) pump(ctx context.Context, k *call, s *stream) error {
	var next uint64 = 1
	started, ended := false, false
	done := k.done
	var late <-chan time.Time
	for !ended {
		select {
		case <-ctx.Done():
			return gone(ctx, k)
		case <-done:
			if k.err != nil {
				return nil
			}
			if !k.streamed {
				return s.whole(k)
			}
			done = nil
			timer := time.NewTimer(lastPieces)
			defer timer.Stop()
			late = timer.C
		case <-late:
			return broken(k)
		case r := <-s.pieces:
			p := r.piece
			if p.Seq != next {
				return broken(k)
			}
			next++
			if !started {
				started = true
				s.start(p.ContentType)
			}
			if len(p.Data) > 0 {
				if err := s.piece(p.Data); err != nil {
					return fmt.Errorf("pass the response of function %s on: %w", k.inv.Function, err)
				}
			}
			if r.reply != "" {
				_ = t.c.cfg.Bus.Publish(r.reply, nil) // the invoker ends the stream without it
			}
			ended = p.Last
		}
	}
	select {
	case <-k.done:
		return nil
	case <-ctx.Done():
		return gone(ctx, k)
	}
}

func broken(k *call) error {
	return function.Errorf(function.Internal, "a piece of the response of function %s was lost: retry", k.inv.Function)
}

// whole passes on the response of a function that does not stream.
func (s *stream) whole(k *call) error {
	if k.result.FunctionError != "" {
		return nil
	}
	s.start("")
	if len(k.result.Payload) > 0 {
		if err := s.piece(k.result.Payload); err != nil {
			return fmt.Errorf("pass the response of function %s on: %w", k.inv.Function, err)
		}
	}
	k.result.Payload = nil
	return nil
}

// listen subscribes to a stream's pieces.
func (c *Controller) listen(s *stream) (bus.Subscription, error) {
	s.inbox = c.cfg.Bus.NewInbox()
	s.pieces = make(chan received, pieceBuffer)
	sub, err := c.cfg.Bus.Subscribe(s.inbox, func(m bus.Message) {
		p := &wire.Piece{}
		if err := proto.Unmarshal(m.Data, p); err != nil {
			c.log.Warn("dropped a piece of a response that cannot be read", "bytes", len(m.Data), "error", err)
			return // the next one shows the gap
		}
		select {
		case s.pieces <- received{p, m.Reply}:
		default: // likewise
		}
	})
	if err != nil {
		return nil, busError("subscribe to the response", err)
	}
	return sub, nil
}
