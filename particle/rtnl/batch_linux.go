package rtnl

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// Batch is a list of requests that Conn.Do sends to the kernel together. The
// zero value is ready to use. Requests that add take what is there already for
// an error, ErrExists, unless they say otherwise; requests that delete are
// satisfied when there is nothing. It may not be used concurrently.
type Batch struct {
	buf      []byte
	requests []request
}

type request struct {
	start   int
	op      string
	subject any  // formatted only for an error
	lenient bool // ErrNotFound is none
	replies bool // the kernel answers with more than an error
}

// Len returns the number of requests.
func (b *Batch) Len() int { return len(b.requests) }

// Reset empties b and keeps its memory.
func (b *Batch) Reset() {
	b.buf = b.buf[:0]
	b.requests = b.requests[:0]
}

func (b *Batch) begin(typ, flags uint16, op string, subject any) {
	b.requests = append(b.requests, request{start: len(b.buf), op: op, subject: subject})
	b.u32(0) // the length, by end
	b.u16(typ)
	b.u16(flags | unix.NLM_F_REQUEST)
	b.u32(0) // the sequence number, by Conn.Do
	b.u32(0)
}

func (b *Batch) end() {
	start := b.requests[len(b.requests)-1].start
	binary.NativeEndian.PutUint32(b.buf[start:], uint32(len(b.buf)-start))
}

// lenient makes the last request satisfied if there is nothing to delete.
func (b *Batch) lenient() { b.requests[len(b.requests)-1].lenient = true }

func (b *Batch) u8(v ...uint8)  { b.buf = append(b.buf, v...) }
func (b *Batch) u16(v uint16)   { b.buf = binary.NativeEndian.AppendUint16(b.buf, v) }
func (b *Batch) u32(v uint32)   { b.buf = binary.NativeEndian.AppendUint32(b.buf, v) }
func (b *Batch) align(from int) { b.buf = append(b.buf, make([]byte, -(len(b.buf)-from)&3)...) }

func (b *Batch) attr(typ uint16, data []byte) {
	b.u16(uint16(4 + len(data)))
	b.u16(typ)
	b.buf = append(b.buf, data...)
	b.align(0)
}

func (b *Batch) attr8(typ uint16, v uint8) { b.attr(typ, []byte{v}) }

func (b *Batch) attr32(typ uint16, v uint32) {
	b.u16(8)
	b.u16(typ)
	b.u32(v)
}

// attrPort is a 16-bit number in network byte order.
func (b *Batch) attrPort(typ, v uint16) { b.attr(typ, []byte{byte(v >> 8), byte(v)}) }

func (b *Batch) attrString(typ uint16, s string) {
	b.u16(uint16(4 + len(s) + 1))
	b.u16(typ)
	b.buf = append(b.buf, s...)
	b.buf = append(b.buf, 0)
	b.align(0)
}

// nest begins an attribute that holds others; close ends it.
func (b *Batch) nest(typ uint16) (start int) {
	start = len(b.buf)
	b.u16(0)
	b.u16(typ)
	return start
}

func (b *Batch) close(start int) {
	binary.NativeEndian.PutUint16(b.buf[start:], uint16(len(b.buf)-start))
}

func (r request) fail(errno unix.Errno, detail string) error {
	return &RequestError{Op: r.op, Subject: fmt.Sprint(r.subject), Detail: detail, Err: classify(errno)}
}
