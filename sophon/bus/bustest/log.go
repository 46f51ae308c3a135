package bustest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/volley-run/volley/sophon/bus"
)

func logTests() []test {
	return []test{
		{"records are read by subject, oldest first", testLogRead},
		{"records are read since a time", testLogSince},
		{"records are followed", testLogFollow},
		{"reading ends with the handler's error, and with the context", testLogEnds},
		{"a subject keeps only so many records", testLogMaxPerSubject},
		{"a log keeps only so many bytes", testLogMaxBytes},
		{"a log keeps records only for so long", testLogMaxAge},
		{"records have subjects that make sense, and a limit", testLogRefusals},
	}
}

func openLog(t testing.TB, b bus.Bus, opts bus.LogOptions) bus.Log {
	t.Helper()
	return value(b.Log(within(t), "output", opts))(t)
}

// records reads what a log has.
func records(t testing.TB, l bus.Log, subject string, since time.Time) []string {
	t.Helper()
	var out []string
	must(t, l.Read(within(t), subject, since, false, func(r bus.Record) error {
		out = append(out, r.Subject+"="+string(r.Data))
		return nil
	}))
	return out
}

// appendAll adds records and waits until they are there.
func appendAll(t testing.TB, l bus.Log, subject string, values ...string) {
	t.Helper()
	for _, v := range values {
		must(t, l.Append(subject, []byte(v)))
	}
	last := subject + "=" + values[len(values)-1]
	eventually(t, "the log has "+last, func() bool {
		have := records(t, l, subject, time.Time{})
		return len(have) > 0 && have[len(have)-1] == last
	})
}

func testLogRead(t *testing.T, s Server) {
	a, b := openLog(t, s.Connect(t), bus.LogOptions{}), openLog(t, s.Connect(t), bus.LogOptions{})
	if have := records(t, a, ">", time.Time{}); len(have) != 0 {
		t.Errorf("an empty log has %q", have)
	}
	buffer := []byte("1")
	must(t, a.Append("fn.x", buffer))
	copy(buffer, "!")
	must(t, a.Append("fn.y", []byte("2")))
	appendAll(t, a, "fn.x", "3")
	must(t, a.Append("other", nil))
	eventually(t, "the log has an empty record", func() bool { return len(records(t, b, "other", time.Time{})) == 1 })
	for subject, want := range map[string][]string{
		"fn.x": {"fn.x=1", "fn.x=3"},
		"fn.*": {"fn.x=1", "fn.y=2", "fn.x=3"},
		">":    {"fn.x=1", "fn.y=2", "fn.x=3", "other="},
		"none": nil,
	} {
		if have := records(t, b, subject, time.Time{}); !slices.Equal(have, want) {
			t.Errorf("%s: got %q, want %q", subject, have, want)
		}
	}
	must(t, b.Read(within(t), "fn.y", time.Time{}, false, func(r bus.Record) error {
		if age := time.Since(r.Time); age < -time.Second || age > patience {
			t.Errorf("a record is %s old", age)
		}
		return nil
	}))
}

func testLogSince(t *testing.T, s Server) {
	l := openLog(t, s.Connect(t), bus.LogOptions{})
	appendAll(t, l, "a", "1", "2")
	var newest time.Time
	must(t, l.Read(within(t), "a", time.Time{}, false, func(r bus.Record) error {
		newest = r.Time
		return nil
	}))
	eventually(t, "the clock goes on", func() bool { return time.Since(newest) > time.Millisecond })
	appendAll(t, l, "a", "3")
	if have := records(t, l, "a", newest.Add(time.Nanosecond)); !slices.Equal(have, []string{"a=3"}) {
		t.Errorf("got %q", have)
	}
	if have := records(t, l, "a", newest); !slices.Equal(have, []string{"a=2", "a=3"}) {
		t.Errorf("got %q", have)
	}
	if have := records(t, l, "a", time.Now().Add(time.Hour)); len(have) != 0 {
		t.Errorf("got %q", have)
	}
}

// followLog follows a log until stop is called, which returns Read's error.
func followLog(t testing.TB, l bus.Log, subject string) (got *collected[string], stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	got = collect[string]()
	result := make(chan error, 1)
	go func() {
		result <- l.Read(ctx, subject, time.Time{}, true, func(r bus.Record) error {
			got.add(r.Subject + "=" + string(r.Data))
			return nil
		})
	}()
	t.Cleanup(cancel)
	return got, func() error {
		cancel()
		return <-result
	}
}

