package frame

import (
	"encoding/binary"
	"fmt"
	"time"
)

// Boot says what volley-init is to run and how. Zero limits mean defaults.
type Boot struct {
	// Argv is the function's program and arguments. A program without a slash
	// is looked for in the PATH of Env.
	Argv []string `json:"argv"`
	// Env is the function's whole environment, as NAME=value; volley-init adds
	// AWS_LAMBDA_RUNTIME_API.
	Env []string `json:"env"`
	// Dir is the working directory.
	Dir string `json:"dir"`
	// Credential is whom the function runs as; nil is as volley-init itself.
	Credential *Credential `json:"credential,omitempty"`
	// ARN is told to the function with every event.
	ARN string `json:"arn"`
	// Port is where the Runtime API listens on 127.0.0.1; 0 lets the system
	// choose.
	Port int `json:"port,omitempty"`
	// InitTimeout bounds the time until the function asks for its first event;
	// the default is 10 s.
	InitTimeout time.Duration `json:"initTimeout,omitempty"`
	// Grace is the time between SIGTERM and SIGKILL; the default is 500 ms.
	Grace time.Duration `json:"grace,omitempty"`
	// MaxLogLines and MaxLogBytes bound the log of one invocation; the defaults
	// are 10,000 lines and 8 MiB. What is over is counted and dropped.
	MaxLogLines int `json:"maxLogLines,omitempty"`
	MaxLogBytes int `json:"maxLogBytes,omitempty"`
	// Limits are set for the function's processes.
	Limits Limits `json:"limits,omitzero"`
	// Network is how a virtual machine is on a network. nil: it is on none, or
	// what is in the guest sees to that.
	Network *Network `json:"network,omitempty"`
}

// Credential is a user and group id.
type Credential struct {
	UID uint32 `json:"uid"`
	GID uint32 `json:"gid"`
}

// Limits are resource limits (setrlimit) that a sandbox without other means
// can set. Zero leaves a limit as it is.
type Limits struct {
	// OpenFiles bounds file descriptors.
	OpenFiles uint64 `json:"openFiles,omitempty"`
	// FileBytes bounds the size of each file.
	FileBytes uint64 `json:"fileBytes,omitempty"`
	// Processes bounds processes and threads of the function's user, which must
	// not be root.
	Processes uint64 `json:"processes,omitempty"`
	// NoCore says that a crash leaves no memory dump.
	NoCore bool `json:"noCore,omitempty"`
}

// Defaults of Boot.
const (
	DefaultInitTimeout = 10 * time.Second
	DefaultGrace       = 500 * time.Millisecond
	DefaultMaxLogLines = 10_000
	DefaultMaxLogBytes = 8 << 20
)

// SetDefaults fills in the limits that are zero.
func (b *Boot) SetDefaults() {
	if b.InitTimeout == 0 {
		b.InitTimeout = DefaultInitTimeout
	}
	if b.Grace == 0 {
		b.Grace = DefaultGrace
	}
	if b.MaxLogLines == 0 {
		b.MaxLogLines = DefaultMaxLogLines
	}
	if b.MaxLogBytes == 0 {
		b.MaxLogBytes = DefaultMaxLogBytes
	}
}

// Event is an invocation as the function gets it. Its body is Deadline (8
// bytes), Budget (8 bytes), three strings and the payload.
type Event struct {
	// Deadline is when the function is killed, in microseconds since 1970; the
	// function is told.
	Deadline int64
	// Budget is the same as a span from the arrival of the frame, in
	// microseconds: what volley-init goes by, as clocks may differ.
	Budget        int64
	ID            string
	TraceID       string
	ClientContext []byte
	Payload       []byte
}

func (e *Event) appendHead(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, uint64(e.Deadline))
	b = binary.BigEndian.AppendUint64(b, uint64(e.Budget))
	b = appendString(b, e.ID)
	b = appendString(b, e.TraceID)
	return appendString(b, e.ClientContext)
}

func (e *Event) payload() []byte { return e.Payload }

// ParseEvent reads the body of a TypeEvent. The slices in the result share
// memory with body.
func ParseEvent(body []byte) (Event, error) {
	p := parser{rest: body}
	e := Event{Deadline: int64(p.uint64()), Budget: int64(p.uint64())}
	e.ID = string(p.bytes())
	e.TraceID = string(p.bytes())
	e.ClientContext = p.bytes()
	e.Payload = p.rest
	if p.bad {
		return Event{}, fmt.Errorf("%w: event of %d bytes", ErrMalformed, len(body))
	}
	return e, nil
}

// Reply is what the function says. Its body is Flags (1 byte), two strings and
// the payload.
type Reply struct {
	// Broken says that the function's process ended after it said so.
	Broken bool
	ID     string
	// Kind is the content type of an answer, or the type of an error.
	Kind    string
	Payload []byte
}

const flagBroken = 1

func (r *Reply) appendHead(b []byte) []byte {
	var flags byte
	if r.Broken {
		flags |= flagBroken
	}
	b = append(b, flags)
	b = appendString(b, r.ID)
	return appendString(b, r.Kind)
}

