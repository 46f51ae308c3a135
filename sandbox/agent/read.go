package agent

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/volley-run/volley/sandbox/agent/frame"
)

// result is a frame that ends the initialisation or an invocation.
type result struct {
	kind        frame.Type
	contentType string
	errorType   string
	payload     []byte
	broken      bool
	exit        frame.Exit
	err         error
}

// read takes frames until the stream ends.
func (a *Agent) read() {
	defer close(a.done)
	dec := frame.NewDecoder(a.conn)
	for {
		t, body, err := dec.Next()
		if err == nil {
			err = a.handle(dec, t, body)
		}
		if err != nil {
			a.readErr = err
			return
		}
	}
}

// handle acts on one frame. An error ends the conversation.
func (a *Agent) handle(dec *frame.Decoder, t frame.Type, body []byte) error {
	switch t {
	case frame.TypeLog:
		l, err := frame.ParseLog(body)
		if err != nil {
			return err
		}
		a.log.lines(l)
		return nil
	case frame.TypeReady:
		a.deliver(nil, result{kind: t})
		return nil
	case frame.TypeRestored:
		if len(body) > 0 {
			return fmt.Errorf("%w: %s", errNotRestored, body)
		}
		return nil
	case frame.TypeQuiet:
		q, err := frame.ParseQuiet(body)
		if err != nil {
			return err
		}
		a.quieted(q)
		return nil
	case frame.TypeExited:
		r := result{kind: t, broken: true}
		if err := json.Unmarshal(body, &r.exit); err != nil {
			return fmt.Errorf("read why the function ended: %w", err)
		}
		a.mu.Lock()
		a.ended = true
		a.mu.Unlock()
		a.deliver(nil, r)
		return nil
	case frame.TypeInitError, frame.TypeResponse, frame.TypeError, frame.TypeStreamHead, frame.TypeStreamPiece, frame.TypeStreamEnd:
		reply, err := frame.ParseReply(body)
		if err != nil {
			return err
		}
		return a.reply(dec, t, reply)
	}
	return fmt.Errorf("%w: type %q from volley-init", frame.ErrMalformed, t)
}

// reply acts on what the function said.
func (a *Agent) reply(dec *frame.Decoder, t frame.Type, reply frame.ReplyView) error {
	a.mu.Lock()
	c := a.current
	a.mu.Unlock()
	if c == nil || c.id != string(reply.ID) {
		return nil // late: nobody waits for it any longer
	}
	switch t {
	case frame.TypeInitError, frame.TypeError:
		a.deliver(c, result{
			kind: t, errorType: string(reply.Kind), payload: bytes.Clone(reply.Payload), contentType: c.contentType, broken: reply.Broken,
		})
	case frame.TypeResponse:
		r := result{kind: t, contentType: string(reply.Kind), broken: reply.Broken}
		if c.stream == nil {
			r.payload = dec.Keep(reply.Payload)
		} else {
			a.piece(c, reply.Payload)
		}
		a.deliver(c, r)
	case frame.TypeStreamHead:
		c.contentType = string(reply.Kind)
	case frame.TypeStreamPiece:
		a.piece(c, reply.Payload)
	case frame.TypeStreamEnd:
		r := result{kind: t, contentType: c.contentType, payload: c.whole, broken: reply.Broken}
		if len(reply.Kind) > 0 {
			r.kind, r.errorType, r.payload = frame.TypeError, string(reply.Kind), bytes.Clone(reply.Payload)
		}
		a.deliver(c, r)
	}
	return nil
}

// piece passes a part of an answer on. It holds the lock while it does, so that
// Invoke cannot return before.
func (a *Agent) piece(c *call, p []byte) {
	if len(p) == 0 {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.current != c {
		return
	}
	c.streamed += int64(len(p))
	if c.stream != nil {
		if err := c.stream(p); err != nil {
			a.send(result{broken: true, err: fmt.Errorf("pass the answer on: %w", err)})
		}
		return
	}
	if c.streamed > frame.MaxResponse {
		a.send(result{kind: frame.TypeError, errorType: typeResponseTooLarge, payload: tooLarge().json(), broken: true})
		return
	}
	c.whole = append(c.whole, p...)
}

// deliver hands a result to whoever waits for c, or for anything if c is nil.
func (a *Agent) deliver(c *call, r result) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.current == nil || c != nil && a.current != c {
		return
	}
	a.send(r)
}

// send hands a result over. Of several for one invocation the first counts.
// The lock is held.
func (a *Agent) send(r result) {
	select {
	case a.results <- r:
	default:
	}
}
