//go:build unix

package sys

import (
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"testing"
)

func TestDescendantsAreFoundWhoeverTheirParentIs(t *testing.T) {
	cmd := exec.Command("sh", "-c", "sh -c 'sleep 600 & echo $!; wait'; true")
	NewGroup(cmd)
	grandchild, err := strconv.Atoi(firstLine(t, cmd))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := KillGroup(cmd.Process.Pid); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait() // killed
	}()
	got, err := Descendants(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range []int{cmd.Process.Pid, grandchild} {
		if !slices.Contains(got, pid) {
			t.Errorf("process %d is missing in %v", pid, got)
		}
	}
	if got, err := Descendants(grandchild); len(got) > 0 || err != nil {
		t.Errorf("descendants of sleep: %v, %v", got, err)
	}
}

func TestUsageIsOfOneProcess(t *testing.T) {
	u, ok := Usage(os.Getpid())
	if runtime.GOOS != "linux" {
		if ok {
			t.Errorf("usage %+v", u)
		}
		return
	}
	if !ok || u.MemoryBytes < 1<<20 || u.MaxMemoryBytes < u.MemoryBytes {
		t.Errorf("usage %+v, %v", u, ok)
	}
	if u, ok := Usage(-1); ok {
		t.Errorf("usage of no process: %+v", u)
	}
}

func TestAMovedDescriptorIsTheSameFile(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	moved, err := MoveDescriptor(int(w.Fd()), int(null.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	// w is the null device now, so closing it does not end the pipe.
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(moved), "moved")
	if _, err := f.WriteString("x"); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 2)
	if n, err := r.Read(b); n != 1 || b[0] != 'x' || err != nil {
		t.Errorf("read %d bytes, error %v", n, err)
	}
}
