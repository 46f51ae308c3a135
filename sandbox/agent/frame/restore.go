package frame

import (
	"encoding/binary"
	"fmt"
)

// SeedBytes is the length of a Restore's Seed.
const SeedBytes = 64

// Restore tells a guest that it goes on from a copy of an earlier guest's
// memory. Its body is Time (8 bytes), Seed, the id as a string, and Network if
// there is one.
type Restore struct {
	// Time is what the clock is set to, in nanoseconds since 1970.
	Time int64
	// Seed is entropy that no other guest gets.
	Seed [SeedBytes]byte
	// ID is the restored machine's own, as no two have the same.
	ID string
	// Network is how it is on a network; nil is as it was, or not at all. It is
	// for a guest that was booted with an empty one.
	Network *Network
}

func (r *Restore) appendHead(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, uint64(r.Time))
	b = append(b, r.Seed[:]...)
	b = appendString(b, r.ID)
	if r.Network != nil {
		b = r.Network.append(b)
	}
	return b
}

func (r *Restore) payload() []byte { return nil }

// Restore writes a TypeRestore.
func (e *Encoder) Restore(r *Restore) error { return e.encode(TypeRestore, r) }

// ParseRestore reads the body of a TypeRestore.
func ParseRestore(body []byte) (Restore, error) {
	p := parser{rest: body}
	r := Restore{Time: int64(p.uint64())}
	copy(r.Seed[:], p.take(SeedBytes))
	r.ID = string(p.bytes())
	if len(p.rest) > 0 {
		r.Network = p.network()
	}
	if p.bad || len(p.rest) > 0 {
		return Restore{}, fmt.Errorf("%w: restore of %d bytes", ErrMalformed, len(body))
	}
	return r, nil
}

// Quiesce asks for a Quiet. Its body is Number (8 bytes).
type Quiesce struct {
	// Number tells this Quiesce from those before.
	Number uint64
}

func (q *Quiesce) appendHead(b []byte) []byte { return binary.BigEndian.AppendUint64(b, q.Number) }

func (q *Quiesce) payload() []byte { return nil }

// Quiesce writes a TypeQuiesce.
func (e *Encoder) Quiesce(q *Quiesce) error { return e.encode(TypeQuiesce, q) }

// ParseQuiesce reads the body of a TypeQuiesce.
func ParseQuiesce(body []byte) (Quiesce, error) {
	p := parser{rest: body}
	q := Quiesce{Number: p.uint64()}
	if p.bad || len(p.rest) > 0 {
		return Quiesce{}, fmt.Errorf("%w: quiesce of %d bytes", ErrMalformed, len(body))
	}
	return q, nil
}

// Quiet says that nothing is under way in a guest. Its body is Number (8 bytes).
type Quiet struct {
	// Number is that of the last Quiesce.
	Number uint64
}

func (q *Quiet) appendHead(b []byte) []byte { return binary.BigEndian.AppendUint64(b, q.Number) }

func (q *Quiet) payload() []byte { return nil }

// Quiet writes a TypeQuiet.
func (e *Encoder) Quiet(q *Quiet) error { return e.encode(TypeQuiet, q) }

// ParseQuiet reads the body of a TypeQuiet.
func ParseQuiet(body []byte) (Quiet, error) {
	p := parser{rest: body}
	q := Quiet{Number: p.uint64()}
	if p.bad || len(p.rest) > 0 {
		return Quiet{}, fmt.Errorf("%w: quiet of %d bytes", ErrMalformed, len(body))
	}
	return q, nil
}
