package mem_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/volley-run/volley/faasnap/mem/memtest"
	"github.com/volley-run/volley/faasnap/pages"
)

// vmmEnv makes the test program a VMM, as far as memory goes, which hands its
// page faults over to the socket that it names. It is another process since
// one that waits for itself to serve a page fault waits for good when the
// garbage collector stops its threads.
const vmmEnv = "VOLLEY_TEST_VMM"

// vmmJob is what the VMM does.
type vmmJob struct {
	Socket string
	Pages  int
	// Remove are pages that the guest gives back before it looks at them.
	Remove pages.Range
	// Output is where the guest writes all of its memory in the end.
	Output string
	// Split makes two regions of memory, with a userfaultfd each.
	Split bool
	// Shared makes that one for both, as Firecracker does.
	Shared bool
}

func TestMain(m *testing.M) {
	if text := os.Getenv(vmmEnv); text != "" {
		var job vmmJob
		err := json.Unmarshal([]byte(text), &job)
		if err == nil {
			err = job.run()
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "VMM:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func (j vmmJob) run() error {
	memory, err := memtest.Map(j.Pages * pages.Size)
	if err != nil {
		return err
	}
	parts := [][]byte{memory}
	if j.Split {
		half := j.Pages / 2 * pages.Size
		parts = [][]byte{memory[half:], memory[:half]} // not in order
	}
	if err := memtest.HandOver(memtest.Offer{Socket: j.Socket, Memory: memory, Parts: parts, Split: !j.Shared}); err != nil {
		return err
	}
	if j.Remove.Len() > 0 {
		if err := memtest.Discard(memory[j.Remove.Start*pages.Size : j.Remove.End*pages.Size]); err != nil {
			return err
		}
	}
	// Several processors look at pages here and there, and then at all.
	var wg sync.WaitGroup
	for seed := range uint64(3) {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, 1))
			sum := byte(0)
			for range j.Pages / 4 {
				sum += memory[rng.IntN(len(memory))]
			}
			_ = sum
		})
	}
	wg.Wait()
	return os.WriteFile(j.Output, bytes.Clone(memory), 0o600)
}
