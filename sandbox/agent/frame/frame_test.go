package frame

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"reflect"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// decodeAll returns all frames of b, and the error that ends them.
func decodeAll(r io.Reader) (types []Type, bodies [][]byte, err error) {
	dec := NewDecoder(r)
	for {
		t, body, err := dec.Next()
		if err != nil {
			return types, bodies, err
		}
		types = append(types, t)
		bodies = append(bodies, bytes.Clone(body))
	}
}

func TestWhatIsEncodedIsDecoded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		payload := rapid.SliceOfN(rapid.Byte(), 0, 300)
		// Large bodies take another way than small ones.
		if rapid.Bool().Draw(t, "large") {
			payload = rapid.Just(bytes.Repeat([]byte("large"), 20<<10))
		}
		ev := Event{
			Deadline: rapid.Int64().Draw(t, "deadline"), Budget: rapid.Int64().Draw(t, "budget"),
			ID: rapid.String().Draw(t, "id"), TraceID: rapid.String().Draw(t, "trace"),
			ClientContext: payload.Draw(t, "context"), Payload: payload.Draw(t, "payload"),
		}
		reply := Reply{
			Broken: rapid.Bool().Draw(t, "broken"), ID: rapid.String().Draw(t, "reply id"), Kind: rapid.String().Draw(t, "kind"),
			Payload: payload.Draw(t, "answer"),
		}
		lines := rapid.SliceOf(rapid.SliceOf(rapid.Byte())).Draw(t, "lines")
		log := Log{Stream: Stderr, Time: rapid.Int64().Draw(t, "time"), ID: rapid.String().Draw(t, "log id")}
		for _, line := range lines {
			log.Lines = AppendLine(log.Lines, line)
		}
		var b bytes.Buffer
		enc := NewEncoder(&b)
		restore := Restore{Time: rapid.Int64().Draw(t, "clock"), ID: rapid.String().Draw(t, "machine")}
		if rapid.Bool().Draw(t, "on a network") {
			restore.Network = &Network{MTU: rapid.IntRange(0, 1<<16).Draw(t, "MTU")}
			if rapid.Bool().Draw(t, "IPv4") {
				restore.Network.Address = netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "address")))
			}
			if rapid.Bool().Draw(t, "IPv6") {
				restore.Network.Address6 = netip.AddrFrom16([16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "address6")))
			}
		}
		copy(restore.Seed[:], rapid.SliceOfN(rapid.Byte(), SeedBytes, SeedBytes).Draw(t, "seed"))
		quiesce := Quiesce{Number: rapid.Uint64().Draw(t, "asked")}
		quiet := Quiet{Number: rapid.Uint64().Draw(t, "answered")}
		for _, err := range []error{
			enc.Event(&ev), enc.Reply(TypeResponse, &reply), enc.Log(&log), enc.Encode(TypeShutdown, nil), enc.Restore(&restore), enc.Quiet(&quiet),
			enc.Quiesce(&quiesce),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
		types, bodies, err := decodeAll(iotest.HalfReader(&b))
		if !errors.Is(err, io.EOF) || string(types) != string([]Type{TypeEvent, TypeResponse, TypeLog, TypeShutdown, TypeRestore, TypeQuiet, TypeQuiesce}) {
			t.Fatalf("types %q, error %v", types, err)
		}
		gotEvent, err := ParseEvent(bodies[0])
		if err != nil {
			t.Fatal(err)
		}
		if gotEvent.Deadline != ev.Deadline || gotEvent.Budget != ev.Budget || gotEvent.ID != ev.ID || gotEvent.TraceID != ev.TraceID ||
			!bytes.Equal(gotEvent.ClientContext, ev.ClientContext) || !bytes.Equal(gotEvent.Payload, ev.Payload) {
			t.Fatalf("event %+v, want %+v", gotEvent, ev)
		}
		got, err := ParseReply(bodies[1])
		if err != nil {
			t.Fatal(err)
		}
		if got.Broken != reply.Broken || string(got.ID) != reply.ID || string(got.Kind) != reply.Kind || !bytes.Equal(got.Payload, reply.Payload) {
			t.Fatalf("reply %+v, want %+v", got, reply)
		}
		gotLog, err := ParseLog(bodies[2])
		if err != nil {
			t.Fatal(err)
		}
		if got, err := ParseRestore(bodies[4]); err != nil || !reflect.DeepEqual(got, restore) {
			t.Fatalf("restore %+v, error %v, want %+v", got, err, restore)
		}
		if got, err := ParseQuiet(bodies[5]); err != nil || got != quiet {
			t.Fatalf("quiet %+v, error %v, want %+v", got, err, quiet)
		}
		if got, err := ParseQuiesce(bodies[6]); err != nil || got != quiesce {
			t.Fatalf("quiesce %+v, error %v, want %+v", got, err, quiesce)
		}
		var gotLines [][]byte
		for line, rest, ok := Line(gotLog.Lines); ok; line, rest, ok = Line(rest) {
			gotLines = append(gotLines, line)
		}
		if gotLog.Stream != log.Stream || gotLog.Time != log.Time || gotLog.ID != log.ID || len(gotLines) != len(lines) {
			t.Fatalf("log %+v, want %+v", gotLog, log)
		}
		for i, line := range lines {
			if !bytes.Equal(gotLines[i], line) {
				t.Fatalf("line %q, want %q", gotLines[i], line)
			}
		}
	})
}

