package mem_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/volley-run/volley/faasnap/mem"
	"github.com/volley-run/volley/faasnap/pages"
	"github.com/volley-run/volley/internal/testenv"
)

// vmm starts a VMM that does a job, and takes over its page faults.
func vmm(t *testing.T, job *vmmJob) (*exec.Cmd, *mem.Guest) {
	t.Helper()
	testenv.Need(t, testenv.Userfaultfd)
	dir, err := os.MkdirTemp("", "vmm") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	job.Socket = filepath.Join(dir, "socket")
	job.Output = filepath.Join(dir, "output")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: job.Socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	text, err := json.Marshal(job)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), vmmEnv+"="+string(text))
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()         // likewise
	})
	if err := listener.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	conn, err := listener.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	g, err := mem.Handshake(conn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(g.Close(), g.Close()); err != nil {
			t.Error(err)
		}
	})
	if g.PID() != cmd.Process.Pid {
		t.Errorf("the VMM is process %d; want %d", g.PID(), cmd.Process.Pid)
	}
	return cmd, g
}

func TestAGuestServedByFaultsSeesTheMemoryFile(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 9))
			n := 500 + rng.IntN(2500)
			memory, nonZero, w := randomGuest(t, rng, n)
			p, err := pages.Make(nonZero, w, pages.DefaultOptions())
			if err != nil {
				t.Fatal(err)
			}
			want, err := os.ReadFile(memory.Name())
			if err != nil {
				t.Fatal(err)
			}
			job := &vmmJob{Pages: n, Split: seed%2 == 1, Shared: seed >= 4}
			if seed%4 >= 2 {
				job.Remove = pages.Range{Start: n / 4, End: n / 3}
				clear(want[job.Remove.Start*pages.Size : job.Remove.End*pages.Size])
			}
			cmd, g := vmm(t, job)
			if err := g.Serve(context.Background(), mem.GuestFiles{Plan: p, Memory: memory, Loading: gather(t, p, memory)}); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(job.Output)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Error("the guest saw other memory")
			}
			s := g.Stats()
			t.Logf("%+v of %d pages, %d in the loading set", s, n, p.LoadingPages)
			if s.CopiedPages > int64(nonZero.Count()+p.LoadingPages) || s.AheadPages > int64(p.LoadingPages) {
				t.Errorf("copied %+v; there are %d pages that are not zero", s, nonZero.Count())
			}
		})
	}
}

// far is a memory file elsewhere, of which a page is zero until it has been
// fetched.
type far struct {
	memory  io.ReaderAt
	mu      sync.Mutex
	fetched pages.Set
	// first waits for second, so that they are under way at a time.
	calls  int
	second chan struct{}
}

func (f *far) fetch(ctx context.Context, offset, length int64) error {
	f.mu.Lock()
	f.calls++
	calls := f.calls
	f.mu.Unlock()
	switch calls {
	case 1:
		select {
		case <-f.second:
		case <-ctx.Done():
			return ctx.Err()
		}
	case 2:
		close(f.second)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fetched.AddRange(pages.Range{Start: int(offset / pages.Size), End: int((offset + length) / pages.Size)})
	return nil
}

func (f *far) ReadAt(b []byte, offset int64) (int, error) {
	n, err := f.memory.ReadAt(b, offset)
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range n / pages.Size {
		if !f.fetched.Has(int(offset/pages.Size) + i) {
			clear(b[i*pages.Size : (i+1)*pages.Size])
		}
	}
	return n, err
}

func TestAGuestWhoseMemoryIsElsewhereWaitsForIt(t *testing.T) {
	memory, nonZero, w := randomGuest(t, rand.New(rand.NewPCG(7, 9)), 2000)
	p, err := pages.Make(nonZero, w, pages.DefaultOptions())
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(memory.Name())
	if err != nil {
		t.Fatal(err)
	}
	job := &vmmJob{Pages: 2000, Remove: pages.Range{Start: 500, End: 700}}
	clear(want[job.Remove.Start*pages.Size : job.Remove.End*pages.Size])
	cmd, g := vmm(t, job)
	f := &far{memory: memory, fetched: pages.NewSet(2000), second: make(chan struct{})}
	if err := g.Serve(context.Background(), mem.GuestFiles{Plan: p, Memory: f, Fetch: f.fetch, Loading: gather(t, p, memory)}); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(job.Output); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the guest saw other memory: %v", err)
	}
}

