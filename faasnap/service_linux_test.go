package faasnap

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/volley-run/volley/faasnap/faasnaptest"
	"github.com/volley-run/volley/faasnap/mem"
	"github.com/volley-run/volley/faasnap/snapshot"
	"github.com/volley-run/volley/faasnap/vmm"
	"github.com/volley-run/volley/function"
)

// memoryFunction keeps 8 MiB that nobody could guess, tells their checksum if it is
// asked, and draws random numbers.
const memoryFunction = `
import hashlib, os, random

content = bytearray(random.Random(7).randbytes(8 << 20))
restored = []

def after_restore():
    restored.append(open("/run/volley/instance-id").read())

def handler(event, context):
    if event.get("do") == "crash":
        os.kill(os.getpid(), 9)
    if event.get("do") == "hang":
        while True:
            pass
    if event.get("do") == "fail":
        raise ValueError("as it was told")
    scratch = bytearray(event.get("scratch", 1) << 20)
    for i in range(0, len(scratch), 4096):
        scratch[i] = 1
    return {"sum": hashlib.sha256(content).hexdigest() if event.get("sum") else "", "os": os.urandom(16).hex(), "random": random.random(), "restored": restored}
`

type memoryAnswer struct {
	Sum, OS  string
	Random   float64
	Restored []string
}

const testMemory = 256 << 20

// openService opens a service on QEMU in dir.
func openService(t *testing.T, dir string) *Service {
	t.Helper()
	return openConfig(t, Config{Dir: dir})
}

