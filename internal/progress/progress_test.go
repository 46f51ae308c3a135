package progress

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// golden compares got with testdata/name.golden.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("output differs from %s\ngot:\n%s\nwant:\n%s", path, got, want)
	}
}

// fakeClock stands still until it is advanced.
type fakeClock struct {
	mu     sync.Mutex
	now    time.Time
	alarms []alarm
}

type alarm struct {
	at time.Time
	c  chan time.Time
}

func (c *fakeClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *fakeClock) After(d time.Duration) <-chan time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	a := alarm{c.now.Add(d), make(chan time.Time, 1)}
	c.alarms = append(c.alarms, a)
	return a.c
}

func (c *fakeClock) advance(d time.Duration) {
	c.mu.Lock()
	c.now = c.now.Add(d)
	var left []alarm
	for _, a := range c.alarms {
		if a.at.After(c.now) {
			left = append(left, a)
			continue
		}
		a.c <- c.now
	}
	c.alarms = left
	c.mu.Unlock()
	synctest.Wait()
}

// output collects what is written, call by call.
type output struct {
	mu     sync.Mutex
	writes []string
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.writes = append(o.writes, string(p))
	return len(p), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return strings.Join(o.writes, "")
}

func (o *output) count() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.writes)
}

func at(done, running int) Snapshot {
	return Snapshot{
		Rows: []Row{
			{Name: "decode", Done: done, Running: running, Total: 40, Note: fmt.Sprintf("%d.5 frames/s", done*10)},
			{Name: "encode", Done: done / 2, Total: -1},
		},
		Line: fmt.Sprintf("%d workers", running),
	}
}

func show(d *Display, s Snapshot) {
	d.Update(s)
	synctest.Wait()
}

// onFakeTime runs test with a Display that has a fake clock.
func onFakeTime(t *testing.T, opts Options, test func(*Display, *output, *fakeClock)) {
	synctest.Test(t, func(t *testing.T) {
		clock := &fakeClock{now: time.Unix(1e9, 0)}
		out := &output{}
		opts.Clock = clock
		d := New(out, opts)
		defer d.Close()
		test(d, out, clock)
	})
}

var onTerminal = Options{Mode: Terminal, Width: 72, Height: 10, NoColor: true}

func TestTerminalRedrawsInPlaceAndClearsAtTheEnd(t *testing.T) {
	onFakeTime(t, onTerminal, func(d *Display, out *output, clock *fakeClock) {
		show(d, at(0, 4))
		clock.advance(time.Second)
		show(d, at(11, 8))
		if got, want := screenOf(out.String()), strings.Join(layout(at(11, 8), 71, 9, false), "\n"); got != want {
			t.Errorf("screen:\n%s\nwant:\n%s", got, want)
		}
		if _, err := d.Write([]byte("a worker was lost\n")); err != nil {
			t.Error(err)
		}
		if got, want := screenOf(out.String()), "a worker was lost\n"+strings.Join(layout(at(11, 8), 71, 9, false), "\n"); got != want {
			t.Errorf("screen after a log line:\n%s\nwant:\n%s", got, want)
		}
		clock.advance(time.Second)
		show(d, Snapshot{Line: "joining"})
		d.Close()
		if got := screenOf(out.String()); got != "a worker was lost" {
			t.Errorf("screen after Close:\n%s", got)
		}
		if !strings.HasSuffix(out.String(), showCursor) {
			t.Error("the cursor is still hidden after Close")
		}
		golden(t, "terminal", strings.ReplaceAll(out.String(), "\x1b", `\e`))
	})
}

func TestTerminalRedrawsAtMostTenTimesASecond(t *testing.T) {
	onFakeTime(t, onTerminal, func(d *Display, out *output, clock *fakeClock) {
		show(d, at(0, 1))
		for i := range 999 {
			clock.advance(time.Millisecond)
			show(d, at((i+1)/25, 1))
		}
		if n := out.count(); n != 10 {
			t.Errorf("%d redraws in a second, want 10", n)
		}
		clock.advance(redrawInterval)
		if got, want := screenOf(out.String()), strings.Join(layout(at(39, 1), 71, 9, false), "\n"); got != want {
			t.Errorf("the last update is not shown:\n%s\nwant:\n%s", got, want)
		}
	})
}

func TestPlainWritesFewLines(t *testing.T) {
	onFakeTime(t, Options{}, func(d *Display, out *output, clock *fakeClock) {
		show(d, at(0, 0))
		for i := range 41 { // 8.2 s
			clock.advance(200 * time.Millisecond)
			show(d, at(i, min(4, 40-i)))
		}
		if _, err := d.Write([]byte("a log line\n")); err != nil {
			t.Error(err)
		}
		last := at(40, 0)
		last.Line = "joining\x1b[2J"
		show(d, last)
		d.Close()
		golden(t, "plain", out.String())
	})
}

func TestCloseIsRepeatableAndUpdatesAfterItAreIgnored(t *testing.T) {
	for _, opts := range []Options{onTerminal, {Mode: Plain}} {
		onFakeTime(t, opts, func(d *Display, out *output, _ *fakeClock) {
			d.Close()
			if n := out.count(); n != 0 {
				t.Errorf("%d writes without an update", n)
			}
			d.Close()
			show(d, at(1, 1))
			if n := out.count(); n != 0 {
				t.Errorf("%d writes after Close", n)
			}
			if _, err := io.WriteString(d, "later\n"); err != nil || out.String() != "later\n" {
				t.Errorf("Write after Close: %q, %v", out, err)
			}
		})
	}
}

