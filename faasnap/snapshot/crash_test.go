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

func TestMain(m *testing.M) {
	if parent := os.Getenv(commitEnv); parent != "" {
		fmt.Fprintln(os.Stderr, commitForever(parent))
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

func commitForever(parent string) error {
	for i := 0; ; i++ {
		d, err := snapshot.Begin(filepath.Join(parent, fmt.Sprint(os.Getpid(), "-", i)))
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