func testLogFollow(t *testing.T, s Server) {
	a, b := openLog(t, s.Connect(t), bus.LogOptions{}), openLog(t, s.Connect(t), bus.LogOptions{})
	appendAll(t, a, "fn.x", "0", "1")
	got, stop := followLog(t, b, "fn.*")
	var want []string
	for i := range 200 {
		subject := []string{"fn.x", "fn.y"}[i/2%2]
		if i >= 2 {
			must(t, a.Append(subject, []byte(strconv.Itoa(i))))
			must(t, a.Append("elsewhere", nil))
		}
		want = append(want, fmt.Sprintf("%s=%d", subject, i))
	}
	if have := got.wait(t, len(want)); !slices.Equal(have, want) {
		t.Errorf("got %q, want %q", have, want)
	}
	if err := stop(); err != nil {
		t.Errorf("the context's end is an error: %v", err)
	}
}

func testLogEnds(t *testing.T, s Server) {
	l := openLog(t, s.Connect(t), bus.LogOptions{})
	appendAll(t, l, "a", "1", "2", "3")
	enough := errors.New("enough")
	for _, follow := range []bool{false, true} {
		n := 0
		err := l.Read(within(t), "a", time.Time{}, follow, func(bus.Record) error {
			n++
			if n == 2 {
				return enough
			}
			return nil
		})
		if !errors.Is(err, enough) || n != 2 {
			t.Errorf("follow %t: %v after %d records", follow, err, n)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	handle := func(bus.Record) error { return errors.New("called") }
	if err := l.Read(ctx, "a", time.Time{}, false, handle); !errors.Is(err, context.Canceled) {
		t.Errorf("read with a context that has ended: %v", err)
	}
	if err := l.Read(ctx, "a", time.Time{}, true, handle); err != nil {
		t.Errorf("follow with a context that has ended: %v", err)
	}
}

func testLogMaxPerSubject(t *testing.T, s Server) {
	l := openLog(t, s.Connect(t), bus.LogOptions{MaxPerSubject: 3})
	appendAll(t, l, "a", "1")
	appendAll(t, l, "b", "1", "2", "3", "4", "5", "6", "7", "8")
	appendAll(t, l, "a", "2")
	want := []string{"a=1", "b=6", "b=7", "b=8", "a=2"}
	if have := records(t, l, ">", time.Time{}); !slices.Equal(have, want) {
		t.Errorf("got %q, want %q", have, want)
	}
}

func testLogMaxBytes(t *testing.T, s Server) {
	l := openLog(t, s.Connect(t), bus.LogOptions{MaxBytes: 64 << 10})
	for i := range 20 {
		must(t, l.Append(strconv.Itoa(i), bytes.Repeat([]byte{'x'}, 10<<10)))
	}
	appendAll(t, l, "last", "x")
	have := records(t, l, ">", time.Time{})
	if len(have) < 3 || len(have) > 7 || !slices.Contains([]string{"14", "15", "16", "17"}, have[0][:2]) {
		t.Errorf("%d records are left, beginning with %s", len(have), have[0][:2])
	}
}

func testLogMaxAge(t *testing.T, s Server) {
	const age = time.Second
	l := openLog(t, s.Connect(t), bus.LogOptions{MaxAge: age})
	start := time.Now()
	appendAll(t, l, "a", "1")
	eventually(t, "a record is forgotten", func() bool { return len(records(t, l, "a", time.Time{})) == 0 })
	if took := time.Since(start); took < age*9/10 {
		t.Errorf("forgotten after %s", took)
	}
}

func testLogRefusals(t *testing.T, s Server) {
	b := s.Connect(t)
	l := openLog(t, b, bus.LogOptions{})
	for _, subject := range []string{"", "a.*", ">", "a b", ".a"} {
		if err := l.Append(subject, nil); err == nil {
			t.Errorf("appended to %q", subject)
		}
	}
	if err := l.Read(within(t), "a..b", time.Time{}, false, func(bus.Record) error { return nil }); err == nil {
		t.Error("read a bad subject")
	}
	if err := l.Append("a", make([]byte, b.MaxMessageBytes()+1)); !errors.Is(err, bus.ErrTooLarge) {
		t.Errorf("append: %v", err)
	}
}
