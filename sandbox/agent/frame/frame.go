// Package frame is the conversation between the host and volley-init, the
// agent in a sandbox, as bytes. It uses the standard library only, because
// volley-init has to stay small.
//
// The two talk over one stream of bytes in each direction: pipes, a socket or
// a virtual serial line. Each direction carries frames:
//
//	offset  size  what
//	0       1     type
//	1       4     length n of the body, big-endian, at most MaxBody
//	5       n     body
//
// The host begins with Boot. volley-init starts the function and answers with
// Ready, when the function asks for its first event, or with InitError or
// Exited. Then the host sends one Event at a time and gets one Response, one
// Error, one Exited, or a StreamHead with StreamPieces and a StreamEnd, each
// with the event's request id. Logs come at any time; those that a function
// wrote before it answered come before the answer. After Exited, volley-init
// ends, and so does the stream. volley-init also ends, and takes the function
// with it, when the stream from the host ends.
//
// A virtual machine can be written down and go on from there, many times and
// elsewhere. Before that the host sends Quiesce, and volley-init answers with
// Quiet when the function has asked for its next event, all that it wrote has
// been sent, and nothing else is under way. To a machine that goes on the host
// sends Restore instead of Boot. The first Event may follow at once: frames are
// acted on in their order, so the event finds the clock set and random numbers
// that no other machine has. volley-init answers with Restored, possibly after
// the answer to that event; if it tells an error, Exited follows, and no event
// has reached the function since.
//
// Inside bodies, numbers are big-endian, and a string is its length as an
// unsigned varint followed by its bytes.
package frame

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
)

// Type says what a frame is.
type Type byte

// The frames from the host.
const (
	// TypeBoot is the first frame: a Boot as JSON.
	TypeBoot Type = 'B'
	// TypeEvent is an Event.
	TypeEvent Type = 'E'
	// TypeCancel has the request id of an invocation as its body, which is to
	// be ended at once. That ends the sandbox.
	TypeCancel Type = 'C'
	// TypeShutdown asks volley-init to end the function and itself.
	TypeShutdown Type = 'Q'
	// TypeQuiesce is a Quiesce.
	TypeQuiesce Type = 'S'
	// TypeRestore is a Restore.
	TypeRestore Type = 'T'
)

// The frames from volley-init.
const (
	// TypeReady says that the function asked for its first event. The body is
	// empty.
	TypeReady Type = 'R'
	// TypeInitError is a Reply without request id: what the function reported
	// instead of asking for an event.
	TypeInitError Type = 'I'
	// TypeResponse is a Reply with the whole answer.
	TypeResponse Type = 'A'
	// TypeError is a Reply with the error that the function, or volley-init
	// for it, reports.
	TypeError Type = 'F'
	// TypeStreamHead is a Reply that begins a streamed answer.
	TypeStreamHead Type = 'H'
	// TypeStreamPiece is a Reply with the next bytes of it.
	TypeStreamPiece Type = 'P'
	// TypeStreamEnd is a Reply that ends it: with an error if Kind is set.
	TypeStreamEnd Type = 'Z'
	// TypeLog is a Log.
	TypeLog Type = 'L'
	// TypeQuiet is a Quiet.
	TypeQuiet Type = 'M'
	// TypeRestored answers a TypeRestore. The body is text that says what went
	// wrong, or empty.
	TypeRestored Type = 'D'
	// TypeExited is an Exit as JSON. It is the last frame.
	TypeExited Type = 'X'
)

// Limits in bytes.
const (
	// MaxBody bounds the body of every frame.
	MaxBody = 8 << 20
	// MaxResponse bounds an answer that is not streamed; it is AWS's 6 MiB
	// and a little.
	MaxResponse = 6<<20 + 100
	// MaxStream bounds a streamed answer.
	MaxStream = 200 << 20
	// MaxLine bounds a line of log; longer ones are cut into several.
	MaxLine = 256 << 10
)

const (
	headerBytes = 5
	// keepBytes is how large a buffer may grow before it is given up after use.
	keepBytes = 256 << 10
	// joinBytes is how large a body may be to be copied beside its header for
	// the sake of one write instead of two.
	joinBytes = 64 << 10
)

// ErrMalformed says, wrapped, that bytes are no frame or body.
var ErrMalformed = errors.New("malformed frame")