// openConfig opens a service on QEMU.
func openConfig(t *testing.T, cfg Config) *Service {
	t.Helper()
	cfg.Driver, cfg.Builder = faasnaptest.QEMU(t)
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// buildMemoryFunction adds memoryFunction to a service.
func buildMemoryFunction(t *testing.T, s *Service) *Function {
	t.Helper()
	code := t.TempDir()
	if err := os.WriteFile(filepath.Join(code, "app.py"), []byte(memoryFunction), 0o644); err != nil {
		t.Fatal(err)
	}
	f := &Function{
		Function:         function.Function{Name: "memory", Runtime: "python3.12", Handler: "app.handler", MemoryMB: 128, Timeout: 20 * time.Second},
		GuestMemoryBytes: testMemory,
	}
	if err := s.BuildZip(t.Context(), f, code); err != nil {
		t.Fatal(err)
	}
	return f
}

func invoke(t *testing.T, v *VM, event string) memoryAnswer {
	t.Helper()
	resp, err := v.Invoke(t.Context(), v.request([]byte(event)))
	if err != nil {
		t.Fatal(err)
	}
	var a memoryAnswer
	if err := json.Unmarshal(resp.Payload, &a); err != nil || resp.FunctionError != "" {
		t.Fatalf("answer %s %s: %v", resp.FunctionError, resp.Payload, err)
	}
	return a
}

func restore(t *testing.T, s *Service, mode Mode, o RestoreOptions) *VM {
	t.Helper()
	v, err := s.Restore(t.Context(), "memory", mode, o)
	if err != nil {
		t.Fatalf("%s: %v", mode, err)
	}
	t.Cleanup(func() {
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	})
	return v
}

func restoreModes() []Mode { return Modes()[1:] }

// One snapshot serves all of this: a boot takes seconds.
func TestSnapshots(t *testing.T) {
	s := openService(t, filepath.Join(t.TempDir(), strings.Repeat("d", 200))) // a path that is too long for a socket's
	f := buildMemoryFunction(t, s)
	snap, err := s.Record(t.Context(), f, RecordOptions{Inputs: [][]byte{[]byte(`{}`), []byte(`{"scratch": 4}`)}, Faults: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Run("are as small as what the guest uses", func(t *testing.T) {
		p := snap.Plan()
		if p.LoadingPages == 0 || p.LoadingPages > p.Pages/2 {
			t.Errorf("a loading set of %d pages out of %d", p.LoadingPages, p.Pages)
		}
		var st syscall.Stat_t
		if err := syscall.Stat(snap.Path(snapshot.MemoryFile), &st); err != nil {
			t.Fatal(err)
		}
		if got := st.Blocks * 512; got > testMemory*3/4 {
			t.Errorf("the memory file takes %d bytes: freed memory was not made zero", got)
		}
	})
	t.Run("give every mode the same memory", func(t *testing.T) { sameMemory(t, s) })
	t.Run("give each machine its own random numbers and id", func(t *testing.T) { ownNumbers(t, s) })
	t.Run("are restored sooner by VMMs that wait", func(t *testing.T) { waitingVMMs(t, s) })
	t.Run("serve a burst", func(t *testing.T) { burst(t, s) })
	t.Run("are restored without a leak", func(t *testing.T) { noLeak(t, s) })
	t.Run("learn from further inputs", func(t *testing.T) { learns(t, s) })
	t.Run("are refused if a file is not what was written", func(t *testing.T) { damaged(t, s) })
	t.Run("fail an invocation if the loading set cannot be read", func(t *testing.T) { badLoads(t, s) })
	t.Run("fail an invocation whose machine is killed", func(t *testing.T) { killed(t, s) })
	t.Run("are not taken of a function that fails", func(t *testing.T) { failing(t, s, f) })
	t.Run("go when they are removed", func(t *testing.T) {
		if err := s.RemoveSnapshot("memory"); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Restore(t.Context(), "memory", FaaSnap, RestoreOptions{}); !errors.Is(err, ErrNotFound) {
			t.Errorf("error %v; want that it is not found", err)
		}
	})
}

func sameMemory(t *testing.T, s *Service) {
	sum := ""
	for _, o := range []RestoreOptions{{}, {HugeZeros: true, Populate: true}} {
		for _, mode := range restoreModes() {
			if o.Populate && mode != FaaSnap && mode != Regions {
				continue
			}
			v := restore(t, s, mode, o)
			for range 2 {
				a := invoke(t, v, `{"scratch": 8, "sum": true}`)
				if sum == "" {
					sum = a.Sum
				}
				if a.Sum != sum || sum == "" {
					t.Errorf("%s: memory has sum %q; want %q", mode, a.Sum, sum)
				}
				if len(a.Restored) != 1 || a.Restored[0] != v.ID() {
					t.Errorf("%s: the hook was called with %q; want %q once", mode, a.Restored, v.ID())
				}
			}
			if err := v.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

func ownNumbers(t *testing.T, s *Service) {
	seen := map[string]bool{}
	for range 3 {
		v := restore(t, s, FaaSnap, RestoreOptions{})
		a := invoke(t, v, "{}")
		for _, drawn := range []string{a.OS, fmt.Sprint(a.Random), v.ID()} {
			if seen[drawn] {
				t.Errorf("%s was drawn twice", drawn)
			}
			seen[drawn] = true
		}
	}
}

func burst(t *testing.T, s *Service) {
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			v, err := s.Restore(t.Context(), "memory", FaaSnap, RestoreOptions{})
			if err != nil {
				t.Error(err)
				return
			}
			if resp, err := v.Invoke(t.Context(), v.request([]byte("{}"))); err != nil || resp.FunctionError != "" {
				t.Errorf("answer %s: %v", resp.Payload, err)
			}
			if err := v.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := len(s.VMs()); n != 0 {
		t.Errorf("%d machines are left", n)
	}
}

// envRestores names the variable with how often the test for leaks restores.
const envRestores = "VOLLEY_TEST_RESTORES"

func noLeak(t *testing.T, s *Service) {
	n := 12
	if text := os.Getenv(envRestores); text != "" {
		var err error
		if n, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	count := func() (fds, maps, dirs int, disk int64) {
		entries := func(dir string) int {
			e, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			return len(e)
		}
		text, err := os.ReadFile("/proc/self/maps")
		if err != nil {
			t.Fatal(err)
		}
		err = filepath.WalkDir(s.cfg.Dir, func(path string, _ fs.DirEntry, err error) error {
			var st syscall.Stat_t
			if err == nil {
				err = syscall.Lstat(path, &st)
			}
			disk += st.Blocks * 512
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return entries("/proc/self/fd"), strings.Count(string(text), s.cfg.Dir), entries(filepath.Join(s.cfg.Dir, vmsDir)), disk
	}
	once := func(mode Mode) {
		v, err := s.Restore(t.Context(), "memory", mode, RestoreOptions{})
		if err != nil {
			t.Fatal(err)
		}
		invoke(t, v, "{}")
		if err := v.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", v.Info().PID)); err == nil {
			t.Fatalf("process %d is still there", v.Info().PID)
		}
	}
	modes := []Mode{FaaSnap, FaaSnap, FaaSnap, REAP, FaaSnapFaults, Full}
	for _, mode := range modes {
		once(mode)
	}
	fds, maps, dirs, disk := count()
	for i := range n {
		once(modes[i%len(modes)])
	}
	// Another test's poller may be about to close something.
	f, m, d, b := count()
	if f > fds || m > maps || d > dirs || b > disk {
		t.Errorf("%d restores: descriptors %d -> %d, mappings %d -> %d, directories %d -> %d, bytes on disk %d -> %d", n, fds, f, maps, m, dirs, d, disk, b)
	}
	t.Logf("%d restores: %d descriptors, %d mappings of the directory's files, %d directories of machines, %d bytes on disk", n, f, m, d, b)
}

func learns(t *testing.T, s *Service) {
	large := []byte(`{"scratch": 1, "sum": true}`) // reads what no recorded input did
	_, first, err := s.Learn(t.Context(), "memory", LearnOptions{Inputs: [][]byte{large}})
	if err != nil {
		t.Fatal(err)
	}
	snap, second, err := s.Learn(t.Context(), "memory", LearnOptions{Inputs: [][]byte{large}})
	if err != nil {
		t.Fatal(err)
	}
	if err := snap.Verify(t.Context()); err != nil {
		t.Error(err)
	}
	if first[0].Recall() > 0.7 || second[0].Recall() < 0.9 || second[0].Precision() <= 0 {
		t.Errorf("recall %v before and %v after; want less than 0.7 and more than 0.9", first[0].Recall(), second[0].Recall())
	}
	runs, err := s.Runs(t.Context(), "memory")
	if err != nil || len(runs) != 4 {
		t.Errorf("%d runs, error %v; want the two recorded and the two learnt from", len(runs), err)
	}
	if _, _, err := s.Learn(t.Context(), "memory", LearnOptions{Inputs: [][]byte{[]byte(`{"do": "fail"}`)}}); !errors.Is(err, ErrFunction) {
		t.Errorf("error %v; want that the function fails on the input", err)
	}
	tap := LearnOptions{Inputs: [][]byte{large}}
	tap.Network = &vmm.Network{Tap: "tap-of-nobody"}
	if _, _, err := s.Learn(t.Context(), "memory", tap); !errors.Is(err, ErrNetwork) {
		t.Errorf("error %v; want that there was no network device", err)
	}
	invoke(t, restore(t, s, FaaSnap, RestoreOptions{}), "{}")
}

func damaged(t *testing.T, s *Service) {
	snap, err := s.Snapshot(t.Context(), "memory")
	if err != nil {
		t.Fatal(err)
	}
	change := func(name string, f func(path string) error) (undo func()) {
		path := snap.Path(name)
		kept := path + ".kept"
		if err := os.Rename(path, kept); err != nil {
			t.Fatal(err)
		}
		if err := copySparse(path, kept); err != nil {
			t.Fatal(err)
		}
		if err := f(path); err != nil {
			t.Fatal(err)
		}
		// A file that does not belong there is damage too.
		aside := filepath.Join(t.TempDir(), name)
		if err := os.Rename(kept, aside); err != nil {
			t.Fatal(err)
		}
		return func() {
			if err := os.Rename(aside, path); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, meta := range snap.Meta().Files {
		for what, f := range map[string]func(path string) error{
			"truncated":   func(path string) error { return os.Truncate(path, meta.SizeBytes/2) },
			"missing":     os.Remove,
			"bit-flipped": func(path string) error { return flip(path, firstData(t, snap, meta.Name)) },
			"foreign":     func(path string) error { return copySparse(path, snap.Path(functionFile)) },
		} {
			if what == "foreign" && meta.Name == functionFile {
				continue
			}
			undo := change(meta.Name, f)
			v, err := s.Restore(t.Context(), "memory", FaaSnap, RestoreOptions{})
			if err == nil {
				err = v.Close()
			}
			if !errors.Is(err, snapshot.ErrDamaged) || !strings.Contains(err.Error(), meta.Name) {
				t.Errorf("%s is %s: error %v; want one that names it", meta.Name, what, err)
			}
			undo()
		}
	}
	invoke(t, restore(t, s, FaaSnap, RestoreOptions{}), "{}")
}

func copySparse(to, from string) error {
	text, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, text, 0o600)
}

// firstData returns the offset of a byte in a file that is not in a hole.
func firstData(t *testing.T, snap *snapshot.Snapshot, name string) int64 {
	t.Helper()
	f, err := os.Open(snap.Path(name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	data, err := mem.Data(f, max(info.Size()&^4095, 4096))
	if err != nil || len(data) == 0 {
		return info.Size() / 2
	}
	return int64(data[len(data)/2].Start) * 4096
}

func flip(path string, at int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	b := make([]byte, 1)
	_, err = f.ReadAt(b, at)
	if err == nil {
		b[0] ^= 4
		_, err = f.WriteAt(b, at)
	}
	return errors.Join(err, f.Close())
}

func badLoads(t *testing.T, s *Service) {
	for _, mode := range []Mode{FaaSnap, FaaSnapFaults} {
		src, err := s.source(t.Context(), "memory")
		if err != nil {
			t.Fatal(err)
		}
		// After the snapshot has been found in order.
		path := src.path(snapshot.LoadingFile)
		if err := flip(path, 100); err != nil {
			t.Fatal(err)
		}
		v, err := s.restore(t.Context(), src, mode, RestoreOptions{}, time.Now())
		if err == nil {
			_, err = v.Invoke(t.Context(), v.request([]byte("{}")))
			<-v.Done()
			err = errors.Join(err, v.Close())
		}
		if !errors.Is(err, snapshot.ErrDamaged) {
			t.Errorf("%s: error %v; want that the snapshot is damaged", mode, err)
		}
		if err := flip(path, 100); err != nil {
			t.Fatal(err)
		}
	}
	invoke(t, restore(t, s, FaaSnap, RestoreOptions{}), "{}")
}

func killed(t *testing.T, s *Service) {
	for _, mode := range []Mode{FaaSnap, REAP} {
		v := restore(t, s, mode, RestoreOptions{})
		time.AfterFunc(300*time.Millisecond, func() { _ = syscall.Kill(v.Info().PID, syscall.SIGKILL) })
		resp, err := v.Invoke(t.Context(), v.request([]byte(`{"do": "hang"}`)))
		if err == nil || !strings.Contains(err.Error(), "killed") {
			t.Errorf("%s: answer %s, error %v; want that the machine was killed", mode, resp.Payload, err)
		}
		<-v.Done()
	}
	v := restore(t, s, FaaSnap, RestoreOptions{})
	resp, err := v.Invoke(t.Context(), v.request([]byte(`{"do": "crash"}`)))
	if err != nil || !strings.Contains(string(resp.Payload), "Runtime.ExitError") || !resp.Broken {
		t.Errorf("the function was killed: answer %s, error %v", resp.Payload, err)
	}
}

func failing(t *testing.T, s *Service, f *Function) {
	_, err := s.Record(t.Context(), f, RecordOptions{Name: "failing", Inputs: [][]byte{[]byte(`{"do": "fail"}`)}})
	if err == nil || !strings.Contains(err.Error(), "as it was told") {
		t.Errorf("error %v; want the function's own", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if _, err := s.Record(ctx, f, RecordOptions{Name: "failing"}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v; want that the time is over", err)
	}
	entries, err := os.ReadDir(filepath.Join(s.cfg.Dir, snapshotsDir))
	if err != nil || len(entries) != 1 {
		t.Errorf("entries %v, error %v; want the one snapshot", entries, err)
	}
	if n := len(s.VMs()); n != 0 {
		t.Errorf("%d machines are left", n)
	}
}