func (r *Reply) payload() []byte { return r.Payload }

// ReplyView is a Reply whose fields share memory with a frame's body.
type ReplyView struct {
	Broken            bool
	ID, Kind, Payload []byte
}

// ParseReply reads the body of a frame that is a Reply.
func ParseReply(body []byte) (ReplyView, error) {
	p := parser{rest: body}
	flags := p.byte()
	r := ReplyView{Broken: flags&flagBroken != 0, ID: p.bytes(), Kind: p.bytes(), Payload: p.rest}
	if p.bad {
		return ReplyView{}, fmt.Errorf("%w: reply of %d bytes", ErrMalformed, len(body))
	}
	return r, nil
}

// Stream is where a line of log was written.
type Stream byte

// The streams.
const (
	Stdout Stream = 1
	Stderr Stream = 2
	// Platform is volley-init itself.
	Platform Stream = 3
)

// Log is some lines that were written one after another to one stream. Its
// body is Stream (1 byte), Time (8 bytes), the request id and the lines as
// strings.
type Log struct {
	Stream Stream
	// Time is when they were read, in microseconds since 1970.
	Time int64
	// ID is the request id of the running invocation, or empty.
	ID string
	// Lines are strings one after another; see AppendLine and Line.
	Lines []byte
}

func (l *Log) appendHead(b []byte) []byte {
	b = append(b, byte(l.Stream))
	b = binary.BigEndian.AppendUint64(b, uint64(l.Time))
	return appendString(b, l.ID)
}

func (l *Log) payload() []byte { return l.Lines }

// AppendLine adds a line to a Log's Lines.
func AppendLine(lines, line []byte) []byte { return appendString(lines, line) }

// Line splits the first line off a Log's Lines. ok is false at the end, and
// where the bytes are malformed.
func Line(lines []byte) (line, rest []byte, ok bool) {
	if len(lines) == 0 {
		return nil, nil, false
	}
	p := parser{rest: lines}
	line = p.bytes()
	return line, p.rest, !p.bad
}

// ParseLog reads the body of a TypeLog. Lines shares memory with body.
func ParseLog(body []byte) (Log, error) {
	p := parser{rest: body}
	l := Log{Stream: Stream(p.byte()), Time: int64(p.uint64())}
	l.ID = string(p.bytes())
	l.Lines = p.rest
	if p.bad {
		return Log{}, fmt.Errorf("%w: log of %d bytes", ErrMalformed, len(body))
	}
	return l, nil
}

// Reason is why a function ended.
type Reason string

// The reasons.
const (
	// ReasonExit: its process ended by itself; Exit.Status or Signal tells how.
	ReasonExit Reason = "exit"
	// ReasonDeadline: it was killed at the event's deadline.
	ReasonDeadline Reason = "deadline"
	// ReasonInitTimeout: it did not ask for its first event in time.
	ReasonInitTimeout Reason = "initTimeout"
	// ReasonStart: it could not be started; Exit.Detail tells why.
	ReasonStart Reason = "start"
	// ReasonCanceled: the host cancelled the invocation.
	ReasonCanceled Reason = "canceled"
	// ReasonShutdown: the host shut the sandbox down.
	ReasonShutdown Reason = "shutdown"
	// ReasonInitError: it reported InitError.
	ReasonInitError Reason = "initError"
)

// Exit tells that a function ended, and why.
type Exit struct {
	// ID is the request id of the invocation that this ends, or empty.
	ID     string `json:"id,omitempty"`
	Reason Reason `json:"reason"`
	// Status is the exit status, Signal the signal's name if one ended the
	// process ("killed"), for ReasonExit.
	Status int    `json:"status,omitempty"`
	Signal string `json:"signal,omitempty"`
	// Killed says that the signal was SIGKILL and that volley-init did not
	// send it: a hint that memory ran out.
	Killed bool `json:"killed,omitempty"`
	// OutOfMemory says that it was the kernel, for want of memory. Only process
	// 1 of a virtual machine knows.
	OutOfMemory bool `json:"outOfMemory,omitempty"`
	// Unseen says that the function never took the event of ID.
	Unseen bool   `json:"unseen,omitempty"`
	Detail string `json:"detail,omitempty"`
}

func appendString[T string | []byte](b []byte, s T) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

// parser takes values off the front of rest; after a value that is not there
// it is bad, and what it returns means nothing.
type parser struct {
	rest []byte
	bad  bool
}

func (p *parser) take(n uint64) []byte {
	if p.bad || n > uint64(len(p.rest)) {
		p.bad = true
		return nil
	}
	b := p.rest[:n:n]
	p.rest = p.rest[n:]
	return b
}

func (p *parser) byte() byte {
	if b := p.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (p *parser) uint64() uint64 {
	if b := p.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (p *parser) bytes() []byte {
	n, size := binary.Uvarint(p.rest)
	if size <= 0 {
		p.bad = true
		return nil
	}
	p.take(uint64(size))
	return p.take(n)
}