// Encoder writes frames. It may be used concurrently.
type Encoder struct {
	mu  sync.Mutex
	w   io.Writer
	buf []byte
}

// NewEncoder returns an Encoder that writes to w, without buffering beyond a
// frame.
func NewEncoder(w io.Writer) *Encoder { return &Encoder{w: w} }

// A body appends its bytes up to, but without, the trailing payload.
type body interface {
	appendHead(b []byte) []byte
	payload() []byte
}

// Encode writes a frame with the given bytes as its body.
func (e *Encoder) Encode(t Type, raw []byte) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.write(t, e.start(), raw)
}

// JSON writes a frame with v as JSON.
func (e *Encoder) JSON(t Type, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("write frame %q: %w", t, err)
	}
	return e.Encode(t, b)
}

// Event writes a TypeEvent.
func (e *Encoder) Event(ev *Event) error { return e.encode(TypeEvent, ev) }

// Reply writes a frame of a type whose body is a Reply.
func (e *Encoder) Reply(t Type, r *Reply) error { return e.encode(t, r) }

// Log writes a TypeLog.
func (e *Encoder) Log(l *Log) error { return e.encode(TypeLog, l) }

func (e *Encoder) encode(t Type, v body) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.write(t, v.appendHead(e.start()), v.payload())
}

// start returns the buffer with room for the header.
func (e *Encoder) start() []byte {
	return append(e.buf[:0], 0, 0, 0, 0, 0)
}

// write completes the frame whose header and head of body are in b.
func (e *Encoder) write(t Type, b, payload []byte) error {
	n := len(b) - headerBytes + len(payload)
	if n > MaxBody {
		return fmt.Errorf("write frame %q: body of %d bytes is over %d", t, n, MaxBody)
	}
	b[0] = byte(t)
	binary.BigEndian.PutUint32(b[1:], uint32(n))
	together := len(payload) <= joinBytes
	if together {
		b = append(b, payload...)
	}
	e.buf = b
	if cap(b) > keepBytes {
		e.buf = nil
	}
	if _, err := e.w.Write(b); err != nil {
		return fmt.Errorf("write frame %q: %w", t, err)
	}
	if !together {
		if _, err := e.w.Write(payload); err != nil {
			return fmt.Errorf("write frame %q: %w", t, err)
		}
	}
	return nil
}

// Decoder reads frames. It may be used by one goroutine at a time.
type Decoder struct {
	r   *bufio.Reader
	buf []byte
}

// NewDecoder returns a Decoder that reads from r, ahead of what it returns.
func NewDecoder(r io.Reader) *Decoder {
	return &Decoder{r: bufio.NewReaderSize(r, 16<<10)}
}

// Next returns the next frame. The body is valid until the next call; see
// Keep. The error is io.EOF if the stream ends between frames,
// io.ErrUnexpectedEOF if it ends inside one, and wraps ErrMalformed if a
// length is over MaxBody. The type is not checked.
func (d *Decoder) Next() (Type, []byte, error) {
	header, err := d.r.Peek(headerBytes)
	if err != nil {
		if len(header) > 0 && errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	t := Type(header[0])
	length := binary.BigEndian.Uint32(header[1:])
	if length > MaxBody {
		return 0, nil, fmt.Errorf("%w: type %q with a body of %d bytes, over %d", ErrMalformed, t, length, MaxBody)
	}
	if _, err := d.r.Discard(headerBytes); err != nil {
		return 0, nil, err
	}
	n := int(length)
	if cap(d.buf) < n || cap(d.buf) > keepBytes && n <= keepBytes {
		d.buf = make([]byte, max(n, 4<<10))
	}
	b := d.buf[:n]
	if _, err := io.ReadFull(d.r, b); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	return t, b, nil
}

// Buffered says whether more of the stream than what Next has returned has been
// read already.
func (d *Decoder) Buffered() bool { return d.r.Buffered() > 0 }

// Keep returns b, a part of the body that Next returned last, as bytes that
// stay valid. Large ones are not copied.
func (d *Decoder) Keep(b []byte) []byte {
	if 2*len(b) < cap(d.buf) {
		return bytes.Clone(b)
	}
	d.buf = nil
	return b
}