func TestServingEndsWithTheVMMOrItsContext(t *testing.T) {
	memory, nonZero, _ := randomGuest(t, rand.New(rand.NewPCG(1, 9)), 1000)
	p, err := pages.Make(nonZero, pages.WorkingSet{}, pages.DefaultOptions())
	if err != nil {
		t.Fatal(err)
	}
	files := mem.GuestFiles{Plan: p, Memory: memory}
	t.Run("VMM", func(t *testing.T) {
		cmd, g := vmm(t, &vmmJob{Pages: 1000})
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := g.Serve(context.Background(), files); err != nil {
			t.Errorf("error %v; want none", err)
		}
	})
	t.Run("context", func(t *testing.T) {
		_, g := vmm(t, &vmmJob{Pages: 1000})
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if err := g.Serve(ctx, files); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v; want that it was cancelled", err)
		}
	})
}

func TestPagesThatCannotBeReadAreNeverServed(t *testing.T) {
	broken := errors.New("input/output error")
	memory, nonZero, w := randomGuest(t, rand.New(rand.NewPCG(2, 9)), 1000)
	w.Groups = append(w.Groups, pages.Group{{Start: 0, End: 1000}})
	lazy, err := pages.Make(nonZero, pages.WorkingSet{}, pages.DefaultOptions())
	if err != nil {
		t.Fatal(err)
	}
	loaded, err := pages.Make(nonZero, w, pages.DefaultOptions())
	if err != nil {
		t.Fatal(err)
	}
	bad := &disk{broken: broken}
	damaged := func(int64, []byte) error { return broken }
	unreachable := func(context.Context, int64, int64) error { return broken }
	for _, tc := range []struct {
		name  string
		files mem.GuestFiles
		want  error
	}{
		{"memory file", mem.GuestFiles{Plan: lazy, Memory: bad}, broken},
		{"memory file that is short", mem.GuestFiles{Plan: lazy, Memory: &disk{content: make([]byte, 10)}}, io.ErrUnexpectedEOF},
		{"memory that cannot be fetched", mem.GuestFiles{Plan: lazy, Memory: memory, Fetch: unreachable}, broken},
		{"loading-set file", mem.GuestFiles{Plan: loaded, Memory: memory, Loading: bad}, broken},
		{"damaged loading-set file", mem.GuestFiles{Plan: loaded, Memory: memory, Loading: gather(t, loaded, memory), Check: damaged}, broken},
	} {
		t.Run(tc.name, func(t *testing.T) {
			job := &vmmJob{Pages: 1000}
			_, g := vmm(t, job)
			if err := g.Serve(context.Background(), tc.files); !errors.Is(err, tc.want) {
				t.Errorf("error %v; want %v", err, tc.want)
			}
		})
	}
}

func TestHandshakesThatMakeNoSenseAreRefused(t *testing.T) {
	for _, tc := range []struct{ name, message, want string }{
		{"not JSON", "hello", "EOF"},
		{"no regions", "[]", "0 regions"},
		{"huge pages", `[{"base_host_virt_addr":4096,"size":4096,"offset":0,"page_size":2097152}]`, "pages of 2097152 bytes"},
		{"half a page", `[{"base_host_virt_addr":4096,"size":2048,"offset":0}]`, "not pages"},
		{"out of range", `[{"base_host_virt_addr":4096,"size":18446744073709547520,"offset":0}]`, "out of range"},
		{"overlapping", `[{"base_host_virt_addr":4096,"size":8192,"offset":0},{"base_host_virt_addr":8192,"size":4096,"offset":8192}]`, "overlaps"},
		{"no descriptor", `[{"base_host_virt_addr":4096,"size":4096,"offset":0}]`, "0 descriptors"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			var conns []*net.UnixConn
			for _, fd := range fds {
				f := os.NewFile(uintptr(fd), "socket")
				c, err := net.FileConn(f)
				if err := errors.Join(err, f.Close()); err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				conns = append(conns, c.(*net.UnixConn))
			}
			if _, err := conns[0].Write([]byte(tc.message)); err != nil {
				t.Fatal(err)
			}
			if err := conns[0].CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if _, err := mem.Handshake(conns[1]); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v; want %q", err, tc.want)
			}
		})
	}
}

func FuzzHandshake(f *testing.F) {
	f.Add([]byte(`[{"base_host_virt_addr":4096,"size":8192,"offset":0,"page_size":4096},{"base_host_virt_addr":16384,"size":4096,"offset":8192}]`))
	f.Fuzz(func(t *testing.T, text []byte) {
		regions, err := mem.ParseHostRegions(text)
		if err != nil {
			return
		}
		for _, r := range regions {
			if r.Size == 0 || (r.Address|r.Size|r.Offset)%pages.Size != 0 || r.Address+r.Size < r.Address || r.Offset+r.Size < r.Offset {
				t.Errorf("took %q: %+v", text, r)
			}
		}
	})
}
