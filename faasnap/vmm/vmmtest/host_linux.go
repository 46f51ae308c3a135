package vmmtest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/volley-run/volley/faasnap/mem"
	"github.com/volley-run/volley/internal/sys"
	"github.com/volley-run/volley/internal/testenv"
)

// handle serves the page faults of guests restored from v, and returns the
// socket on which it takes them over. It ends after the VMs, with the test.
func handle(t *testing.T, v *saved) string {
	t.Helper()
	testenv.Need(t, testenv.Userfaultfd)
	memory, err := os.Open(v.memory)
	if err != nil {
		t.Fatal(err)
	}
	loading, err := os.Open(v.loading)
	if err != nil {
		t.Fatal(errors.Join(err, memory.Close()))
	}
	return listen(t, func(ctx context.Context, conn *net.UnixConn) error {
		g, err := mem.Handshake(conn)
		if err != nil {
			return err
		}
		return errors.Join(g.Serve(ctx, mem.GuestFiles{Plan: v.plan, Memory: memory, Loading: loading}), g.Close())
	}, memory.Close, loading.Close)
}

// listen gives each connection to f. In the end it waits for f and calls after.
func listen(t *testing.T, f func(context.Context, *net.UnixConn) error, after ...func() error) string {
	t.Helper()
	socket := filepath.Join(newDir(t), "socket")
	l, err := sys.ListenUnix(socket)
	if err != nil {
		t.Fatal(err)
	}
	// The VMM may be another user's.
	if err := errors.Join(os.Chmod(socket, 0o666), os.Chmod(filepath.Dir(socket), 0o711)); err != nil {
		t.Fatal(errors.Join(err, l.Close()))
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.AcceptUnix()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				if err := f(ctx, conn); err != nil && ctx.Err() == nil {
					t.Error(err)
				}
			})
		}
	})
	t.Cleanup(func() {
		cancel()
		errs := []error{l.Close()}
		wg.Wait()
		for _, f := range after {
			errs = append(errs, f())
		}
		if err := errors.Join(errs...); err != nil {
			t.Error(err)
		}
	})
	return socket
}

// leavesNothing checks, at the end of the test, after what is cleaned up from
// now on, that it has left no process and no descriptor.
func (s *suite) leavesNothing(t *testing.T) {
	t.Helper()
	before, children := descriptors(t), len(sys.Children(os.Getpid()))
	t.Cleanup(func() {
		var left []string
		ok := eventually(min(s.Patience, 10*time.Second), func() bool {
			left = nil
			for what, n := range descriptors(t) {
				if n > before[what] {
					left = append(left, fmt.Sprintf("%d of %s", n-before[what], what))
				}
			}
			if n := len(sys.Children(os.Getpid())); n > children {
				left = append(left, fmt.Sprintf("%d processes", n-children))
			}
			return len(left) == 0
		})
		if !ok {
			t.Errorf("left behind: %s", strings.Join(left, ", "))
		}
	})
}

// descriptors counts this process's, by what they are.
func descriptors(t *testing.T) map[string]int {
	t.Helper()
	counts := map[string]int{}
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		what, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil {
			continue // the one that reads the directory
		}
		if kind, _, numbered := strings.Cut(what, ":["); numbered && kind != "anon_inode" {
			what = kind
		}
		counts[what]++
	}
	maps.DeleteFunc(counts, func(what string, _ int) bool {
		// The runtime's poller comes with its first use.
		return what == "anon_inode:[eventpoll]" || what == "anon_inode:[eventfd]"
	})
	return counts
}

// noSockets checks that a directory has no sockets.
func noSockets(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type()&fs.ModeSocket != 0 {
			t.Errorf("left behind: socket %s", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// eventually reports whether a condition comes true in time.
func eventually(patience time.Duration, condition func() bool) bool {
	for end := time.Now().Add(patience); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			return false
		}
	}
	return true
}
