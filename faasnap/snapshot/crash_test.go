package snapshot_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/volley-run/volley/faasnap/snapshot"
)

// commitEnv makes the test program take snapshots in the directory that it
// names, until it is killed.
const commitEnv = "VOLLEY_TEST_COMMIT"

// replacePrefix in front of a snapshot's path makes it take that one's place
// again and again.
const replacePrefix = "replace:"

func TestMain(m *testing.M) {
	if parent := os.Getenv(commitEnv); parent != "" {
		fmt.Fprintln(os.Stderr, commitForever(parent))
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

func commitForever(parent string) error {
	replaced, replace := strings.CutPrefix(parent, replacePrefix)
	for i := 0; ; i++ {
		begin, dir := snapshot.Begin, filepath.Join(parent, fmt.Sprint(os.Getpid(), "-", i))
		if replace {
			begin, dir = snapshot.BeginReplacement, replaced
		}
		d, err := begin(dir)
		if err != nil {
			return err
		}
		if err := writeGuest(d, uint64(i)); err != nil {
			return err
		}
		if _, err := d.Commit(context.Background(), contents()); err != nil {
			return err
		}
	}
}

func TestAKilledWriterLeavesWholeSnapshotsAndDraftsToSweep(t *testing.T) {
	parent := t.TempDir()
	mine := draft(t, filepath.Join(parent, "mine"), 1)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	whole, swept := 0, 0
	for range 12 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), commitEnv+"="+parent)
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// Not to wait for anything: the moment of death is what is tried out.
		<-time.After(time.Duration(10+rng.IntN(150)) * time.Millisecond)
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait() // it was killed
		n, err := snapshot.Sweep(parent)
		if err != nil {
			t.Error(err)
		}
		swept += n
		entries, err := os.ReadDir(parent)
		if err != nil {
			t.Fatal(err)
		}
		drafts := 0
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), ".") {
				drafts++
				continue
			}
			s, err := snapshot.Open(filepath.Join(parent, e.Name()))
			if err == nil {
				err = s.Verify(context.Background())
			}
			if err != nil {
				t.Error(err)
			}
			whole++
			if err := os.RemoveAll(filepath.Join(parent, e.Name())); err != nil {
				t.Error(err)
			}
		}
		if drafts != 1 {
			t.Errorf("%d drafts are left; want the one of this process", drafts)
		}
	}
	t.Logf("%d whole snapshots, %d drafts swept", whole, swept)
	if _, err := mine.Commit(context.Background(), contents()); err != nil {
		t.Errorf("a draft did not survive the sweeping of others: %v", err)
	}
}

func TestASnapshotIsThereWheneverAWriterThatReplacesItIsKilled(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "one")
	d := draft(t, dir, 1)
	if _, err := d.Commit(t.Context(), contents()); err != nil {
		t.Fatal(err)
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	ids := map[string]bool{}
	for range 12 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), commitEnv+"="+replacePrefix+dir)
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// Not to wait for anything: the moment of death is what is tried out.
		<-time.After(time.Duration(10+rng.IntN(150)) * time.Millisecond)
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait() // it was killed
		if _, err := snapshot.Sweep(parent); err != nil {
			t.Error(err)
		}
		s, err := snapshot.Open(dir)
		if err == nil {
			err = s.Verify(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
		ids[s.Meta().ID] = true
		if entries, err := os.ReadDir(parent); err != nil || len(entries) != 1 {
			t.Errorf("entries %v, error %v; want the snapshot alone", entries, err)
		}
	}
	if len(ids) < 3 {
		t.Errorf("%d snapshots were seen: it was not replaced", len(ids))
	}
	for range 2 {
		if err := snapshot.Remove(dir); err != nil {
			t.Error(err)
		}
	}
	if entries, err := os.ReadDir(parent); err != nil || len(entries) != 0 {
		t.Errorf("entries %v, error %v; want none", entries, err)
	}
}
