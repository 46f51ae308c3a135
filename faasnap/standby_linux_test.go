package faasnap

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// waitingVMMs needs the snapshot "memory", and leaves no VMM waiting.
func waitingVMMs(t *testing.T, s *Service) {
	keep := func(n int) {
		t.Helper()
		if err := s.Standby(t.Context(), "memory", n); err != nil {
			t.Fatal(err)
		}
	}
	ready := func(n int) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); s.Standbys()["memory"].Ready != n; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("VMMs that wait: %+v; want %d", s.Standbys(), n)
			}
		}
	}
	directories := func() int {
		t.Helper()
		entries, err := os.ReadDir(filepath.Join(s.cfg.Dir, vmsDir))
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	before := directories()

	keep(2)
	ready(2)
	cold := invoke(t, restore(t, s, FaaSnap, RestoreOptions{Populate: true}), `{"scratch": 8, "sum": true}`)
	ready(2) // not for one that has to know more
	seen := map[string]bool{cold.OS: true}
	for range 3 {
		v := restore(t, s, FaaSnap, RestoreOptions{})
		a := invoke(t, v, `{"scratch": 8, "sum": true}`)
		if a.Sum != cold.Sum || seen[a.OS] || len(a.Restored) != 1 || a.Restored[0] != v.ID() {
			t.Errorf("answer %+v of machine %s; want the sum %s, other random numbers and one call of the hook", a, v.ID(), cold.Sum)
		}
		seen[a.OS] = true
		if !v.Info().Standby {
			t.Error("it was not restored by a VMM that waited")
		}
		ready(2)
	}

	// One that has died meanwhile is as if it were not there.
	s.mu.Lock()
	for _, v := range s.standbys["memory"].ready {
		if err := syscall.Kill(v.vm.PID(), syscall.SIGKILL); err != nil {
			t.Error(err)
		}
		<-v.vm.Done()
	}
	s.mu.Unlock()
	v := restore(t, s, FaaSnap, RestoreOptions{})
	if invoke(t, v, "{}"); v.Info().Standby {
		t.Error("it was restored by a VMM that has died")
	}
	ready(2)

	keep(3)
	keep(1)
	ready(1)
	for _, n := range []int{-1, MaxStandby + 1} {
		if err := s.Standby(t.Context(), "memory", n); err == nil || !strings.Contains(err.Error(), fmt.Sprint(MaxStandby)) {
			t.Errorf("%d VMMs: error %v; want the limit", n, err)
		}
	}
	if err := s.Standby(t.Context(), "none", 1); !errors.Is(err, ErrNotFound) {
		t.Errorf("error %v; want that there is no such snapshot", err)
	}
	s.forget("memory") // as when it is removed or replaced
	ready(0)
	for _, v := range s.VMs() {
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	}
	if n := directories(); n != before {
		t.Errorf("%d directories of machines; want %d as before", n, before)
	}
	if n := len(s.Standbys()); n != 0 {
		t.Errorf("VMMs wait for %d snapshots; want none", n)
	}
}
