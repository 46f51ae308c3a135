package bench_test

import (
	"os"
	"syscall"
	"testing"

	"github.com/volley-run/volley/faasnap/bench"
	"github.com/volley-run/volley/internal/testenv"
)

func TestPageFaultsAreCountedAndTimed(t *testing.T) {
	testenv.Need(t, testenv.Root)
	timer, err := bench.NewFaultTimer()
	if err != nil {
		t.Logf("this kernel's functions cannot be traced: %v", err)
		return
	}
	defer timer.Close()
	end, err := timer.Observe(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	const pages = 2000
	region, err := syscall.Mmap(-1, 0, pages*4096, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Munmap(region)
	const madvNoHugePage = 15
	if err := syscall.Madvise(region, madvNoHugePage); err != nil {
		t.Fatal(err)
	}
	for at := 0; at < len(region); at += 4096 {
		region[at] = 1
	}
	times, err := end()
	if err != nil {
		t.Fatal(err)
	}
	sum := int64(0)
	for _, n := range times.Counts {
		sum += n
	}
	if sum < pages || sum > 2*pages || times.Total <= 0 {
		t.Errorf("%d page faults in %s: %v; want at least %d", sum, times.Total, times.Counts, pages)
	}
	t.Logf("%d in %s: %v", sum, times.Total, times.Counts)
}