func TestUpdateDoesNotWaitForTheWriter(t *testing.T) {
	r, w := io.Pipe()
	d := New(w, Options{Mode: Plain})
	for i := range 100 {
		d.Update(at(i, 1)) // would hang: nobody reads
	}
	r.CloseWithError(errors.New("the reader has gone"))
	d.Close()
}

func TestConcurrentUse(t *testing.T) {
	d := New(io.Discard, onTerminal)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 50 {
				d.Update(at(j, i))
				fmt.Fprintln(d, "line")
			}
			d.Close()
		})
	}
	wg.Wait()
}

func TestFilesThatAreNoTerminalsGetPlainLines(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	d := New(f, Options{})
	d.Update(at(1, 2))
	d.Close()
	got, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	if want := plainLine(at(1, 2)) + "\n"; string(got) != want {
		t.Errorf("file has %q, want %q", got, want)
	}
}

func TestColor(t *testing.T) {
	tests := []struct {
		name    string
		env     string
		noColor bool
		want    bool
	}{
		{"is the default", "", false, true},
		{"is left out when NO_COLOR is set", "1", false, false},
		{"is left out when the caller says so", "", true, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("NO_COLOR", tt.env)
			var b bytes.Buffer
			d := New(&b, Options{Mode: Terminal, NoColor: tt.noColor})
			d.Write(nil)
			d.Update(at(20, 5))
			d.Close()
			s := d.screen.(*terminal)
			if s.color != tt.want {
				t.Errorf("colour = %v, want %v", s.color, tt.want)
			}
		})
	}
	if got, want := bar(Row{Done: 1, Running: 1, Total: 4}, 8, true), "["+green+"=="+plainText+yellow+">>"+plainText+"    ]"; got != want {
		t.Errorf("bar = %q, want %q", got, want)
	}
}

func TestLayout(t *testing.T) {
	snapshot := Snapshot{
		Rows: []Row{
			{Name: "decode", Done: 40, Total: 40, Note: "812.0 frames/s"},
			{Name: "grayscale and blur", Done: 12, Running: 3, Total: 40, Note: "123.4 frames/s"},
			{Name: "編碼", Done: 0, Running: 1, Total: 4000},
			{Name: "draw\n", Done: 7, Total: -1, Note: "waits"},
			{Name: "nothing to do", Total: 0},
		},
		Line: "19 workers, 14 s so far",
	}
	var b strings.Builder
	for _, size := range [][2]int{{100, 20}, {72, 20}, {50, 20}, {30, 20}, {12, 20}, {72, 4}, {72, 1}} {
		fmt.Fprintf(&b, "%d columns, %d lines\n", size[0], size[1])
		for _, line := range layout(snapshot, size[0], size[1], false) {
			fmt.Fprintf(&b, "|%s|\n", line)
		}
	}
	golden(t, "layout", b.String())
}

func TestLayoutStaysWithinTheTerminal(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rows := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Row {
			return Row{
				Name:    rapid.StringN(0, 30, -1).Draw(t, "name"),
				Done:    rapid.IntRange(-1, 100).Draw(t, "done"),
				Running: rapid.IntRange(-1, 100).Draw(t, "running"),
				Total:   rapid.IntRange(-1, 100).Draw(t, "total"),
				Note:    rapid.StringN(0, 20, -1).Draw(t, "note"),
			}
		}), 0, 6).Draw(t, "rows")
		s := Snapshot{Rows: rows, Line: rapid.String().Draw(t, "line")}
		width, height := rapid.IntRange(-1, 120).Draw(t, "width"), rapid.IntRange(-1, 8).Draw(t, "height")
		lines := layout(s, width, height, false)
		if len(lines) > max(height, 1) {
			t.Fatalf("%d lines, there is room for %d", len(lines), height)
		}
		for _, line := range lines {
			if columns(line) > max(width, 1) || strings.ContainsAny(line, "\n\r\x1b") {
				t.Fatalf("line %q does not fit into %d columns", line, width)
			}
		}
	})
}

// screenOf carries out the escape sequences that this package writes and
// returns what can be seen, without trailing blank lines.
func screenOf(out string) string {
	lines := []string{""}
	row, col := 0, 0
	for i := 0; i < len(out); i++ {
		switch c := out[i]; c {
		case '\r':
			col = 0
		case '\n':
			if row, col = row+1, 0; row == len(lines) {
				lines = append(lines, "")
			}
		case '\x1b':
			end := i + 2 + strings.IndexFunc(out[i+2:], func(r rune) bool { return r >= 'A' && r <= 'z' })
			switch out[end] {
			case 'A':
				n, _ := strconv.Atoi(out[i+2 : end])
				row -= n
			case 'K':
				lines[row] = lines[row][:col]
			case 'J':
				lines[row] = lines[row][:col]
				lines = lines[:row+1]
			}
			i = end
		default:
			lines[row] = lines[row][:col] + string(c) + lines[row][min(col+1, len(lines[row])):]
			col++
		}
	}
	return strings.TrimRight(strings.Join(lines, "\n"), "\n")
}
