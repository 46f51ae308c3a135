package bench_test

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/volley-run/volley/faasnap"
	"github.com/volley-run/volley/faasnap/bench"
	"github.com/volley-run/volley/faasnap/guest"
	"github.com/volley-run/volley/faasnap/vmm/qemu"
	"github.com/volley-run/volley/internal/testenv"
	"github.com/volley-run/volley/sandbox/sandboxtest"
)

// open returns a Bench on QEMU that keeps its files in a new directory.
func open(t *testing.T) *bench.Bench {
	t.Helper()
	testenv.Need(t, testenv.QEMU, testenv.GuestImages, testenv.CC, testenv.Userfaultfd)
	cache, err := guest.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	shim, err := qemu.BuildShim(t.Context(), filepath.Join(cache, "shim"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := faasnap.Open(faasnap.Config{
		Dir: t.TempDir(), Driver: qemu.New(qemu.Config{Shim: shim, Accel: qemu.TCG}),
		Builder: &guest.Builder{Dir: filepath.Join(cache, "guest"), Init: sandboxtest.BuildInit(t)},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return bench.New(bench.Config{Service: s, MemoryBytes: 256 << 20, SyntheticMB: 64, Timeout: time.Minute, CodeDir: t.TempDir()})
}

func TestAFunctionAnswersTheSameByAllModes(t *testing.T) {
	b := open(t)
	for _, name := range []string{bench.HelloWorld, bench.JSON} {
		w, ok := bench.Find(name)
		if !ok {
			t.Fatalf("there is no workload %s", name)
		}
		f, err := b.Build(t.Context(), w)
		if err != nil {
			t.Fatal(err)
		}
		inputA, inputB := w.Inputs()
		r, err := b.Record(t.Context(), w, f, inputA, "a-"+name)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %+v", name, r.Took)
		event, err := w.Event(inputB)
		if err != nil {
			t.Fatal(err)
		}
		answer := ""
		for _, mode := range append([]faasnap.Mode{bench.Warm}, faasnap.Modes()...) {
			if mode == faasnap.Boot && name != bench.HelloWorld {
				continue // a boot takes as long as all others
			}
			m, err := b.Test(t.Context(), bench.Test{Recorded: r, Mode: mode, Event: event})
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%+v", m)
			if answer == "" {
				answer = m.Answer
			}
			if m.Answer != answer || answer == "" {
				t.Errorf("%s by mode %s answers %q, another mode %q", name, mode, m.Answer, answer)
			}
			if m.Invocation <= 0 || m.Invocation > m.Total || mode != bench.Warm && (m.VMM <= 0 || m.Setup < m.VMM) || m.MinorFaults == 0 || m.AnonymousBytes == 0 {
				t.Errorf("%s by mode %s: the parts do not fit: %+v", name, mode, m)
			}
		}
	}
}
