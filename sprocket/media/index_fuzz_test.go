package media

import (
	"bytes"
	"context"
	"os"
	"testing"

	"github.com/volley-run/volley/sprocket"
)

// seeds are small clips in the container of the name.
func seeds(f *testing.F, names ...string) {
	f.Helper()
	f.Add([]byte{})
	for _, name := range names {
		data, err := os.ReadFile(makeClip(f, name, "-f lavfi -i testsrc2=s=32x32:r=25:d=0.5 -c:v mpeg4 -bf 1 -g 5"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
		f.Add(data[:len(data)/2])
	}
}

// memorySource is a Source over data.
func memorySource(data []byte) *Source {
	ctx, cancel := context.WithCancel(context.Background())
	return &Source{name: "fuzz", size: int64(len(data)), origin: memoryOrigin{data}, ctx: ctx, cancel: cancel}
}

type memoryOrigin struct{ data []byte }

func (o memoryOrigin) fetch(_ context.Context, p []byte, off int64) error {
	copy(p, o.data[off:])
	return nil
}
func (o memoryOrigin) address(context.Context) (string, error) { return "", nil }
func (o memoryOrigin) close() error                            { return nil }

func FuzzMP4Index(f *testing.F) {
	seeds(f, "a.mp4", "a.mov")
	f.Fuzz(func(t *testing.T, data []byte) {
		_, _ = layOutMP4(bytes.NewReader(data), int64(len(data)))
		table, err := readMP4Index(memorySource(data), 1, 12800)
		checkTable(t, table, err)
	})
}

func FuzzMKVIndex(f *testing.F) {
	seeds(f, "a.mkv")
	f.Fuzz(func(t *testing.T, data []byte) {
		ms, rate := sprocket.Rational{Num: 1, Den: 1000}, sprocket.Rational{Num: 25, Den: 1}
		table, err := readMKVIndex(memorySource(data), 0, ms, rate, 0)
		checkTable(t, table, err)
	})
}

func FuzzPacketList(f *testing.F) {
	f.Add([]byte("pts=0|dts=0|duration=512|flags=K_\npts=512|dts=N/A|duration=512|flags=_D|\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var l packetList
		if l.read(bytes.NewReader(data)) == nil {
			table, err := l.table("fuzz")
			checkTable(t, table, err)
		}
	})
}

func FuzzContentRange(f *testing.F) {
	f.Add("bytes 0-99/1234")
	f.Add("bytes */0")
	f.Fuzz(func(t *testing.T, s string) { parseContentRange(s) })
}

func checkTable(t *testing.T, table *frameTable, err error) {
	t.Helper()
	if (table == nil) == (err == nil) {
		t.Fatalf("table %v with error %v", table, err)
	}
	if err != nil {
		return
	}
	if len(table.index.KeyFrames()) == 0 {
		t.Fatal("no key frames")
	}
	if n := table.index.Len(); n >= 0 && table.index.at(0) != table.startPTS {
		t.Fatalf("starts at %d, first frame at %d", table.startPTS, table.index.at(0))
	}
}
