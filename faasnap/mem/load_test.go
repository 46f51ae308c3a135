package mem_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/volley-run/volley/faasnap/mem"
)

// disk is a file whose reads are counted, and wait for the gate, if it has one.
type disk struct {
	content []byte
	gate    chan struct{}
	reading chan struct{} // closed by the first read, if there is one
	once    sync.Once
	read    atomic.Int64
	broken  error
}

func (d *disk) ReadAt(b []byte, offset int64) (int, error) {
	if d.reading != nil {
		d.once.Do(func() { close(d.reading) })
	}
	if d.gate != nil {
		<-d.gate
	}
	if d.broken != nil {
		return 0, d.broken
	}
	n, err := bytes.NewReader(d.content).ReadAt(b, offset)
	d.read.Add(int64(n))
	return n, err
}

func (d *disk) file() mem.LoadFile {
	return mem.LoadFile{Name: "loading", File: d, Size: int64(len(d.content))}
}

func TestABurstOfRestoresReadsTheLoadingSetOnce(t *testing.T) {
	const size = 3*mem.LoadChunk + 4096
	d := &disk{content: make([]byte, size), gate: make(chan struct{}), reading: make(chan struct{})}
	var l mem.Loader
	var wg sync.WaitGroup
	load := func() {
		if err := l.Load(context.Background(), "a", d.file()); err != nil {
			t.Error(err)
		}
	}
	wg.Go(load)
	<-d.reading
	for range 20 {
		wg.Go(load)
	}
	for l.Waiting("a") < 21 { // the gate is closed meanwhile
	}
	close(d.gate)
	wg.Wait()
	if n := d.read.Load(); n != size {
		t.Errorf("read %d bytes; want %d", n, size)
	}
	load()
	if n := d.read.Load(); n != 2*size {
		t.Errorf("read %d bytes with a later load; want %d", n, 2*size)
	}
}

func TestSnapshotsAreLoadedIndependently(t *testing.T) {
	stuck := &disk{content: make([]byte, 10), gate: make(chan struct{}), reading: make(chan struct{})}
	var l mem.Loader
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := l.Load(context.Background(), "stuck", stuck.file()); err != nil {
			t.Error(err)
		}
	})
	<-stuck.reading
	if err := l.Load(context.Background(), "other", (&disk{content: make([]byte, 10)}).file()); err != nil {
		t.Error(err)
	}
	close(stuck.gate)
	wg.Wait()
}

func TestErrorsOfALoadReachAllWhoWaitAndNobodyLater(t *testing.T) {
	broken := errors.New("input/output error")
	d := &disk{content: make([]byte, 10), gate: make(chan struct{}), reading: make(chan struct{}), broken: broken}
	var l mem.Loader
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			if err := l.Load(context.Background(), "a", d.file()); !errors.Is(err, broken) {
				t.Errorf("error %v; want the disk's", err)
			}
		})
	}
	for l.Waiting("a") < 5 {
	}
	close(d.gate)
	wg.Wait()
	d.broken = nil
	if err := l.Load(context.Background(), "a", d.file()); err != nil {
		t.Errorf("the disk works again, but not the load: %v", err)
	}

	short := d.file()
	short.Size++
	if err := l.Load(context.Background(), "a", short); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("error %v; want an unexpected end", err)
	}
	checked := d.file()
	checked.Check = func(offset int64, chunk []byte) error {
		return fmt.Errorf("chunk of %d bytes at %d is damaged", len(chunk), offset)
	}
	if err := l.Load(context.Background(), "a", checked); err == nil || !strings.Contains(err.Error(), "chunk of 10 bytes at 0 is damaged") {
		t.Errorf("error %v; want that of the check", err)
	}
}

func TestALoadEndsWhenTheLastWhoWaitsIsGone(t *testing.T) {
	d := &disk{content: make([]byte, 10*mem.LoadChunk), gate: make(chan struct{}), reading: make(chan struct{})}
	var l mem.Loader
	first, cancelFirst := context.WithCancel(context.Background())
	second, cancelSecond := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := l.Load(second, "a", d.file()); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v; want that it was cancelled", err)
		}
	})
	<-d.reading
	cancelFirst()
	if err := l.Load(first, "a", d.file()); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v; want that it was cancelled", err)
	}
	if n := l.Waiting("a"); n != 1 {
		t.Errorf("%d wait; want the one who did not leave", n)
	}
	cancelSecond()
	for l.Waiting("a") > 0 {
	}
	d.gate <- struct{}{}
	wg.Wait()
	if n := d.read.Load(); n > 2*mem.LoadChunk {
		t.Errorf("read %d bytes for nobody", n)
	}
}