func TestJSONFramesComeBack(t *testing.T) {
	var b bytes.Buffer
	want := Exit{ID: "x", Reason: ReasonExit, Status: 3}
	if err := NewEncoder(&b).JSON(TypeExited, want); err != nil {
		t.Fatal(err)
	}
	_, body, err := NewDecoder(&b).Next()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(`{"id":"x","reason":"exit","status":3}`, string(body)); diff != "" {
		t.Error(diff)
	}
}

func TestABodyOverTheLimitIsRefused(t *testing.T) {
	if err := NewEncoder(io.Discard).Encode(TypeBoot, make([]byte, MaxBody+1)); err == nil {
		t.Error("it is written")
	}
	header := binary.BigEndian.AppendUint32([]byte{byte(TypeBoot)}, MaxBody+1)
	if _, _, err := NewDecoder(bytes.NewReader(header)).Next(); !errors.Is(err, ErrMalformed) {
		t.Errorf("reading it: %v", err)
	}
}

func TestAStreamThatBreaksOffIsToldFromOneThatEnds(t *testing.T) {
	var b bytes.Buffer
	if err := NewEncoder(&b).Reply(TypeResponse, &Reply{ID: "id", Payload: []byte("x")}); err != nil {
		t.Fatal(err)
	}
	for n := range b.Len() + 1 {
		_, _, err := decodeAll(bytes.NewReader(b.Bytes()[:n]))
		want := io.ErrUnexpectedEOF
		if n == 0 || n == b.Len() {
			want = io.EOF
		}
		if !errors.Is(err, want) {
			t.Errorf("after %d bytes: %v, want %v", n, err, want)
		}
	}
}

func TestKeptBytesStayAsTheyAre(t *testing.T) {
	for _, size := range []int{1, 100, 4 << 10, 1 << 20} {
		var b bytes.Buffer
		enc := NewEncoder(&b)
		first, second := bytes.Repeat([]byte{1}, size), bytes.Repeat([]byte{2}, size)
		for _, p := range [][]byte{first, second} {
			if err := enc.Encode(TypeEvent, p); err != nil {
				t.Fatal(err)
			}
		}
		dec := NewDecoder(&b)
		_, body, err := dec.Next()
		if err != nil {
			t.Fatal(err)
		}
		kept := dec.Keep(body)
		if _, _, err := dec.Next(); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(kept, first) {
			t.Errorf("%d bytes: changed by the next frame", size)
		}
	}
}

