package faasnap

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/volley-run/volley/faasnap/snapshot"
	"github.com/volley-run/volley/internal/testenv"
)

// envCrash names the variable that makes this test's program do what is to be
// cut short, in the directory that it holds.
const envCrash = "VOLLEY_TEST_FAASNAP_CRASH"

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestCrashHelper is not a test by itself: it records a snapshot, saying what it
// does, restores it, and waits to be killed.
func TestCrashHelper(t *testing.T) {
	dir := os.Getenv(envCrash)
	if dir == "" {
		return // started by go test itself
	}
	s := openService(t, dir)
	f := buildMemoryFunction(t, s)
	say := func(step string) { fmt.Println("STEP", step) }
	if _, err := s.Record(t.Context(), f, RecordOptions{Progress: say, Replace: true}); err != nil {
		t.Fatal(err)
	}
	v, err := s.Restore(t.Context(), "memory", FaaSnapFaults, RestoreOptions{})
	if err != nil {
		t.Fatal(err)
	}
	say(fmt.Sprintf("restored %d", v.Info().PID))
	_, _ = v.Invoke(t.Context(), v.request([]byte(`{"do": "hang"}`)))
}

// A process that is killed at any step leaves neither machines nor half
// snapshots, and the next one goes on with what was complete.
func TestAProcessThatIsKilledLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	_ = openService(t, filepath.Join(dir, "other")) // skips where machines cannot run
	for _, step := range []string{"save", "record input 1 of 1", "restored"} {
		cmd := exec.Command(os.Args[0], "-test.run=^TestCrashHelper$")
		cmd.Env = append(os.Environ(), envCrash+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		reached := false
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if strings.HasPrefix(lines.Text(), "STEP "+step) {
				reached = true
				break
			}
			if !strings.HasPrefix(lines.Text(), "STEP ") {
				t.Log(lines.Text())
			}
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // it was killed
		if !reached {
			t.Fatalf("the helper ended before %q", step)
		}
		for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			left := machinesIn(t, dir)
			if len(left) == 0 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("killed at %q: processes %v are left", step, left)
			}
		}
		// With what is swept here, nothing is left but whole snapshots.
		s := openService(t, dir)
		for _, sub := range []string{vmsDir, snapshotsDir} {
			entries, err := os.ReadDir(filepath.Join(dir, sub))
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				if sub == vmsDir || e.Name() != "memory" {
					t.Errorf("killed at %q: %s is left", step, filepath.Join(sub, e.Name()))
				}
			}
		}
		_, err = s.Snapshot(t.Context(), "memory")
		if err != nil && !errors.Is(err, ErrNotFound) {
			t.Errorf("killed at %q: %v", step, err)
		}
		if step == "restored" && err != nil {
			t.Errorf("the snapshot that was complete: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// machinesIn returns the processes that have files of dir open.
func machinesIn(t *testing.T, dir string) []string {
	t.Helper()
	links, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	self := fmt.Sprintf("/proc/%d/", os.Getpid())
	var found []string
	for _, link := range links {
		to, err := os.Readlink(link)
		if err == nil && strings.HasPrefix(to, dir) && !strings.HasPrefix(link, self) {
			found = append(found, link+" -> "+to)
		}
	}
	return found
}

func TestADiskThatIsFullLeavesNoHalfSnapshot(t *testing.T) {
	testenv.Need(t, testenv.QEMU, testenv.GuestImages, testenv.CC)
	dir := testenv.MountTmpfs(t, 280<<20)
	s := openService(t, dir)
	f := buildMemoryFunction(t, s)
	// Guest memory fits while the function starts, but not what is written of it.
	if _, err := s.Record(t.Context(), f, RecordOptions{}); err == nil {
		t.Fatal("there was room for all")
	} else if !errors.Is(err, syscall.ENOSPC) {
		t.Logf("the machine ended: %v", err)
	}
	if names, err := s.Snapshots(); err != nil || len(names) != 0 {
		t.Errorf("snapshots %v, error %v; want none", names, err)
	}
	for _, sub := range []string{vmsDir, snapshotsDir} {
		entries, err := os.ReadDir(filepath.Join(dir, sub))
		if err != nil || len(entries) != 0 {
			t.Errorf("%s: entries %v, error %v; want none", sub, entries, err)
		}
	}
	if _, err := snapshot.Open(s.snapshotPath("memory")); !errors.Is(err, snapshot.ErrNone) {
		t.Errorf("error %v; want that there is no snapshot", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
