package invoker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/sophon/bus"
	"github.com/volley-run/volley/sophon/wire"
)

const (
	// maxPieceBytes is the largest piece of a stream.
	maxPieceBytes = 128 << 10
	// streamWindowBytes may be on their way before the receiver is asked
	// whether it follows.
	streamWindowBytes = 512 << 10
	// streamPatience is how long the receiver may take to answer that.
	streamPatience = 30 * time.Second
)

// stream sends the pieces of one response. It is used by one goroutine at a time.
type stream struct {
	bus       bus.Bus
	subject   string
	maxPiece  int
	seq       uint64
	sentBytes int64
	onItsWay  int
}

func newStream(b bus.Bus, subject string, maxPayload int) *stream {
	return &stream{bus: b, subject: subject, maxPiece: min(maxPieceBytes, maxPayload)}
}

// started reports whether anything was sent.
func (s *stream) started() bool { return s.seq > 0 }

// write sends a part of the response. It waits while the receiver is slow, but
// no longer than streamPatience.
func (s *stream) write(ctx context.Context, part []byte) error {
	if s.sentBytes += int64(len(part)); s.sentBytes > function.MaxStreamBytes {
		return function.Errorf(function.TooLarge, "the streamed response is larger than %d bytes", function.MaxStreamBytes)
	}
	for len(part) > 0 {
		n := min(len(part), s.maxPiece)
		if err := s.send(ctx, &wire.Piece{Data: part[:n]}); err != nil {
			return err
		}
		part = part[n:]
	}
	return nil
}

func (s *stream) send(ctx context.Context, p *wire.Piece) error {
	s.seq++
	p.Seq = s.seq
	data, err := proto.Marshal(p)
	if err != nil {
		return fmt.Errorf("encode piece of a stream: %w", err)
	}
	if s.onItsWay += len(p.GetData()); s.onItsWay < streamWindowBytes || p.GetLast() {
		if err := s.bus.Publish(s.subject, data); err != nil {
			return fmt.Errorf("send piece of a stream: %w", err)
		}
		return nil
	}
	s.onItsWay = 0
	ctx, cancel := context.WithTimeout(ctx, streamPatience)
	defer cancel()
	switch _, err := s.bus.Request(ctx, s.subject, data); {
	case errors.Is(err, bus.ErrNoResponder):
		return fmt.Errorf("nobody reads the streamed response: %w", err)
	case err != nil:
		return fmt.Errorf("wait for the reader of the streamed response: %w", err)
	}
	return nil
}

// close ends the stream after an invocation that function code has ended: with
// what the result holds, which the stream then carries instead. A failure of
// the platform ends no stream, the result tells of it.
func (s *stream) close(res *wire.Result, contentType string) error {
	if len(res.GetError()) > 0 {
		return nil
	}
	last := &wire.Piece{Last: true, ContentType: contentType, FunctionError: res.GetFunctionError()}
	switch {
	case res.GetFunctionError() != "":
		last.ErrorPayload = res.GetPayload()
	case len(res.GetPayload()) > 0:
		ctx, cancel := context.WithTimeout(context.Background(), streamPatience)
		defer cancel()
		if err := s.write(ctx, res.GetPayload()); err != nil {
			return err
		}
		res.Payload, res.Streamed = nil, true
	}
	return s.send(context.Background(), last)
}