func TestParsersRejectBodiesThatAreCutShort(t *testing.T) {
	event := (&Event{ID: "id", TraceID: "trace", ClientContext: []byte("context")}).appendHead(nil)
	reply := (&Reply{ID: "id", Kind: "kind"}).appendHead(nil)
	log := (&Log{Stream: Stdout, ID: "id"}).appendHead(nil)
	for name, tc := range map[string]struct {
		body  []byte
		parse func([]byte) error
	}{
		"restore": {
			(&Restore{ID: "id"}).appendHead(nil), func(b []byte) error { _, err := ParseRestore(b); return err },
		},
		"restore on a network": {
			(&Restore{ID: "id", Network: &Network{Address: netip.IPv6Loopback()}}).appendHead(nil)[8+SeedBytes+3:], func(b []byte) error {
				p := parser{rest: b}
				if p.network(); p.bad {
					return ErrMalformed
				}
				return nil
			},
		},
		"quiesce": {(&Quiesce{}).appendHead(nil), func(b []byte) error { _, err := ParseQuiesce(b); return err }},
		"quiet":   {(&Quiet{}).appendHead(nil), func(b []byte) error { _, err := ParseQuiet(b); return err }},
		"event":   {event, func(b []byte) error { _, err := ParseEvent(b); return err }},
		"reply":   {reply, func(b []byte) error { _, err := ParseReply(b); return err }},
		"log":     {log, func(b []byte) error { _, err := ParseLog(b); return err }},
	} {
		for n := range tc.body {
			if err := tc.parse(tc.body[:n]); !errors.Is(err, ErrMalformed) {
				t.Errorf("%s of %d bytes: %v", name, n, err)
			}
		}
		if err := tc.parse(tc.body); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzDecoder(f *testing.F) {
	var b bytes.Buffer
	enc := NewEncoder(&b)
	for _, err := range []error{
		enc.Event(&Event{ID: "id", ClientContext: []byte("{}"), Payload: []byte("1")}),
		enc.Reply(TypeError, &Reply{ID: "id", Kind: "Error", Payload: []byte("{}")}),
		enc.Log(&Log{Stream: Stdout, ID: "id", Lines: AppendLine(nil, []byte("line"))}),
		enc.JSON(TypeBoot, Boot{Argv: []string{"x"}}),
		enc.Restore(&Restore{Time: 1, ID: "id"}),
		enc.Restore(&Restore{ID: "id", Network: &Network{MTU: 1450, Address: netip.IPv6Loopback()}}),
		enc.Quiet(&Quiet{Number: 1}),
	} {
		if err != nil {
			f.Fatal(err)
		}
	}
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, in []byte) {
		dec := NewDecoder(bytes.NewReader(in))
		taken := 0
		for {
			typ, body, err := dec.Next()
			if err != nil {
				break
			}
			taken += headerBytes + len(body)
			// None of the parsers may panic or return more than there is.
			if ev, err := ParseEvent(body); err == nil && len(ev.Payload)+len(ev.ClientContext) > len(body) {
				t.Errorf("event of %d bytes has a payload of %d", len(body), len(ev.Payload))
			}
			if r, err := ParseReply(body); err == nil {
				again := (&Reply{Broken: r.Broken, ID: string(r.ID), Kind: string(r.Kind)}).appendHead(nil)
				if len(again)+len(r.Payload) > len(body) {
					t.Errorf("reply of %d bytes (type %q) has more in it than that", len(body), typ)
				}
			}
			if r, err := ParseRestore(body); err == nil {
				if again := r.appendHead(nil); len(again) > len(body) {
					t.Errorf("restore of %d bytes has %d in it", len(body), len(again))
				}
			}
			if q, err := ParseQuiet(body); err == nil && !bytes.Equal(q.appendHead(nil), body) {
				t.Errorf("quiet %x is %+v", body, q)
			}
			if l, err := ParseLog(body); err == nil {
				n := 0
				for line, rest, ok := Line(l.Lines); ok; line, rest, ok = Line(rest) {
					n += len(line) + 1
				}
				if n > len(body) {
					t.Errorf("log of %d bytes has %d bytes of lines", len(body), n)
				}
			}
		}
		if taken > len(in) {
			t.Errorf("took %d of %d bytes", taken, len(in))
		}
	})
}
